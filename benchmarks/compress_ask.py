"""Compress and ask, against raw prefill on the same decoder.

For each length and ratio, in interleaved repeats: `raw` is the time to first token of a question
over the uncompressed text; `first` compresses the text and asks; `second` asks again about the
same context, whose prefix is kept. Rows go to a JSONL file; the last line printed is one JSON
object of speed-ups, {"8192": {"16": {"first": x, "second": y}}}.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import octavo

TEXT = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"
QUESTIONS = ("Who leads the regiment?", "What happens in the end?")
ROOM = 64
"""Positions kept free at the longest length for template, question and answer."""


def main() -> None:
    """Measure, write rows, print a table and the speed-ups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--ratios", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--base")
    parser.add_argument("--output", type=Path, help="JSONL file for the raw rows")
    options = parser.parse_args()
    model = octavo.load(options.model, options.device, options.dtype, base=options.base)
    ratios = options.ratios or model.ratios
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        text, tokens = text_of(model, length)
        for repeat in range(options.repeats + 1):  # the first one warms up and is not counted
            measured = [measure_raw(model, text)]
            measured += [measure_compressed(model, text, ratio) for ratio in ratios]
            for row in measured:
                row |= {"length": length, "source_tokens": tokens, "repeat": repeat}
                if repeat:
                    rows.append(row | about(model))
    if options.output:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        options.output.write_text(lines, encoding="utf-8")
    speedups = summarise(rows, options.lengths, ratios)
    sys.stdout.write(json.dumps(speedups) + "\n")


def text_of(model: octavo.Model, length: int) -> tuple[str, int]:
    """Return text of `length` tokens, or as many as leave room for a question in the decoder."""
    text = TEXT.read_text(encoding="utf-8") * (1 + length // 8000)
    length = min(length, model.engine.max_positions - ROOM)
    source = model.prompts.source(text)
    text = text[: source.offsets[length][0]]
    return text, len(model.prompts.source(text).ids)


def measure_raw(model: octavo.Model, text: str) -> dict[str, Any]:
    """Time the first token over the raw text."""
    model.close()
    answer = model.generate(QUESTIONS[0], context=text, raw=True, max_new_tokens=1)
    return {
        "method": "raw",
        "ttft_seconds": answer.timings.ttft_seconds,
        "prompt_tokens": answer.usage.prompt_tokens,
    }


def measure_compressed(model: octavo.Model, text: str, ratio: int) -> dict[str, Any]:
    """Time the first token of a first question, compression included, and of a second one."""
    model.close()  # forgets kept prefixes: the first question must pay for all it needs
    started = time.perf_counter()
    context = model.compress(text, ratio=ratio)
    compressed = time.perf_counter()
    first = model.generate(QUESTIONS[0], context=context, max_new_tokens=1)
    seconds = time.perf_counter() - started
    second = model.generate(QUESTIONS[1], context=context, max_new_tokens=1)
    return {
        "method": "compressed",
        "ratio": ratio,
        "latents": len(context),
        "compress_seconds": compressed - started,
        "first_seconds": seconds,
        "second_seconds": second.timings.ttft_seconds,
        "prompt_tokens": first.usage.prompt_tokens,
        "context_bytes": context.num_bytes,
    }


def about(model: octavo.Model) -> dict[str, Any]:
    """Say where a row comes from."""
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "threads": torch.get_num_threads(),
        "device": str(next(model.lclm.parameters()).device),
        "dtype": str(next(model.lclm.parameters()).dtype).removeprefix("torch."),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "octavo": octavo.__version__,
    }


def summarise(
    rows: list[dict[str, Any]], lengths: list[int], ratios: list[int]
) -> dict[str, dict[str, dict[str, float]]]:
    """Print medians and return the speed-ups over the raw prefill of the same run."""
    line = "{:>7} {:>6} {:>9} {:>10} {:>10} {:>10} {:>8} {:>8}\n"
    head = ("tokens", "ratio", "raw s", "compress s", "first s", "second s", "first x", "second x")
    sys.stdout.write(line.format(*head))
    speedups: dict[str, dict[str, dict[str, float]]] = {}
    for length in lengths:
        of_length = [row for row in rows if row["length"] == length]
        raw = statistics.median(r["ttft_seconds"] for r in of_length if r["method"] == "raw")
        for ratio in ratios:
            own = [row for row in of_length if row.get("ratio") == ratio]
            compress, first, second = (
                statistics.median(row[name] for row in own)
                for name in ("compress_seconds", "first_seconds", "second_seconds")
            )
            found = {"first": round(raw / first, 2), "second": round(raw / second, 2)}
            speedups.setdefault(str(length), {})[str(ratio)] = found
            shown = [f"{value:.3f}" for value in (raw, compress, first, second)]
            sys.stdout.write(line.format(length, ratio, *shown, *found.values()))
    return speedups


if __name__ == "__main__":
    main()
