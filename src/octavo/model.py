"""`Model`: strings in, strings out. Compress a text once, ask about it many times.

model = octavo.load()
book = model.compress(text)
print(model.generate("Who tells the story?", context=book).text)
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Unpack, overload

import torch

import octavo.generate as generate
from octavo.ask.citations import cite
from octavo.completion import Completion, Stream
from octavo.confidence import THRESHOLD, Reading, read_measured
from octavo.config import Extension, ModelConfig, resolve_ratio
from octavo.context import CompressedContext
from octavo.engine.base import Engine, Sampling
from octavo.errors import ConfigError, ContextError, InputError
from octavo.fallback import read_anew
from octavo.generate import CHARACTERS_A_TOKEN, Answers, ContextLike, FallbackOptions, Options
from octavo.prompt import Message, PromptEncoder, Source
from octavo.text import sha256_of

REMEMBERED_CONTEXTS = 8
"""Contexts made on the way to an answer that are found again when the same text is asked about."""


class Model:
    """A compressor and its decoder behind one engine."""

    def __init__(self, engine: Engine, prompts: PromptEncoder, checkpoint: Any = None) -> None:
        """Join an engine and the prompts of the same model; `octavo.load` does it for you."""
        self.engine, self.prompts, self._checkpoint = engine, prompts, checkpoint
        self._remembered: OrderedDict[tuple[str, int], CompressedContext] = OrderedDict()
        self._lock = threading.Lock()

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
            raise ConfigError(
                f"the engine of {self.name} holds no torch module; use engine='local'"
            )
        return self._checkpoint.lclm

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint in the published layout."""
        from octavo.weights.layout import write

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
        """Read a saved context; refuse one that another compressor made."""
        context = CompressedContext.load(path)
        context.check_made_by(self.fingerprint, self.name)
        return context

    def extend(self, context: CompressedContext, text: str) -> CompressedContext:
        """Return a context grown by `text`, as if the whole had been compressed at once.

        Only windows that the new text can change are encoded anew. Raises `ContextError` for a
        context without its text, a slice or a join, which have no whole text to go on from.
        """
        started = time.perf_counter()
        context.check_made_by(self.fingerprint, self.name)
        old = context.growable_text()
        if not isinstance(text, str) or not text:
            raise InputError("the text to append is empty; give a string")
        whole = old + text
        source = self._source(whole, context.ratio, None)
        kept = self._num_kept_tokens(self.prompts.source(old).ids, source.ids)
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
        # A text whose head alone is too long need not be tokenised whole, which would take minutes
        # and gigabytes.
        head = text[: CHARACTERS_A_TOKEN * limit * ratio]
        source = self.prompts.source(head)
        num_latents = self.config.num_latents(len(source.ids), ratio)
        if num_latents <= limit and len(head) < len(text):
            source = self.prompts.source(text)
            num_latents = self.config.num_latents(len(source.ids), ratio)
        if not source.ids:
            raise InputError("the text is empty; there is nothing to compress")
        if num_latents > limit:
            more = "more than " if len(head) < len(text) else ""
            words = len(head.split()) / len(source.ids)
            rooms = (
                f"{limit * one:,} tokens (about {int(limit * one * words):,} words) at {one}x"
                for one in self.ratios
            )
            raise ContextError(
                f"the text has {more}{len(source.ids):,} tokens, which at ratio {ratio} makes "
                f"{more}{num_latents:,} latents, but {limit:,} fit: {', '.join(rooms)}; split the "
                "text (octavo compress --split), ask about it in a store (octavo store add, octavo "
                "ask), or choose a ratio at which it fits"
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
            offsets=torch.tensor(list(pairwise(bounds))),
            fingerprint=self.fingerprint,
            compressor_name=self.name,
            text_sha256=sha256_of(text),
            text=text if keep_text else None,
            compress_seconds=seconds,
        )

    # -- answers ---------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        question: str | None = None,
        context: ContextLike = None,
        **options: Unpack[FallbackOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        question: list[str] | tuple[str, ...],
        context: ContextLike = None,
        **options: Unpack[FallbackOptions],
    ) -> list[Completion]: ...

    def generate(
        self,
        question: str | list[str] | tuple[str, ...] | None = None,
        context: ContextLike = None,
        **options: Unpack[FallbackOptions],
    ) -> Completion | list[Completion]:
        """Answer a question about contexts; several questions are answered as one batch.

        A context given as a string is compressed on the way. `Options` (`octavo/generate.py`) lists
        the keywords: `messages`, `raw`, `ratio`, `max_new_tokens`, `temperature`, `seed`, `stop`,
        `sampling`, `trusted`, `template`, `fallback`, `threshold`, `cite`. Raises
        `PromptTooLongError` when prompt and answer do not fit the decoder: nothing is cut off.
        """
        is_one = question is None or isinstance(question, str)
        asked: list[Any] = [question] if is_one else list(question or ())
        if not asked:
            return []
        wanted, least = options.pop("fallback", None), options.pop("threshold", THRESHOLD)
        cites = options.pop("cite", False)
        rest: Options = options
        found = self._run(asked, context, rest, "raw" if rest.get("raw") else "latents")
        if wanted is not None and not rest.get("raw"):

            def answer(question: str, texts: list[str], reading: Reading) -> Completion:
                given: Options = {**rest, "raw": True}
                return self._run([question], texts, given, reading)[0]

            texts = [generate.text_of(one) for one in generate.list_contexts(context)]
            for at, one in enumerate(found):
                if one.confidence is None or one.confidence < least:
                    found[at] = read_anew(one, wanted, self.prompts, texts, asked[at], answer)
        if cites:
            texts = [generate.text_of(one) for one in generate.list_contexts(context)]
            found = [
                replace(one, citations=cite(texts, said or "", one.text))
                for one, said in zip(found, asked, strict=True)
            ]
        return found[0] if is_one else found

    def stream(
        self,
        question: str | None = None,
        context: ContextLike = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Yield the answer in pieces as it is made; takes the options of `generate`.

        The pieces joined are exactly the text that `generate` returns, and `.completion` holds the
        account once all are read.
        """
        return Stream(self._pieces(question, context, options))

    def _pieces(
        self, question: str | None, context: ContextLike, options: Options
    ) -> Iterator[str | Completion]:
        answers = self._start([question], context, **options)
        try:
            for pieces in answers:
                if pieces[0]:
                    yield pieces[0]
        finally:
            answers.close()
        yield self._trusted(answers, "raw" if options.get("raw") else "latents")[0]

    def _run(
        self,
        questions: Sequence[str | None],
        context: ContextLike,
        options: Options,
        reading: Reading,
    ) -> list[Completion]:
        answers = self._start(questions, context, **options)
        try:
            for _ in answers:
                pass
        finally:
            answers.close()
        return self._trusted(answers, reading)

    def _trusted(self, answers: Answers, reading: Reading) -> list[Completion]:
        """Return the answers with their confidence."""
        measured = read_measured(self.fingerprint)
        return [
            replace(one, confidence=measured.confidence(reading, one.logprob))
            for one in answers.completions()
        ]

    def _start(
        self,
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
        template: Mapping[str, Any] | None = None,
        on_tokens: Callable[[int, int], None] | None = None,
        is_turn: bool = False,
        shows_control: bool = False,
    ) -> Answers:
        """Make the prompts of some questions, compressing what is text yet, and begin to answer."""
        started, compress_seconds = time.perf_counter(), 0.0
        engine, ratio = self.engine, generate.served_ratio(self.engine, ratio)

        def compress(text: str, own: int | None = None) -> CompressedContext:
            nonlocal compress_seconds
            begun, chosen = time.perf_counter(), ratio if own is None else own
            made = self._remembered_or_compressed(text, chosen, on_tokens)
            compress_seconds += time.perf_counter() - begun
            return made

        contexts = generate.list_contexts(context)
        if raw:
            for one in contexts:
                generate.check_raw_length(engine, self.prompts, generate.text_of(one))
        else:
            contexts = [compress(one) if isinstance(one, str) else one for one in contexts]
            messages = generate.compress_memory(messages or (), compress)
        encoded = []
        for question in questions:
            turns = generate.turns_of(question, contexts, messages, raw=raw)
            encoded.append(
                self.prompts.encode_messages(turns, ratio=ratio, trusted=trusted, template=template)
            )
        for made in {id(s.context): s.context for e in encoded for s in e.spans}.values():
            if made is not None:
                made.check_made_by(self.fingerprint, self.name)
        checked = generate.check_sampling(
            engine, encoded, sampling, max_new_tokens, temperature=temperature, seed=seed
        )
        return Answers(
            engine,
            self.prompts,
            generate.gather(engine, encoded, ratio, is_turn=is_turn),
            checked,
            stop=stop,
            ratio=ratio,
            started=started,
            compress_seconds=compress_seconds,
            shows_control=shows_control,
        )

    def _remembered_or_compressed(
        self, text: str, ratio: int, on_tokens: Callable[[int, int], None] | None
    ) -> CompressedContext:
        """Return the context of a text, the one made before if the same was asked about lately."""
        key = sha256_of(text), ratio
        with self._lock:
            if (found := self._remembered.get(key)) is not None:
                self._remembered.move_to_end(key)
                return found
        made = self.compress(text, ratio, on_tokens=on_tokens)
        with self._lock:
            self._remembered[key] = made
            while len(self._remembered) > REMEMBERED_CONTEXTS:
                self._remembered.popitem(last=False)
        return made

    def forget(self) -> None:
        """Let go of what was kept for further questions: prefixes, and contexts made on the way."""
        with self._lock:
            self._remembered.clear()
        self.engine.forget()

    def close(self) -> None:
        """Let go of the engine's memory."""
        self.forget()
        self.engine.close()
