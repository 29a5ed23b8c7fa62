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
    seed: int | tuple[int, ...] | None = None
    """Makes sampling repeatable: one for every row, or one a row. None draws new ones.

    Each row draws by itself, so that it answers in a batch as it does alone."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the answer and are not part of it."""
    logprobs: bool = False
    """Whether a batch says how likely each token was (`Batch.logprobs`)."""
    num_alternatives: int = 0
    """With `logprobs`, how many of the likeliest tokens a batch names (`Batch.alternatives`)."""

    def seed_of(self, row: int) -> int | None:
        """Return the seed of one row of a batch."""
        return self.seed[row] if isinstance(self.seed, tuple) else self.seed


CHAT = Sampling(max_new_tokens=512, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1)
"""The settings of the public code's own text generation (wire-format §4.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt ready to be read: every slot has its latent."""

    input_ids: Sequence[int]
    latents: Tensor | None
    """`SD`, in the order of the slots."""
    prefix_length: int = 0
    """Leading positions that later prompts may share: everything up to the last context's end."""
    is_turn: bool = False
    """Whether it is a turn of a conversation: whatever was read of it before is used again, and all
    that is read now is kept, answer included. An engine that keeps prefixes alone may ignore it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetScores:
    """How a prompt's decoder takes a given continuation, token by token."""

    logprobs: tuple[float, ...]
    """Natural logarithm of each token's probability."""
    is_greedy: tuple[bool, ...]
    """Whether each token is the likeliest in its place."""


class Batch(Protocol):
    """Answers to several prompts, growing one token a row and step.

    Iterating yields the next token of every row; None for rows that have ended or were dropped.
    """

    logprobs: list[float | None]
    """Of the tokens yielded last, before temperature; None where no token is, or none was asked."""
    alternatives: list[list[tuple[int, float]]]
    """The likeliest tokens in each one's place, with their logprobs, as far as asked for."""
    reused: list[int]
    """Leading positions of each row's prompt that were not read, since they were kept; 0 before."""

    def join(self, prompt: Prompt, sampling: Sampling) -> int:
        """Let one more prompt in, which the next step reads, and return its row.

        That may be the row of one that ended: its end was yielded, or it was dropped. Not allowed
        once all rows have ended. Rows answer as they would alone.
        """
        ...

    @property
    def num_reused(self) -> int:
        """Positions of all prompts that were not read, since they were kept; 0 before."""
        ...

    def __iter__(self) -> Iterator[list[int | None]]:
        """Return itself."""
        ...

    def __next__(self) -> list[int | None]:
        """Take one step, until every row has ended."""
        ...

    def drop(self, row: int) -> None:
        """End a row now: the steps to come neither compute it nor hold memory for it."""
        ...

    def close(self) -> None:
        """End all rows and free what they hold; prefixes may be kept. May be called twice."""
        ...


class Engine(Protocol):
    """Encodes spans and continues prompts. Calls may come from any thread."""

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

    @property
    def kept_bytes(self) -> int:
        """The bytes that kept prefixes hold."""
        ...

    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return the `latents_KD` of each span of source token ids."""
        ...

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        """Begin to answer prompts; the first step reads them. Rows answer as they would alone."""
        ...

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        """Return the likelihood of each token of `target` behind the prompt, read in one pass."""
        ...

    def keep_prefixes(self, count: int) -> None:
        """Keep the prefixes of so many contexts from now on."""
        ...

    def forget(self) -> None:
        """Let go of kept prefixes: the next question pays for all it needs."""
        ...

    def close(self) -> None:
        """Let go of memory and processes."""
        ...
