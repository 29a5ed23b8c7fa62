"""How fast long texts are folded, how near to bare matrix products, and in how much memory.

Each length is folded in a fresh process by `Engine.encode` (ids to latents; `Model.compress` is it
behind a tokenizer, and refuses what its decoder cannot hold), with the shipped weights in fp32.
Before and after, the same process times the encoder's linear layers and attention alone, on two
windows a call: the floor.

    tokens_per_second  of `encode`
    linear             the share of `encode` that these products alone would take
    floor              the same, with the products of attention (scaled_dot_product_attention)
    peak_mb            peak resident memory less what the loaded model held, and less the result

    python benchmarks/folding.py ROWS.jsonl --length 16k --length 128k --length 1M
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import octavo
from octavo.machine import Peak, describe_machine

CHAPTER = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"
UNITS = {"k": 1024, "M": 1024 * 1024}


def main() -> None:
    """Fold texts of every `--length`, write a row for each and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--length", action="append", required=True, help="tokens: 16k, 1M")
    parser.add_argument("--ratio", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    for length in arguments.length:
        tokens = int(length[:-1]) * UNITS[length[-1]]
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            rows.append(fresh.apply(fold, (tokens, arguments.ratio, arguments.threads)))
        print(json.dumps(rows[-1]), flush=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        arguments.output.write_text(lines, encoding="utf-8")


def fold(tokens: int, ratio: int, threads: int) -> dict[str, Any]:
    """Return the row of one length."""
    torch.set_num_threads(threads)
    model = octavo.load(device="cpu", dtype="float32")
    chapter = CHAPTER.read_text(encoding="utf-8") + "\n\n"
    ids = model.prompts.source(chapter).ids
    ids = (ids * (tokens // len(ids) + 1))[:tokens]
    before = products_seconds(model)
    with Peak("cpu") as peak:
        started = time.perf_counter()
        (latents_KD,) = model.engine.encode([ids], ratio)
        seconds = time.perf_counter() - started
    held = latents_KD.nbytes
    after = products_seconds(model)
    linear, attention = ((a + b) / 2 * tokens for a, b in zip(before, after, strict=True))
    return {
        "tokens": tokens,
        "ratio": ratio,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "linear": round(linear / seconds, 3),
        "floor": round((linear + attention) / seconds, 3),
        "peak_mb": round(((peak.bytes or 0) - held) / 1e6),
        "result_mb": round(held / 1e6),
        "threads": threads,
        "machine": describe_machine(),
    }


@torch.inference_mode()
def products_seconds(model: octavo.Model) -> tuple[float, float]:
    """Return the seconds a token of the encoder's linear layers, and of its attention, alone."""
    body, window = model.lclm.encoder.body, model.config.encoder_window_size
    layers = [m for m in body.modules() if isinstance(m, nn.Linear)]
    inputs = {n: torch.randn(2 * window, n) for n in {layer.in_features for layer in layers}}
    config = body.config
    size = config.hidden_size // config.num_attention_heads
    query = torch.randn(2, config.num_attention_heads, window, size)
    key = torch.randn(2, config.num_key_value_heads, window, size)
    rounds: list[tuple[float, float]] = []
    for _ in range(6):
        started = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        between = time.perf_counter()
        for _ in range(config.num_hidden_layers):
            scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
        rounds.append((between - started, time.perf_counter() - between))
    linear, attention = (statistics.median(times) for times in zip(*rounds, strict=True))
    return linear / (2 * window), attention / (2 * window)


if __name__ == "__main__":
    main()
