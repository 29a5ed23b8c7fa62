"""What answers: a model of this process, or another server; the rest sees one protocol.

A job holds messages as `octavo.prompt` reads them: documents are memory parts, whose text or
context the backend puts before its decoder in its own way.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.model import Model
from octavo.prompt import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerJob:
    """What is asked of a backend."""

    messages: Sequence[Message] | None = None
    prompt: str | None = None
    """In place of messages: plain text to continue."""
    ratio: int | None = None
    n: int = 1
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    is_agents: bool = False
    """Whether an agent reads the documents and answers, in place of the model alone."""
    num_alternatives: int | None = None
    """Whether logprobs are asked for, and with how many alternatives."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What a server further on reads and this one does not, such as `response_format`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A piece of one of a job's answers."""

    index: int
    text: str = ""
    reasoning: str = ""
    """What was thought, or done, on the way to the answer."""
    citations: Sequence[Mapping[str, Any]] = ()
    """The passages that the answer rests on."""
    calls: Sequence[Mapping[str, Any]] = ()
    """Tool calls, or parts of some, as chat chunks hold them."""
    logprobs: Sequence[Mapping[str, Any]] = ()
    """As `choices[].logprobs.content` has them."""
    finish: str | None = None


@dataclass(slots=True)
class TokenTally:
    """What a job took, counted as it goes."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    source_tokens: int = 0
    latents: int = 0
    compress_seconds: float = 0.0
    folded_messages: int = 0
    """By a policy, without being asked to."""


class Answering(Protocol):
    """The answers to one job, as they are made."""

    tally: TokenTally

    def pieces(self) -> AsyncIterator[Piece]:
        """Yield until every answer has ended; closing it early frees the work at once."""
        ...

    async def aclose(self) -> None:
        """Free what it holds, also where nobody read it; may be called twice."""
        ...


class Backend(Protocol):
    """Whatever answers."""

    name: str
    fingerprint: str
    """Of what reads compressed histories."""
    model: Model | None
    """That of this process, if it is what answers."""
    capabilities: frozenset[str]
    """Which of `response_format`, `tool_choice` and `penalties` it keeps."""

    async def open(self, job: AnswerJob) -> Answering:
        """Begin to answer; whatever is wrong with the job is raised here."""
        ...

    async def count(self, text: str) -> int:
        """Return how many tokens a text has, about."""
        ...

    async def measure(self, job: AnswerJob) -> TokenTally:
        """Return what a job's prompt takes, without answering."""
        ...

    async def check(self) -> bool:
        """Whether it is ready to answer."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
