"""What an answer is: its text with an exact account of what was read, written and waited for."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from octavo.ask.citations import Citation

Fallback = Literal["passages", "raw"]
"""What may be read where an answer is not trusted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What was read and written, counted exactly."""

    source_tokens: int
    """Source tokens behind the latents of the prompt."""
    latents: int
    ratio: int | None
    """Source tokens per latent; None for a prompt without latents."""
    prompt_tokens: int
    """Positions of the prompt: text tokens, tags and latents."""
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)
    """Of the prompt's, those whose KV cache was kept from earlier; 0 where several were asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Wall-clock seconds."""

    compress_seconds: float
    """Spent compressing contexts that were given as text; 0 when none was."""
    ttft_seconds: float
    """From the call to the first token, compression included."""
    total_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """An answer with its account."""

    text: str
    usage: Usage
    timings: Timings
    finish_reason: Literal["stop", "length"]
    logprob: float | None = None
    """The mean natural logarithm of the probabilities of the answer's tokens; None for none."""
    confidence: float | None = None
    """How likely the answer is right, as measured for this model (`confidence.py`); None before."""
    fallback: Fallback | None = None
    """What was read instead, the first answer not being trusted; the seconds are of both."""
    citations: tuple[Citation, ...] = ()
    """The passages it rests on, if they were asked for, those that hold the answer first."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


class Stream(Iterator[str]):
    """The pieces of an answer as they are made; `completion` is there once it is exhausted."""

    def __init__(self, pieces: Iterator[str | Completion]) -> None:
        """Wrap a generator whose last item is the completion."""
        self._pieces = pieces
        self.completion: Completion | None = None

    def __next__(self) -> str:
        """Return the next piece of text."""
        for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self.completion = piece
        raise StopIteration

    def close(self) -> None:
        """Stop early and let go of the engine."""
        self._pieces.close()  # type: ignore[attr-defined]
