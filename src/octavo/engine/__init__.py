"""Where tokens are made. Every engine obeys the protocol in `base` and passes the same tests."""

from octavo.engine.base import CHAT, Engine, Prompt, Sampling

__all__ = ["CHAT", "Engine", "Prompt", "Sampling"]
