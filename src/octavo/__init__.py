"""octavo: learned context compression. Fold long texts into latents once, and ask many times.

    import octavo

    model = octavo.load()
    book = model.compress(open("book.txt").read())
    print(model.generate("Who tells the story?", context=book).text)

Names are resolved on first use, so that importing octavo does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.agent import Agent, Tool
    from octavo.completion import Completion, Stream, Timings, Usage
    from octavo.config import Extension, ModelConfig
    from octavo.context import CompressedContext
    from octavo.engine.base import CHAT, Engine, Sampling
    from octavo.errors import (
        CheckpointError,
        ConfigError,
        ContextError,
        EvaluationError,
        InputError,
        MissingExtraError,
        OctavoError,
        PromptError,
        PromptTooLongError,
        RatioError,
        StoreError,
        TemplateError,
        TrainingError,
    )
    from octavo.files import WriteError
    from octavo.loading import assemble, load
    from octavo.model import Model
    from octavo.nn import LCLM, LCLMConfig
    from octavo.session import Session
    from octavo.store import Store
    from octavo.train.chats import ChatCollator

__version__ = "0.1.0"

_HOMES = {
    "octavo.agent": ["Agent", "Tool"],
    "octavo.completion": ["Completion", "Stream", "Timings", "Usage"],
    "octavo.config": ["Extension", "ModelConfig"],
    "octavo.context": ["CompressedContext"],
    "octavo.engine.base": ["CHAT", "Engine", "Sampling"],
    "octavo.errors": [
        "CheckpointError", "ConfigError", "ContextError", "EvaluationError", "InputError",
        "MissingExtraError", "OctavoError", "PromptError", "PromptTooLongError", "RatioError",
        "StoreError", "TemplateError", "TrainingError",
    ],
    "octavo.files": ["WriteError"],
    "octavo.loading": ["assemble", "load"],
    "octavo.model": ["Model"],
    "octavo.nn": ["LCLM", "LCLMConfig"],
    "octavo.session": ["Session"],
    "octavo.store": ["Store"],
    "octavo.train.chats": ["ChatCollator"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CHAT", "LCLM", "Agent", "ChatCollator", "CheckpointError", "Completion", "CompressedContext",
    "ConfigError", "ContextError", "Engine", "EvaluationError", "Extension", "InputError",
    "LCLMConfig", "MissingExtraError", "Model", "ModelConfig", "OctavoError", "PromptError",
    "PromptTooLongError", "RatioError", "Sampling", "Session", "Store", "StoreError", "Stream",
    "TemplateError", "Timings", "Tool", "TrainingError", "Usage", "WriteError", "assemble", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"octavo has no {name!r}; its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
