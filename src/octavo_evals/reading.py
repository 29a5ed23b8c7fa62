"""Answer a question about a held context: greedily, or by the likelihood of a target; timed."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from octavo.engine.base import Prompt, Sampling, TargetScores
from octavo.errors import PromptTooLongError
from octavo.model import Model
from octavo.text import TextStream
from octavo_evals.parts import Parts
from octavo_evals.task import Reply


class Unserved(Exception):
    """A method cannot serve an item; its row says so, and why."""


class Answerer(Protocol):
    """As much of an engine as answers questions."""

    @property
    def kept_bytes(self) -> int:
        """The bytes held between questions."""
        ...

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Any:
        """Return the steps of answers, which can be closed."""
        ...

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        """Return the likelihood of each token of `target` behind the prompt."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A context as a method keeps it between questions."""

    answerer: Answerer
    prefix: Sequence[int]
    """Prompt ids before the question."""
    latents: Tensor | None = None
    """`KD`, for the slots of the prefix."""
    shared: int | None = None
    """Leading positions that another question may share; by default the whole prefix."""
    compress_seconds: float = 0.0
    """Spent on making it, reading of the prompt not included."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What a method counts besides: rounds, positions read on the way, recall of passages."""

    @property
    def num_latents(self) -> int:
        """How many latents stand for the context."""
        return 0 if self.latents is None else len(self.latents)

    @property
    def context_bytes(self) -> int:
        """The bytes of the latents."""
        return 0 if self.latents is None else self.latents.numel() * self.latents.element_size()

    def prompt(self, question: Sequence[int]) -> Prompt:
        """Return the prompt of a question."""
        return Prompt(
            input_ids=[*self.prefix, *question],
            latents=self.latents,
            prefix_length=len(self.prefix) if self.shared is None else self.shared,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one question."""

    reply: Reply
    prompt_tokens: int
    """Positions that the decoder read."""
    new_tokens: int = 0
    ttft_seconds: float | None = None
    """From the question to the first token, making the held context not included."""
    decode_seconds: float | None = None
    """From the first token to the last."""
    cache_bytes: int | None = None
    """The KV cache of the context, physically held and ready for the next question."""
    logprob: float | None = None
    """The mean natural logarithm of the answer's tokens, where the engine says it."""

    @property
    def counted(self) -> dict[str, Any]:
        """Everything but the reply, by its name."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "reply"}


def read(model: Model, held: Held, parts: Parts) -> Outcome:
    """Answer an item about a held context, or say how likely its target is.

    Raises `PromptTooLongError` when prompt and answer do not fit the decoder.
    """
    prompt = held.prompt(parts.tail)
    num_positions = len(prompt.input_ids)
    check_fits(model, num_positions, len(parts.target) or parts.item.max_new_tokens)
    if parts.item.target is None:
        return _answer(model, held, prompt, parts)
    scores = held.answerer.score(prompt, parts.target)
    nats = tuple(-logprob for logprob in scores.logprobs)
    reply = Reply(token_nats=nats, token_hits=scores.is_greedy)
    return Outcome(reply=reply, prompt_tokens=num_positions, cache_bytes=held.answerer.kept_bytes)


def recall(references: Sequence[str], text: str) -> float:
    """Return the share of an item's references that stand in a text, whatever their case."""
    folded = text.casefold()
    return sum(one.casefold() in folded for one in references) / max(1, len(references))


def check_fits(model: Model, num_positions: int, room: int) -> None:
    """Raise `PromptTooLongError` when a prompt and `room` for its answer are too long."""
    if num_positions + room > model.engine.max_positions:
        raise PromptTooLongError(
            f"the prompt takes {num_positions:,} positions and the answer up to {room:,}, but "
            f"{model.name} has {model.engine.max_positions:,}"
        )


def _answer(model: Model, held: Held, prompt: Prompt, parts: Parts) -> Outcome:
    """Generate greedily; the prefix is kept, so a later question reads only itself."""
    sampling = Sampling(
        max_new_tokens=parts.item.max_new_tokens,
        stop_ids=tuple(model.engine.stop_ids),
        logprobs=True,
    )
    logprobs: list[float] = []
    text = TextStream(model.prompts.decoder_tokenizer, parts.item.stop)
    started = time.perf_counter()
    first: float | None = None
    with contextlib.closing(held.answerer.start([prompt], sampling)) as steps:
        for (token,) in steps:
            first = first or time.perf_counter()
            logprobs += [one for one in getattr(steps, "logprobs", ()) if one is not None]
            if token is not None:
                text.push(token)
            if text.is_finished:
                break
        stopped = time.perf_counter()
    # Closed, the steps have given the prefix back, whose bytes are counted now.
    text.finish()
    return Outcome(
        reply=Reply(text=text.text),
        prompt_tokens=len(prompt.input_ids),
        new_tokens=text.num_tokens,
        ttft_seconds=(first or stopped) - started,
        decode_seconds=stopped - (first or stopped),
        cache_bytes=held.answerer.kept_bytes,
        logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )
