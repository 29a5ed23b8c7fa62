"""Measure one method at one length, by the engine that users call.

first     the method makes what it keeps, the decoder reads it and a question -> first token
decode    the rest of the answer, one token at a time; the end of text is not heeded
next      another question about the same context, whose prefix is kept -> first token
batch     so many questions in one call, answers included, and the same questions one by one
"""

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.engine.base import Engine, Prompt, Sampling
from octavo.errors import EvaluationError, MissingExtraError
from octavo.machine import Peak
from octavo.nn import LCLM
from octavo_evals.harness.kvpress import PressedCache, press_for

PRESSES = ("expected-attention", "snapkv", "knorm", "streaming-llm", "tova")
"""Methods of kvpress that need nothing but the decoder. KVzip would need a tokenizer."""
METHODS = ("raw", "octavo", *PRESSES)


def check_method(name: str) -> None:
    """Raise `EvaluationError` for an unknown method, `MissingExtraError` for one not installed."""
    if name not in METHODS:
        raise EvaluationError(f"unknown method {name!r}; give {', '.join(METHODS)}")
    if name in PRESSES and importlib.util.find_spec("kvpress") is None:
        raise MissingExtraError(
            f"the method {name} needs kvpress, which pins its own transformers: make an "
            "environment with scripts/kvpress-env, run .venv-kvpress/bin/python -m octavo bench"
        )


@dataclass(frozen=True, slots=True)
class EngineContext:
    """Raw text or latents, whose prefix the engine keeps between questions."""

    engine: Engine
    prefix: Sequence[int]
    latents: Tensor | None

    @property
    def positions(self) -> int:
        """Where the question begins."""
        return len(self.prefix)

    @property
    def kept_positions(self) -> int:
        """All of it."""
        return len(self.prefix)

    @property
    def kept_bytes(self) -> int:
        """What the engine holds between questions."""
        return self.engine.kept_bytes

    def answer(self, question: Sequence[int], max_new_tokens: int) -> Generator[int]:
        """Yield the tokens of an answer."""
        for (token,) in self.answer_all([question], max_new_tokens):
            assert token is not None
            yield token

    def answer_all(
        self, questions: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Generator[list[int | None]]:
        """Yield the next token of every answer."""
        prompts = [
            Prompt(
                input_ids=[*self.prefix, *question],
                latents=self.latents,
                prefix_length=len(self.prefix),
            )
            for question in questions
        ]
        batch = self.engine.start(prompts, Sampling(max_new_tokens=max_new_tokens))
        try:
            yield from batch
        finally:
            batch.close()


ReadyContext = EngineContext | PressedCache
"""A context that a method has made ready, or that its first question makes so."""


def measure(
    engine: Engine,
    lclm: LCLM,
    method: str,
    ratio: int,
    source: Sequence[int],
    questions: Sequence[Sequence[int]],
    batched: Sequence[Sequence[int]],
    new_tokens: int,
) -> dict[str, Any]:
    """Return the numbers of one row; the first of the `questions` is the one answered.

    `next_seconds` is the median over the others. The `batched` questions are asked once more in
    one call; where there are none, that is not measured.
    """
    with Peak(lclm.device, collects=False) as peak:
        started = time.perf_counter()
        ready, latents = _make_ready(engine, lclm, method, ratio, source)
        compress_seconds = 0.0 if method == "raw" else time.perf_counter() - started
        answer = ready.answer(questions[0], new_tokens)
        next(answer)
        first_seconds = time.perf_counter() - started
        started = time.perf_counter()
        decode_tokens = sum(1 for _ in answer)
        decode_seconds = time.perf_counter() - started
        kept_bytes = ready.kept_bytes
        next_seconds = [_seconds(ready, question, 1) for question in questions[1:]]
        together = _measure_batch(ready, batched, new_tokens)
    return {
        "source_tokens": len(source),
        "latents": 0 if latents is None else len(latents),
        "prompt_tokens": ready.positions + len(questions[0]),
        "kept_positions": ready.kept_positions,
        "compress_seconds": compress_seconds,
        "first_seconds": first_seconds,
        "next_seconds": statistics.median(next_seconds),
        "decode_seconds": decode_seconds,
        "decode_tokens": decode_tokens,
        **together,
        "cache_bytes": kept_bytes,
        "context_bytes": 0 if latents is None else latents.numel() * latents.element_size(),
        "peak_bytes": peak.bytes,
    }


def _make_ready(
    engine: Engine, lclm: LCLM, method: str, ratio: int, source: Sequence[int]
) -> tuple[ReadyContext, Tensor | None]:
    """Make what a method keeps of a context, and the latents where it is they."""
    if method == "raw":
        return EngineContext(engine, source, None), None
    if method == "octavo":
        (latents_KD,) = engine.encode([source], ratio)
        start, end, slot = lclm.config.memory_token_ids
        prefix = [start, *[slot] * len(latents_KD), end]
        return EngineContext(engine, prefix, latents_KD), latents_KD
    pressed = PressedCache(lclm.decoder, source, press_for(method, ratio))
    if lclm.device.type == "cuda":
        torch.cuda.synchronize(lclm.device)
    return pressed, None


def _measure_batch(
    ready: ReadyContext, questions: Sequence[Sequence[int]], new_tokens: int
) -> dict[str, float | None]:
    """Answer questions in one call, and one by one; kvpress has no way to do the former."""
    if not questions or isinstance(ready, PressedCache):
        return {"batch_seconds": None, "alone_seconds": None}
    alone = sum(_seconds(ready, question, new_tokens) for question in questions)
    started = time.perf_counter()
    for _ in ready.answer_all(questions, new_tokens):
        pass
    return {"batch_seconds": time.perf_counter() - started, "alone_seconds": alone}


def _seconds(ready: ReadyContext, question: Sequence[int], new_tokens: int) -> float:
    """Return what an answer takes; a token counts when it is here."""
    started = time.perf_counter()
    with contextlib.closing(ready.answer(question, new_tokens)) as answer:
        for _ in range(new_tokens):
            next(answer)
        return time.perf_counter() - started
