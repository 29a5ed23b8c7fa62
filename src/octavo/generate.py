"""From questions about contexts to answers: prompts are made, latents gathered, tokens read.

questions, contexts  --turns-->  messages  --encode-->  prompts  --gather-->  latents in slots
prompts  --engine-->  tokens  --text-->  answers with their accounts
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch

from octavo.completion import Completion, Fallback, Timings, Usage
from octavo.config import resolve_ratio
from octavo.context import CompressedContext
from octavo.engine.base import Engine, Prompt, Sampling
from octavo.errors import ConfigError, ContextError, PromptError, PromptTooLongError
from octavo.prompt import EncodedPrompt, Message, PromptEncoder
from octavo.text import TextStream

Compress = Callable[[str, int | None], CompressedContext]
"""Turns a text into a context at a ratio of its own, or else at the one that was asked for."""

ContextLike = CompressedContext | str | Sequence[CompressedContext | str] | None
DEFAULT_NEW_TOKENS = 256
CHARACTERS_A_TOKEN = 16
"""Far above any tokenizer's average on text."""


class Options(TypedDict, total=False):
    """The keywords of `Model.generate` and `Model.stream`."""

    messages: Sequence[Message] | None
    """A conversation to continue; contents may hold memory parts (`prompt.py`)."""
    raw: bool
    """Put the uncompressed text in the prompt instead of latents: the baseline."""
    ratio: int | None
    """For contexts given as text; by default the model's own."""
    max_new_tokens: int | None
    """Default: 256, or what room there is."""
    temperature: float
    """0, the default, takes the most likely token."""
    seed: int | None
    """Makes sampling repeatable."""
    stop: str | Sequence[str] | None
    """Strings that end the answer and are left out of it."""
    sampling: Sampling | None
    """All sampling settings at once, in place of the four above."""
    trusted: bool
    """Tags and control tokens in message texts are live: for template authors only."""
    template: Mapping[str, Any] | None
    """What else the chat template reads: `tools`, `documents`, `enable_thinking`, …"""
    on_tokens: Callable[[int, int], None] | None
    """Called as `on_tokens(done, total)` while a context given as text is compressed."""
    is_turn: bool
    """A turn of a conversation (`engine.Prompt.is_turn`): only what is new in it is read."""
    shows_control: bool
    """Control tokens that the model writes, as those around tool calls, appear in the text."""


class FallbackOptions(Options, total=False):
    """Further keywords of `Model.generate`: a stream cannot take back what it showed."""

    fallback: Fallback | None
    """What to read instead where an answer is not trusted: passages found, or the raw text."""
    cite: bool
    """Find the passages that the answer rests on (`Completion.citations`)."""
    threshold: float
    """The confidence below which it is not; where the model was not measured, none is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One prompt in both its forms, ready for an engine."""

    encoded: EncodedPrompt
    prompt: Prompt


def turns_of(
    question: str | None,
    contexts: Sequence[CompressedContext | str],
    messages: Sequence[Message] | None,
    *,
    raw: bool,
) -> list[dict[str, Any]]:
    """Return the conversation with the contexts in its first user turn, before what is said there.

    They come first so that questions about the same contexts share a prefix.
    """
    turns: list[dict[str, Any]] = [dict(message) for message in messages or ()]
    if question is not None:
        turns.append({"role": "user", "content": question})
    if not turns:
        raise PromptError("nothing was asked; give a question or messages")
    if raw:
        turns = [_without_memory(turn) for turn in turns]
    if contexts:
        first = next((turn for turn in turns if turn.get("role") == "user"), None)
        if first is None:
            raise PromptError("messages hold no user turn for the context to stand in; add one")
        said = first.get("content") or ""
        said = [{"type": "text", "text": said}] if isinstance(said, str) else list(said)
        shown: list[dict[str, Any]] = []
        for context in contexts:
            if raw:
                shown.append({"type": "text", "text": text_of(context), "shared": True})
                shown.append({"type": "text", "text": "\n\n"})
            else:
                shown.append({"type": "memory", "context": context})
        if not raw:
            shown.append({"type": "text", "text": "\n\n"})
        first["content"] = [*shown, *said]
    return turns


