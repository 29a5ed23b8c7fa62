"""Where tokens are made. Every engine obeys the protocol in `base` and passes the same tests."""

from octavo.engine.base import CHAT, Batch, Engine, Prompt, Sampling, TargetScores

__all__ = ["CHAT", "Batch", "Engine", "Prompt", "Sampling", "TargetScores"]
