"""`Model`: strings in, strings out. Compress a text once, ask about it many times.

    model = octavo.load()
    book = model.compress(text)
    print(model.generate("Who tells the story?", context=book).text)
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from octavo.config import Extension, ModelConfig, resolve_ratio
from octavo.context import CompressedContext, sha256_of
from octavo.engine.base import Engine, Prompt, Sampling
from octavo.errors import ConfigError, ContextError, InputError, PromptError, PromptTooLongError
from octavo.prompt import EncodedPrompt, Message, PromptEncoder, Source
from octavo.text import TextStream

ContextLike = CompressedContext | str | Sequence[CompressedContext | str] | None
DEFAULT_NEW_TOKENS = 256


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


class Model:
    """A compressor and its decoder behind one engine."""

    def __init__(self, engine: Engine, prompts: PromptEncoder, checkpoint: Any = None) -> None:
        """Join an engine and the prompts of the same model; `octavo.load` does it for you."""
        self.engine, self.prompts, self._checkpoint = engine, prompts, checkpoint

    @property
    def config(self) -> ModelConfig:
        """The published settings."""
        return self.engine.config

    @property
    def extension(self) -> Extension:
        """Our own settings."""
        return self.engine.extension

    @property
    def name(self) -> str:
        """A short name."""
        return self.engine.name

    @property
    def fingerprint(self) -> str:
        """Which weights make and read the latents."""
        return self.engine.fingerprint

    @property
    def ratios(self) -> list[int]:
        """Every ratio this model serves."""
        return sorted({self.config.compression_ratio, *self.extension.ratios})

    @property
    def lclm(self) -> Any:
        """The torch module, where the engine runs in this process."""
        if self._checkpoint is None:
            raise ConfigError(f"the engine of {self.name} holds no torch module; use engine='local'")
        return self._checkpoint.lclm

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint in the published layout."""
        from octavo.checkpoint import write

        _ = self.lclm
        write(self._checkpoint, Path(folder))

    # -- contexts --------------------------------------------------------------------------------

    def compress(
        self,
        text: str,
        ratio: int | None = None,
        *,
        keep_text: bool = True,
        max_latents: int | None = None,
        on_tokens: Callable[[int, int], None] | None = None,
    ) -> CompressedContext:
        """Fold a text into latents, one per `ratio` tokens.

        Raises `InputError` for empty text, `RatioError` for a ratio the model was not trained for,
        and `ContextError` when the latents would not fit the decoder (or `max_latents`), before
        anything is encoded. `on_tokens(done, total)` is called as windows are read.
        """
        started = time.perf_counter()
        ratio = resolve_ratio(self.config, self.extension, ratio)
        source = self._source(text, ratio, max_latents)
        total, done = len(source.ids), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if on_tokens is not None:
                on_tokens(done, total)

        (latents,) = self.engine.encode([source.ids], ratio, advance)
        seconds = time.perf_counter() - started
        return self._context(text, source, latents, ratio, keep_text, seconds)

    def load_context(self, path: str | Path) -> CompressedContext:
        """Read a saved context, refusing one that another compressor made; it can be appended to."""
        context = CompressedContext.load(path)
        context.check_made_by(self.fingerprint, self.name)
        return replace(context, compressor=self)

    def extend(self, context: CompressedContext, text: str) -> CompressedContext:
        """Grow a context as if its whole text had been compressed at once; use `append`."""
        started = time.perf_counter()
        context.check_made_by(self.fingerprint, self.name)
        assert context.text is not None
        whole = context.text + text
        source = self._source(whole, context.ratio, None)
        kept = self._num_kept_tokens(self.prompts.source(context.text).ids, source.ids)
        (fresh,) = self.engine.encode([source.ids[kept:]], context.ratio)
        latents = torch.cat([context.latents[: kept // context.ratio], fresh])
        seconds = context.compress_seconds + time.perf_counter() - started
        return self._context(whole, source, latents, context.ratio, True, seconds)

    def _num_kept_tokens(self, old: Sequence[int], new: Sequence[int]) -> int:
        """Return how many leading tokens lie in windows that an appended text cannot change."""
        if self.config.adapter_type != "mlp" or self.config.boundary_overlap:
            return 0  # every latent may look at every other, or past its window
        same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        if same is None:
            same = min(len(old), len(new))
        return same // self.config.encoder_window_size * self.config.encoder_window_size

    def _source(self, text: str, ratio: int, max_latents: int | None) -> Source:
        """Tokenise a text, refusing it early when it is empty or far too long."""
        if not isinstance(text, str):
            raise InputError(f"the text is {type(text).__name__}, expected str")
        limit = self.engine.max_positions if max_latents is None else max_latents
        # 16 characters a token is far above any tokenizer's average: a text whose head alone is
        # too long need not be tokenised whole, which would take minutes and gigabytes.
        head = text[: 16 * limit * ratio]
        source = self.prompts.source(head)
        num_latents = self.config.num_latents(len(source.ids), ratio)
        if num_latents <= limit and len(head) < len(text):
            source = self.prompts.source(text)
            num_latents = self.config.num_latents(len(source.ids), ratio)
        if not source.ids:
            raise InputError("the text is empty; there is nothing to compress")
        if num_latents > limit:
            more = "more than " if len(head) < len(text) else ""
            raise ContextError(
                f"the text has {more}{len(source.ids):,} tokens, which at ratio {ratio} makes "
                f"{more}{num_latents:,} latents, but {limit:,} fit; split the text, or choose a "
                f"higher ratio ({', '.join(map(str, self.ratios))})"
            )
        return source

    def _context(
        self,
        text: str,
        source: Source,
        latents: torch.Tensor,
        ratio: int,
        keep_text: bool,
        seconds: float,
    ) -> CompressedContext:
        num_tokens = len(source.ids)
        starts = list(range(0, num_tokens, ratio))
        # Blocks cover the text without gaps: each reaches to where the next begins.
        bounds = [0, *(source.offsets[start][0] for start in starts[1:]), len(text)]
        return CompressedContext(
            latents=latents,
            ratio=ratio,
            block_tokens=torch.tensor([min(ratio, num_tokens - start) for start in starts]),
            offsets=torch.tensor(list(zip(bounds, bounds[1:], strict=False))),
            fingerprint=self.fingerprint,
            compressor_name=self.name,
            text_sha256=sha256_of(text),
            text=text if keep_text else None,
            compress_seconds=seconds,
            compressor=self,
        )

    # -- answers ---------------------------------------------------------------------------------

    @overload
    def generate(
        self, question: str | None = None, context: ContextLike = None, **options: Any
    ) -> Completion: ...

    @overload
    def generate(
        self, question: Sequence[str], context: ContextLike = None, **options: Any
    ) -> list[Completion]: ...

    def generate(
        self,
        question: str | Sequence[str] | None = None,
        context: ContextLike = None,
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
    ) -> Completion | list[Completion]:
        """Answer a question about contexts; several questions are answered as one batch.

        A context given as a string is compressed on the way, at `ratio`. `raw` puts the
        uncompressed text in the prompt instead: the baseline. `messages` continue a conversation;
        their content may hold memory parts (`prompt.py`). `stop` strings end the answer and are
        left out of it. `sampling` gives all sampling settings at once. Raises
        `PromptTooLongError` when prompt and answer do not fit the decoder: nothing is cut off.
        """
        options: dict[str, Any] = {
            "messages": messages, "raw": raw, "ratio": ratio, "max_new_tokens": max_new_tokens,
            "temperature": temperature, "seed": seed, "stop": stop, "sampling": sampling,
            "trusted": trusted,
        }  # fmt: skip
        if question is None or isinstance(question, str):
            return self._run([question], context, **options)[0]
        if not question:
            return []
        return self._run(list(question), context, **options)

    def stream(
        self, question: str | None = None, context: ContextLike = None, **options: Any
    ) -> Stream:
        """Yield the answer in pieces as it is made; takes the options of `generate`.

        The pieces joined are exactly the text that `generate` returns, and `.completion` holds the
        account once all are read.
        """
        return Stream(self._pieces(question, context, **options))

    def _pieces(self, question: str | None, context: ContextLike, **options: Any) -> Any:
        run = _Run(self, [question], context, **options)
        try:
            for pieces in run:
                if pieces[0]:
                    yield pieces[0]
        finally:
            run.close()
        yield run.completions()[0]

    def _run(
        self, questions: Sequence[str | None], context: ContextLike, **options: Any
    ) -> list[Completion]:
        run = _Run(self, questions, context, **options)
        try:
            for _ in run:
                pass
        finally:
            run.close()
        return run.completions()

    def close(self) -> None:
        """Let go of the engine's memory."""
        self.engine.close()


class _Run:
    """One batch of questions on its way through an engine."""

    def __init__(
        self,
        model: Model,
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
            contexts = [_raw_text(c) for c in contexts]
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
            raise ContextError(f"a context is {type(one).__name__}, expected str or CompressedContext")
    return list(context)


def _raw_text(context: CompressedContext | str) -> str:
    if isinstance(context, str):
        return context
    if context.text is None:
        raise ContextError("raw=True needs the text, which this context did not keep; pass the text")
    return context.text


def _without_memory(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Turn memory parts into text parts, for the uncompressed baseline."""
    content = turn.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return dict(turn)
    parts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") == "memory":
            text = _raw_text(part["context"]) if "context" in part else part.get("text", "")
            part = {"type": "text", "text": text}
        parts.append(part)
    return {**turn, "content": parts}


def load(
    name_or_path: str | Path | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    engine: Literal["local", "fake"] = "local",
    revision: str | None = None,
    *,
    rotary: Any = None,
    base: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Model:
    """Load a model: a folder, a hub id, or nothing for the one that octavo ships.

    `device` is by default what is there: cuda, mps, cpu; `dtype` bf16 on cuda and fp32 elsewhere.
    The shipped model fetches its base on first use (93 MB), or takes it from `base`. Engine `fake`
    needs no weights. Raises `CheckpointError` for anything missing or inconsistent.
    """
    from octavo.checkpoint import read, resolve

    if engine not in ("local", "fake"):
        raise ConfigError(f"unknown engine {engine!r}, expected local or fake")
    folder = resolve(name_or_path, revision)
    if engine == "fake":
        return _fake(folder, base, progress)
    from octavo.engine.local import LocalEngine

    chosen = _device(device)
    if dtype is None:
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    checkpoint = read(
        folder,
        dtype=dtype,
        rotary=rotary,
        base=Path(base) if base is not None else None,
        progress=progress,
    )
    return Model(LocalEngine(checkpoint, chosen), checkpoint.prompts(), checkpoint)


def _fake(folder: Path, base: str | Path | None, progress: Any) -> Model:
    from octavo.checkpoint import read_tokenizers
    from octavo.engine.fake import FakeEngine

    config, extension = ModelConfig.read(folder), Extension.read(folder)
    decoder, encoder = read_tokenizers(folder, extension, Path(base) if base else None, progress)
    engine = FakeEngine(
        config,
        extension,
        extension.name or folder.name,
        stop_ids=(decoder.eos_token_id,),
        control_ids=frozenset(decoder.added_tokens_decoder),
    )
    return Model(engine, PromptEncoder(decoder, encoder, config))


def assemble(
    encoder: Any, decoder: Any, *, compression_ratio: int = 16, ratios: Sequence[int] = (),
    encoder_layers: int | None = None, residual: Literal["none", "sum"] = "none",
    encoder_tokenizer: Any = None, decoder_tokenizer: Any = None, device: str | None = None,
    dtype: str | torch.dtype = "float32", name: str = "assembled", **settings: Any,
) -> Model:  # fmt: skip
    """Make a new, untrained model out of any two Hugging Face models.

    `encoder` and `decoder` are folders, hub ids or model objects (with their tokenizers);
    `encoder_layers` keeps the encoder's first layers. `settings` are further keys of
    `model_config.json`. The adapter is fresh: train it, or the latents mean nothing.
    """
    from octavo.assembly import assemble_parts
    from octavo.checkpoint import Checkpoint, fingerprint_of_weights, parse_dtype
    from octavo.engine.local import LocalEngine

    lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
        encoder,
        decoder,
        ModelConfig(compression_ratio=compression_ratio, **settings),
        extension=Extension(
            ratios=tuple(ratios), residual=residual, rotary="exact", name=name
        ),
        encoder_layers=encoder_layers,
        encoder_tokenizer=encoder_tokenizer,
        decoder_tokenizer=decoder_tokenizer,
        dtype=parse_dtype(dtype),
    )
    fingerprint = fingerprint_of_weights(lclm)
    checkpoint = Checkpoint(lclm, decoder_tokenizer, encoder_tokenizer, name, fingerprint)
    return Model(LocalEngine(checkpoint, _device(device)), checkpoint.prompts(), checkpoint)


def _device(name: str | None) -> torch.device:
    """Return the named device, or the best one that is there."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not to be had here; try cpu") from error
    return device


