"""Read a prompt with the model under test: an answer or the likelihood of a target, timed.

Shapes: T prompt positions, P target tokens, V vocabulary, S slots, D decoder width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from octavo.engine.base import Prompt, Sampling
from octavo.errors import EvaluationError, PromptTooLongError
from octavo.model import Model
from octavo.text import TextStream
from octavo_evals.parts import Parts
from octavo_evals.task import Reply


class Unserved(Exception):
    """A method cannot serve an item; its row says so, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A context as a method keeps it between questions."""

    state: Any
    """Whatever the method needs to answer: ids, latents, a KV cache."""
    compress_seconds: float = 0.0
    """Spent on making it, reading of the prompt not included."""
    num_latents: int = 0
    context_bytes: int = 0
    """Of the latents."""


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


def read(model: Model, prompt: Prompt, parts: Parts) -> Outcome:
    """Answer an item's prompt, or say how likely its target is.

    Raises `PromptTooLongError` when prompt and answer do not fit the decoder.
    """
    room = len(parts.target) or parts.item.max_new_tokens
    check_fits(model, len(prompt.input_ids), room)
    if parts.item.target is None:
        return _answer(model, prompt, parts)
    return Outcome(
        reply=_likelihood(model, prompt, parts.target), prompt_tokens=len(prompt.input_ids)
    )


def check_fits(model: Model, num_positions: int, room: int) -> None:
    """Raise `PromptTooLongError` when a prompt and `room` for its answer are too long."""
    if num_positions + room > model.engine.max_positions:
        raise PromptTooLongError(
            f"the prompt takes {num_positions:,} positions and the answer up to {room:,}, but "
            f"{model.name} has {model.engine.max_positions:,}"
        )


class Answer:
    """An answer growing token by token, with its times."""

    def __init__(self, model: Model, parts: Parts) -> None:
        """Start the clock."""
        self._text = TextStream(model.prompts.decoder_tokenizer, parts.item.stop)
        self._started = time.perf_counter()
        self._first: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether a stop string has appeared."""
        return self._text.is_finished

    def push(self, token: int | None) -> None:
        """Take the next token; None when the answer has ended."""
        if self._first is None:
            self._first = time.perf_counter()
        if token is not None:
            self._text.push(token)

    def outcome(self, prompt_tokens: int, cache_bytes: int | None = None) -> Outcome:
        """Stop the clock and return what came."""
        stopped = time.perf_counter()
        self._text.finish()
        first = self._first or stopped
        return Outcome(
            reply=Reply(text=self._text.text),
            prompt_tokens=prompt_tokens,
            new_tokens=self._text.num_tokens,
            ttft_seconds=first - self._started,
            decode_seconds=stopped - first,
            cache_bytes=cache_bytes,
        )


def _answer(model: Model, prompt: Prompt, parts: Parts) -> Outcome:
    """Generate greedily; the engine keeps the prefix, so a later question reads only itself."""
    sampling = Sampling(
        max_new_tokens=parts.item.max_new_tokens, stop_ids=tuple(model.engine.stop_ids)
    )
    answer = Answer(model, parts)
    batch = model.engine.start([prompt], sampling)
    try:
        for tokens in batch:
            answer.push(tokens[0])
            if answer.is_finished:
                break
        outcome = answer.outcome(len(prompt.input_ids))
    finally:
        batch.close()  # gives the prefix back, whose bytes are then counted
    return replace(outcome, cache_bytes=model.engine.kept_bytes)


def _likelihood(model: Model, prompt: Prompt, target: Sequence[int]) -> Reply:
    """Return loss and greedy hit of every target token, the decoder reading all at once."""
    if not target:
        raise EvaluationError("an item's target is empty; give it at least one token")
    scores = model.engine.score(prompt, target)
    return Reply(
        token_nats=tuple(-logprob for logprob in scores.logprobs), token_hits=scores.is_greedy
    )


def reply_to_target(logits_PV: torch.Tensor, target: Sequence[int]) -> Reply:
    """Return loss and greedy hit of every target token, given the logits that precede it."""
    target_P = torch.tensor(list(target), device=logits_PV.device)
    nats_P = torch.nn.functional.cross_entropy(logits_PV, target_P, reduction="none")
    hits_P = logits_PV.argmax(-1) == target_P
    return Reply(token_nats=tuple(nats_P.tolist()), token_hits=tuple(hits_P.tolist()))
