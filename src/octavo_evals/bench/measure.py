"""Measure one method at one length: its first question, an answer, and questions after that.

Shapes: S source tokens, K latents, T positions, D decoder width, Q tokens of a question.

    first     the method makes what it keeps, the decoder reads it and a question -> first token
    decode    the rest of the answer, one token at a time; the end of text is not heeded
    next      the KV cache is cut back to the context, another question is read -> first token

The decoder reads in chunks, so that activations do not grow with the length, and makes logits for
the last position alone. The cache is transformers' `DynamicCache`, which copies a layer whenever it
grows: decoding moves more bytes than the floor says, for every method alike.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from octavo.errors import EvaluationError, MissingExtraError
from octavo.machine import Peak
from octavo.nn import LCLM
from octavo.nn.cache import as_keyword


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A context as the decoder has read it, ready for questions."""

    cache: DynamicCache
    positions: int
    """Where the question begins; more than the cache holds where positions were thrown away."""
    compress_seconds: float = 0.0
    latents: int = 0
    context_bytes: int = 0
    """Of the latents."""


class Reader:
    """A model in use, with a clock that waits for the device."""

    def __init__(self, lclm: LCLM, *, chunk: int, encode_batch: int) -> None:
        """Let the decoder read `chunk` positions and the encoder `encode_batch` tokens at once."""
        self.lclm = lclm
        self.device = next(lclm.parameters()).device
        self._chunk = chunk
        lclm.encoder.encode_batch_tokens = encode_batch

    def clock(self) -> float:
        """Return the time when all work given to the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def embed(self, ids_T: Tensor) -> Tensor:
        """Return the decoder's embeddings `TD` of ids."""
        embeds_TD: Tensor = self.lclm.get_input_embeddings()(ids_T)
        return embeds_TD

    def read(self, parts: Iterable[Tensor]) -> DynamicCache:
        """Let the decoder read embeddings `TD`, part by part, and return its KV cache."""
        cache = DynamicCache()
        body: Any = self.lclm.get_decoder()
        for part_TD in parts:
            body(inputs_embeds=part_TD.unsqueeze(0), use_cache=True, **as_keyword(cache))
        return cache

    def read_ids(self, ids_S: Tensor) -> DynamicCache:
        """Let the decoder read ids in chunks."""
        return self.read(self.embed(chunk) for chunk in ids_S.split(self._chunk))

    def read_latents(self, latents_KD: Tensor) -> DynamicCache:
        """Let the decoder read latents between their marks, in chunks."""
        start, end, _ = self.lclm.config.memory_token_ids
        marks_2D = self.embed(torch.tensor([start, end], device=self.device))
        embeds_TD = torch.cat([marks_2D[:1], latents_KD, marks_2D[1:]])
        return self.read(embeds_TD.split(self._chunk))

    def ask(self, kept: Kept, ids_Q: Tensor, *, past: int = 0) -> int:
        """Read ids behind the context and `past` further ones; return the likeliest next token."""
        inputs: dict[str, Any] = {}
        if kept.cache.get_seq_length() != kept.positions + past:
            first = kept.positions + past
            positions_Q = torch.arange(first, first + len(ids_Q), device=self.device)
            inputs["position_ids"] = positions_Q.unsqueeze(0)
        output = self.lclm.decoder(
            inputs_embeds=self.embed(ids_Q).unsqueeze(0),
            use_cache=True,
            logits_to_keep=1,
            **as_keyword(kept.cache),
            **inputs,
        )
        return int(output.logits[0, -1].argmax())  # a token counts when it is here


Method = Callable[[Reader, Tensor, int], Kept]
"""Reads source ids `S` at a ratio. The clock runs."""


def read_raw(reader: Reader, ids_S: Tensor, ratio: int) -> Kept:
    """Read the context itself; the ratio is of no account."""
    return Kept(cache=reader.read_ids(ids_S), positions=len(ids_S))