def compress_memory(turns: Sequence[Mapping[str, Any]], compress: Compress) -> list[dict[str, Any]]:
    """Return turns whose memory parts all hold contexts: texts are compressed, at their `ratio`."""
    done = []
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            parts = [dict(p) if isinstance(p, Mapping) else p for p in content]
            for part in parts:
                if isinstance(part, dict) and part.get("type") == "memory":
                    given, own = part.get("context", part.get("text")), part.pop("ratio", None)
                    if isinstance(given, str):
                        part.pop("text", None)
                        part["context"] = compress(given, own)
            turn = {**turn, "content": parts}
        done.append(dict(turn))
    return done


def gather(
    engine: Engine, encoded: Sequence[EncodedPrompt], ratio: int, *, is_turn: bool = False
) -> list[Question]:
    """Give every span of every prompt its latents.

    Spans that are still source tokens, out of a trusted prompt's own tags, are encoded at once.
    """
    waiting = [span.source_ids for one in encoded for span in one.spans if span.context is None]
    fresh = iter(engine.encode(waiting, ratio) if waiting else ())
    found = []
    for one in encoded:
        latents = [s.context.latents if s.context is not None else next(fresh) for s in one.spans]
        prompt = Prompt(
            input_ids=one.input_ids,
            latents=torch.cat(latents) if latents else None,
            prefix_length=one.prefix_length,
            is_turn=is_turn,
        )
        found.append(Question(encoded=one, prompt=prompt))
    return found


class Answers:
    """The answers to a batch of questions, growing step by step."""

    def __init__(
        self,
        engine: Engine,
        prompts: PromptEncoder,
        questions: Sequence[Question],
        sampling: Sampling,
        *,
        stop: str | Sequence[str] | None = None,
        ratio: int | None = None,
        started: float | None = None,
        compress_seconds: float = 0.0,
        shows_control: bool = False,
    ) -> None:
        """Begin. `started` and `compress_seconds` say what was spent before."""
        self._started = time.perf_counter() if started is None else started
        self._compress_seconds = compress_seconds
        self._questions, self._sampling, self._ratio = questions, sampling, ratio
        self._batch = engine.start([one.prompt for one in questions], sampling)
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        tokenizer = prompts.decoder_tokenizer
        self._texts = [TextStream(tokenizer, stops, shows_control=shows_control) for _ in questions]
        self._logprobs: list[list[float]] = [[] for _ in questions]
        self._first_token: float | None = None
        self._finished = self._started

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the new text of every row, step by step."""
        for tokens in self._batch:
            if self._first_token is None:
                self._first_token = time.perf_counter()
            for logprobs, logprob in zip(self._logprobs, self._batch.logprobs, strict=True):
                logprobs += [] if logprob is None else [logprob]
            pieces = []
            for row, (text, token) in enumerate(zip(self._texts, tokens, strict=True)):
                pieces.append(text.finish() if token is None else text.push(token))
                if token is not None and text.is_finished:  # a stop string: no step more for it
                    self._batch.drop(row)
            yield pieces
            if all(text.is_finished for text in self._texts):
                break
        yield [text.finish() for text in self._texts]
        self._finished = time.perf_counter()

    def close(self) -> None:
        """Let the engine have back what it lent."""
        self._batch.close()

    def completions(self) -> list[Completion]:
        """Return the answers with their accounts."""
        first = self._first_token or self._finished
        timings = Timings(
            compress_seconds=self._compress_seconds,
            ttft_seconds=first - self._started,
            total_seconds=self._finished - self._started,
        )
        completions = []
        cached = self._batch.num_reused if len(self._questions) == 1 else 0
        rows = zip(self._questions, self._texts, self._logprobs, strict=True)
        for question, text, logprobs in rows:
            is_cut = text.num_tokens >= self._sampling.max_new_tokens and not text.was_stopped
            completions.append(
                Completion(
                    text=text.text,
                    usage=_usage(question.encoded, text.num_tokens, self._ratio, cached),
                    timings=timings,
                    finish_reason="length" if is_cut else "stop",
                    logprob=sum(logprobs) / len(logprobs) if logprobs else None,
                )
            )
        return completions


def check_sampling(
    engine: Engine,
    encoded: Sequence[EncodedPrompt],
    sampling: Sampling | None,
    max_new_tokens: int | None,
    **settings: Any,
) -> Sampling:
    """Fill in defaults, and refuse what cannot be: wrong values, too long an answer."""
    longest = max(len(one.input_ids) for one in encoded)
    room = engine.max_positions - longest
    if sampling is None:
        wanted = DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
        sampling = Sampling(max_new_tokens=wanted, **settings)
        if max_new_tokens is None and room > 0:
            sampling = replace(sampling, max_new_tokens=min(wanted, room))
    if sampling.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {sampling.max_new_tokens}, expected at least 1")
    if not 0.0 <= sampling.temperature < float("inf"):
        raise ConfigError(f"temperature is {sampling.temperature}, expected 0 or more")
    seeds = sampling.seed if isinstance(sampling.seed, tuple) else (sampling.seed,)
    for one in seeds:
        if one is not None and not -(1 << 63) <= one < 1 << 64:  # what torch takes
            raise ConfigError(f"seed is {one}, expected a number of at most 64 bits")
    if isinstance(sampling.seed, tuple) and len(sampling.seed) != len(encoded):
        raise ConfigError(
            f"{len(sampling.seed)} seeds were given for {len(encoded)} questions; give one for "
            "each, or one for all"
        )
    if sampling.max_new_tokens > room:
        raise PromptTooLongError(
            f"the prompt takes {longest:,} positions and the answer up to "
            f"{sampling.max_new_tokens:,}, but {engine.name} has {engine.max_positions:,}; "
            "shorten the text, compress at a higher ratio, or ask for fewer new tokens"
        )
    return replace(sampling, stop_ids=sampling.stop_ids or engine.stop_ids, logprobs=True)


def list_contexts(context: ContextLike) -> list[CompressedContext | str]:
    """Return contexts as a list, whichever way they were given."""
    if context is None:
        return []
    if isinstance(context, CompressedContext | str):
        return [context]
    for one in context:
        if not isinstance(one, CompressedContext | str):
            raise ContextError(
                f"a context is {type(one).__name__}, expected str or CompressedContext"
            )
    return list(context)


def text_of(context: CompressedContext | str) -> str:
    """Return a context's text."""
    if isinstance(context, str):
        return context
    if context.text is None:
        raise ContextError(
            "raw=True needs the text, which this context did not keep; pass the text"
        )
    return context.text


