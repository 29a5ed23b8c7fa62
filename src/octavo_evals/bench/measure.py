"""Measure one method at one length, by the engine that users call.

first     the method makes what it keeps, the decoder reads it and a question -> first token
decode    the rest of the answer, one token at a time; an end of text does not end it
next      another question about the same context, whose prefix is kept -> first token
batch     so many questions in one call, answers included, and the same questions one by one
"""

import importlib.util
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from octavo.engine.base import Engine, Sampling
from octavo.errors import EvaluationError, MissingExtraError
from octavo.machine import Peak
from octavo.nn import LCLM
from octavo_evals.harness.kvpress import PressedCache, press_for
from octavo_evals.reading import Held

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
    one call; where there are none, or by kvpress, which reads them one by one, that is left out.
    """
    with Peak(lclm.device, collects=False) as peak:
        started = time.perf_counter()
        held = _hold(engine, lclm, method, ratio, source)
        compress_seconds = 0.0 if method == "raw" else time.perf_counter() - started
        with closing(_start(held, questions[:1], new_tokens)) as steps:
            next(steps)
            first_seconds = time.perf_counter() - started
            started = time.perf_counter()
            decode_tokens = sum(1 for _ in steps)
            decode_seconds = time.perf_counter() - started
        kept_bytes = held.answerer.kept_bytes
        next_seconds = [_seconds(held, [question], 1) for question in questions[1:]]
        has_batch = bool(batched) and not isinstance(held.answerer, PressedCache)
        alone = [_seconds(held, [question], new_tokens) for question in batched if has_batch]
        batch_seconds = _seconds(held, batched, new_tokens) if has_batch else None
    return {
        "source_tokens": len(source),
        "latents": held.num_latents,
        "prompt_tokens": len(held.prefix) + len(questions[0]),
        "kept_positions": getattr(held.answerer, "kept_positions", len(held.prefix)),
        "compress_seconds": compress_seconds,
        "first_seconds": first_seconds,
        "next_seconds": statistics.median(next_seconds),
        "decode_seconds": decode_seconds,
        "decode_tokens": decode_tokens,
        "batch_seconds": batch_seconds,
        "alone_seconds": sum(alone) if has_batch else None,
        "cache_bytes": kept_bytes,
        "context_bytes": held.context_bytes,
        "peak_bytes": peak.bytes,
    }


def _hold(engine: Engine, lclm: LCLM, method: str, ratio: int, source: Sequence[int]) -> Held:
    """Make what a method keeps of a context."""
    if method == "raw":
        return Held(answerer=engine, prefix=source)
    if method == "octavo":
        (latents_KD,) = engine.encode([source], ratio)
        start, end, slot = lclm.config.memory_token_ids
        prefix = [start, *[slot] * len(latents_KD), end]
        return Held(answerer=engine, prefix=prefix, latents=latents_KD)
    pressed = PressedCache(lclm.decoder, source, press_for(method, ratio))
    if lclm.device.type == "cuda":
        torch.cuda.synchronize(lclm.device)
    return Held(answerer=pressed, prefix=source)


def _start(held: Held, questions: Sequence[Sequence[int]], new_tokens: int) -> Any:
    prompts = [held.prompt(question) for question in questions]
    return held.answerer.start(prompts, Sampling(max_new_tokens=new_tokens))


def _seconds(held: Held, questions: Sequence[Sequence[int]], new_tokens: int) -> float:
    """Return what the answers to some questions take."""
    started = time.perf_counter()
    with closing(_start(held, questions, new_tokens)) as steps:
        for _ in range(new_tokens):  # a token counts when it is here, not when the batch has ended
            next(steps)
        return time.perf_counter() - started
