"""The torch modules: shapes in, shapes out; no text, no training.

Read in this order: `encoder`, `pooling`, `adapter`, `splice`, `lclm`.
"""

from octavo.nn.config import LCLMConfig
from octavo.nn.lclm import LCLM

__all__ = ["LCLM", "LCLMConfig"]
