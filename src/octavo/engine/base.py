"""What an engine is: ids and latents in, tokens out; it knows no text.

Shapes: S slots of one prompt, K latents of one span, D decoder width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo.config import Extension, ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy, as the published evaluations ran."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    repetition_penalty: float = 1.0
    """Counts generated tokens only."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a new one."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the answer and are not part of it."""


CHAT = Sampling(max_new_tokens=512, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1)
"""The settings of the public code's own text generation (wire-format §4.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt ready to be read: every slot has its latent."""

    input_ids: Sequence[int]
    latents: Tensor | None
    """`SD`, in the order of the slots."""
    prefix_length: int = 0
    """Leading positions that later prompts may share: everything up to the last span's end."""


class Engine(Protocol):
    """Encodes spans and continues prompts."""

    config: ModelConfig
    extension: Extension
    name: str
    max_positions: int
    """Positions of the decoder: prompt and answer together."""
    latent_width: int
    stop_ids: tuple[int, ...]
    """Token ids that end an answer of this decoder."""

    @property
    def fingerprint(self) -> str:
        """Identify the weights that make and read latents, whatever the precision."""
        ...

    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return the `latents_KD` of each span of source token ids."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[int | None]]:
        """Yield the next token of every prompt, step by step; None for those that have ended."""
        ...

    def close(self) -> None:
        """Let go of memory and processes."""
        ...