def check_raw_length(engine: Engine, prompts: PromptEncoder, text: str) -> None:
    """Refuse a raw text that is hopelessly long, before all of it is tokenised."""
    limit = engine.max_positions
    head = text[: CHARACTERS_A_TOKEN * limit]
    if len(head) < len(text) and len(prompts.text_ids(head)) > limit:
        raise PromptTooLongError(
            f"the raw text has more than {limit:,} tokens, which is all the positions that "
            f"{engine.name} has; shorten the text, or compress it"
        )


def served_ratio(engine: Engine, ratio: int | None) -> int:
    """Return the ratio asked for, or the model's own; raises `RatioError` for one not served."""
    return resolve_ratio(engine.config, engine.extension, ratio)


def _usage(encoded: EncodedPrompt, num_new: int, ratio: int | None, cached: int) -> Usage:
    contexts = [span.context for span in encoded.spans]
    tokens = sum(
        span.context.source_tokens if span.context is not None else len(span.source_ids)
        for span in encoded.spans
    )
    ratios = {context.ratio if context is not None else ratio for context in contexts}
    return Usage(
        source_tokens=tokens,
        latents=sum(span.num_latents for span in encoded.spans),
        ratio=None if not encoded.spans else ratios.pop() if len(ratios) == 1 else ratio,
        prompt_tokens=len(encoded.input_ids),
        completion_tokens=num_new,
        cached_tokens=cached,
    )


def _without_memory(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Turn memory parts into text parts, for the uncompressed baseline."""
    content = turn.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return dict(turn)
    parts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") == "memory":
            text = text_of(part["context"]) if "context" in part else part.get("text", "")
            part = {"type": "text", "text": text, "shared": True}
        parts.append(part)
    return {**turn, "content": parts}
