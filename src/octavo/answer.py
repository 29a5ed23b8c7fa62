"""Answers: what they hold, and one batch of questions on its way through an engine."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch

from octavo.config import resolve_ratio
from octavo.context import CompressedContext
from octavo.engine.base import Prompt, Sampling
from octavo.errors import ConfigError, ContextError, PromptError, PromptTooLongError
from octavo.prompt import EncodedPrompt, Message
from octavo.text import TextStream

if TYPE_CHECKING:
    from octavo.model import Model

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What was read and written, counted exactly."""

    source_tokens: int
    """Source tokens behind the latents of the prompt."""
    latents: int
    ratio: int | None
    """Source tokens per latent; None for a prompt without latents."""
    prompt_tokens: int
    """Positions the decoder read: text tokens, tags and latents."""
    completion_tokens: int


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


class Run:
    """One batch of questions on its way through an engine."""

    def __init__(
        self,
        model: "Model",
        questions: Sequence[str | None],
        context: ContextLike,
        *,
        messages: Sequence[Message] | None = None,
        raw: bool = False,
        ratio: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        trusted: bool = False,
    ) -> None:
        self._started = time.perf_counter()
        self._model, self._trusted, self._ratio = model, trusted, ratio
        contexts = _listed(context)
        given = [c for c in contexts if isinstance(c, CompressedContext)]
        if raw:
            contexts = [self._raw_text(c) for c in contexts]
        else:
            for one in given:
                one.check_made_by(model.fingerprint, model.name)
            contexts = [model.compress(c, ratio) if isinstance(c, str) else c for c in contexts]
        is_fresh = not raw and len(given) < len(contexts)
        self.compress_seconds = time.perf_counter() - self._started if is_fresh else 0.0
        self._encoded = [self._encode(q, contexts, messages, raw) for q in questions]
        self._sampling = self._checked_sampling(
            sampling, max_new_tokens, temperature=temperature, seed=seed
        )
        prompts = [self._prompt(encoded) for encoded in self._encoded]
        self._steps = iter(model.engine.generate(prompts, self._sampling))
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        tokenizer = model.prompts.decoder_tokenizer
        self._texts = [TextStream(tokenizer, stops) for _ in prompts]
        self._first_token: float | None = None
        self._finished = self._started

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the new text of every row, step by step."""
        for tokens in self._steps:
            if self._first_token is None:
                self._first_token = time.perf_counter()
            pieces = []
            for text, token in zip(self._texts, tokens, strict=True):
                pieces.append(text.finish() if token is None else text.push(token))
            yield pieces
            if all(text.is_finished for text in self._texts):
                break
        yield [text.finish() for text in self._texts]
        self._finished = time.perf_counter()

    def close(self) -> None:
        """End the engine's generator, so that it gives back what it holds."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()

    def completions(self) -> list[Completion]:
        """Return the answers with their accounts."""
        first = self._first_token or self._finished
        timings = Timings(
            compress_seconds=self.compress_seconds,
            ttft_seconds=first - self._started,
            total_seconds=self._finished - self._started,
        )
        completions = []
        for encoded, text in zip(self._encoded, self._texts, strict=True):
            is_cut = text.num_tokens >= self._sampling.max_new_tokens and not text.was_stopped
            completions.append(
                Completion(
                    text=text.text,
                    usage=self._usage(encoded, text.num_tokens),
                    timings=timings,
                    finish_reason="length" if is_cut else "stop",
                )
            )
        return completions

    def _usage(self, encoded: EncodedPrompt, num_new: int) -> Usage:
        contexts = [span.context for span in encoded.spans]
        tokens = sum(
            span.context.source_tokens if span.context is not None else len(span.source_ids)
            for span in encoded.spans
        )
        ratios = {c.ratio for c in contexts if c is not None}
        default = resolve_ratio(self._model.config, self._model.extension, self._ratio)
        return Usage(
            source_tokens=tokens,
            latents=sum(span.num_latents for span in encoded.spans),
            ratio=None if not encoded.spans else ratios.pop() if len(ratios) == 1 else default,
            prompt_tokens=len(encoded.input_ids),
            completion_tokens=num_new,
        )

    def _encode(
        self,
        question: str | None,
        contexts: Sequence[Any],
        messages: Sequence[Message] | None,
        raw: bool,
    ) -> EncodedPrompt:
        """Build the prompt: contexts first, so that questions share a prefix; then the question."""
        turns: list[dict[str, Any]] = [dict(message) for message in messages or ()]
        if question is not None:
            turns.append({"role": "user", "content": question})
        if not turns:
            raise PromptError("nothing was asked; give a question or messages")
        if contexts:
            first = next((turn for turn in turns if turn.get("role") == "user"), None)
            if first is None:
                raise PromptError("messages hold no user turn for the context to stand in; add one")
            said = first.get("content", "")
            said = [{"type": "text", "text": said}] if isinstance(said, str) else list(said)
            if raw:
                shown = [{"type": "text", "text": f"{text}\n\n"} for text in contexts]
            else:
                shown = [{"type": "memory", "context": one} for one in contexts]
                shown.append({"type": "text", "text": "\n\n"})
            first["content"] = [*shown, *said]
        ratio = resolve_ratio(self._model.config, self._model.extension, self._ratio)
        if raw:
            turns = [_without_memory(turn) for turn in turns]
        return self._model.prompts.encode_messages(turns, ratio=ratio, trusted=self._trusted)

    def _raw_text(self, context: CompressedContext | str) -> str:
        """Return the text itself, refusing early one that is hopelessly long."""
        text = _text_of(context)
        limit = self._model.engine.max_positions
        head = text[: CHARACTERS_A_TOKEN * limit]
        if len(head) < len(text) and len(self._model.prompts.text_ids(head)) > limit:
            raise PromptTooLongError(
                f"the raw text has more than {limit:,} tokens, which is all the positions that "
                f"{self._model.name} has; shorten the text, or compress it"
            )
        return text

    def _prompt(self, encoded: EncodedPrompt) -> Prompt:
        """Give every span its latents, encoding those that are still text."""
        ratio = resolve_ratio(self._model.config, self._model.extension, self._ratio)
        waiting = [span.source_ids for span in encoded.spans if span.context is None]
        fresh = iter(self._model.engine.encode(waiting, ratio) if waiting else ())
        latents = []
        for span in encoded.spans:
            if span.context is not None:
                span.context.check_made_by(self._model.fingerprint, self._model.name)
            latents.append(span.context.latents if span.context is not None else next(fresh))
        return Prompt(
            input_ids=encoded.input_ids,
            latents=torch.cat(latents) if latents else None,
            prefix_length=encoded.prefix_length,
        )

    def _checked_sampling(
        self, sampling: Sampling | None, max_new_tokens: int | None, **settings: Any
    ) -> Sampling:
        """Fill in defaults, and refuse what cannot be: wrong values, too long an answer."""
        engine = self._model.engine
        longest = max(len(encoded.input_ids) for encoded in self._encoded)
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
        if sampling.max_new_tokens > room:
            raise PromptTooLongError(
                f"the prompt takes {longest:,} positions and the answer up to "
                f"{sampling.max_new_tokens:,}, but {engine.name} has {engine.max_positions:,}; "
                "shorten the text, compress at a higher ratio, or ask for fewer new tokens"
            )
        return replace(sampling, stop_ids=sampling.stop_ids or engine.stop_ids)


def _listed(context: ContextLike) -> list[Any]:
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


def _text_of(context: CompressedContext | str) -> str:
    if isinstance(context, str):
        return context
    if context.text is None:
        raise ContextError(
            "raw=True needs the text, which this context did not keep; pass the text"
        )
    return context.text


def _without_memory(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Turn memory parts into text parts, for the uncompressed baseline."""
    content = turn.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return dict(turn)
    parts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") == "memory":
            text = _text_of(part["context"]) if "context" in part else part.get("text", "")
            part = {"type": "text", "text": text}
        parts.append(part)
    return {**turn, "content": parts}
