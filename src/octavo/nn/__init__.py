"""The torch modules: shapes in, shapes out; no text, no training.

Read in this order: `encoder`, `pooling`, `adapter`, `splice`, `lclm`.
"""

from octavo.nn.lclm import LCLM, LCLMConfig

__all__ = ["LCLM", "LCLMConfig"]