def read_compressed(reader: Reader, ids_S: Tensor, ratio: int) -> Kept:
    """Compress the context and read its latents."""
    started = reader.clock()
    latents_KD = reader.lclm.encode([ids_S], ratio)[0]
    seconds = reader.clock() - started
    cache = reader.read_latents(latents_KD)
    return Kept(
        cache=cache,
        positions=cache.get_seq_length(),
        compress_seconds=seconds,
        latents=len(latents_KD),
        context_bytes=latents_KD.numel() * latents_KD.element_size(),
    )


def read_pressed(name: str, reader: Reader, ids_S: Tensor, ratio: int) -> Kept:
    """Read the whole context in one pass while a press of kvpress thins its KV cache.

    Presses act on a prefill that starts at position 0, so this one has no chunks.
    """
    from octavo_evals.harness.kvpress import press_for

    press = press_for(name, ratio)
    started = reader.clock()
    with press(reader.lclm.decoder):
        cache = reader.read([reader.embed(ids_S)])
    return Kept(cache=cache, positions=len(ids_S), compress_seconds=reader.clock() - started)


METHODS: dict[str, Method] = {"raw": read_raw, "octavo": read_compressed}
"""Name -> how it reads a context."""
PRESSES = ("expected-attention", "snapkv", "knorm", "streaming-llm", "tova")
"""Methods of kvpress that need nothing but the decoder. KVzip would need a tokenizer."""
METHODS.update({name: partial(read_pressed, name) for name in PRESSES})


def check_method(name: str) -> None:
    """Raise `EvaluationError` for an unknown method, `MissingExtraError` for one not installed."""
    if name not in METHODS:
        raise EvaluationError(f"unknown method {name!r}; give {', '.join(METHODS)}")
    if name in PRESSES and importlib.util.find_spec("kvpress") is None:
        raise MissingExtraError(
            f"the method {name} needs kvpress, which pins its own transformers: make an "
            "environment with scripts/kvpress-env, run .venv-kvpress/bin/python -m octavo bench"
        )


@torch.inference_mode()
def measure(
    reader: Reader,
    method: str,
    ratio: int,
    ids_S: Tensor,
    questions: Sequence[Tensor],
    new_tokens: int,
) -> dict[str, Any]:
    """Return the numbers of one row; the first of the `questions` `Q` is the one answered.

    `next_seconds` is the median over the questions after the first.
    """
    with Peak(reader.device, collects=False) as peak:
        started = reader.clock()
        kept = METHODS[method](reader, ids_S, ratio)
        cache_bytes, length = bytes_of(kept.cache), kept.cache.get_seq_length()
        token = reader.ask(kept, questions[0])
        first_seconds = reader.clock() - started
        started = reader.clock()
        for _ in _answer(reader, kept, token, past=len(questions[0]), count=new_tokens - 1):
            pass
        decode_seconds = reader.clock() - started
        _cut(kept.cache, length)
        next_seconds = []
        for question in questions[1:]:
            started = reader.clock()
            reader.ask(kept, question)
            next_seconds.append(reader.clock() - started)
            _cut(kept.cache, length)
    return {
        "source_tokens": len(ids_S),
        "latents": kept.latents,
        "prompt_tokens": kept.positions + len(questions[0]),
        "kept_positions": length,
        "compress_seconds": kept.compress_seconds,
        "first_seconds": first_seconds,
        "next_seconds": statistics.median(next_seconds),
        "decode_seconds": decode_seconds,
        "decode_tokens": new_tokens - 1,
        "cache_bytes": cache_bytes,
        "context_bytes": kept.context_bytes,
        "peak_bytes": peak.bytes,
    }


def bytes_of(cache: DynamicCache) -> int:
    """Return what the keys and values of a cache hold."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def _answer(reader: Reader, kept: Kept, token: int, *, past: int, count: int) -> Iterator[int]:
    """Yield `count` further tokens, each read back before the next is begun."""
    for step in range(count):
        token = reader.ask(kept, torch.tensor([token], device=reader.device), past=past + step)
        yield token


def _cut(cache: DynamicCache, length: int) -> None:
    """Forget all but the context. Negative: the only form that every transformers 5 takes."""
    if (surplus := cache.get_seq_length() - length) > 0:
        cache.crop(-surplus)
