"""What a compressor keeps, on text it was never trained on: loss and accuracy, with intervals.

Two tasks at every ratio: copy a passage of 64 tokens (teacher-forced token accuracy), and continue
a text after 256 tokens of context. Each is read with latents, with the raw text, with nothing, and
with the latents of another passage (`shuffled`: it must do no better than nothing). Writes one JSON
row per task, ratio and reading; intervals are 95% bootstrap over examples.

    python benchmarks/held_out.py TEXT.jsonl [...] [--model M] [--examples N] [--output ROWS.jsonl]
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import octavo
from octavo.train.config import DataSection
from octavo.train.data import Example, Examples, read_documents
from octavo.train.measure import measure

COPY, SPAN, TARGET = 64, 256, 48


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("texts", nargs="+", help=".txt, .jsonl, .jsonl.zst or .parquet")
    parser.add_argument("--model")
    parser.add_argument("--base")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--seed", default="held-out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = octavo.load(options.model, base=options.base)
    data = DataSection(
        copy_tokens=[COPY, COPY],
        span_tokens=[SPAN, SPAN],
        target_tokens=[TARGET, TARGET],
        max_pairs=1,
    )
    documents = read_documents(options.texts, data, Path.cwd())
    rows: list[dict[str, Any]] = []
    for kind in ("reconstruction", "interleaved"):
        baselines: dict[str, Any] = {}
        for ratio in model.ratios:
            stream = Examples(
                documents, model.prompts, data, ratios=[ratio], weights={kind: 1.0},
                seed=options.seed,
            )  # fmt: skip
            examples = [stream[index] for index in range(options.examples)]
            views = ("latents", "raw", "none") if not baselines else ("latents", "none")
            found = measure(model.lclm, examples, views=views)
            other = measure(model.lclm, shuffled(examples), views=("latents", "none"))
            baselines = baselines or {view: found[view] for view in ("raw", "none")}
            readings = {"latents": found["latents"], "shuffled": other["latents"], **baselines}
            for reading, scores in readings.items():
                row = {"task": kind, "ratio": ratio, "reading": reading, **scores}
                if reading in ("latents", "shuffled"):
                    row["gain_over_none"] = (found if reading == "latents" else other)["gain"]
                rows.append(row | {"examples": len(examples), "fingerprint": model.fingerprint})
                show(row)
    if options.output:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        options.output.write_text(lines, encoding="utf-8")


def shuffled(examples: list[Example]) -> list[Example]:
    """Give every example the spans of the next one, cut to as many slots."""
    turned = [*examples[1:], examples[0]]
    return [
        replace(
            example,
            spans=[
                fit(other, own) for own, other in zip(example.spans, neighbour.spans, strict=True)
            ],
        )
        for example, neighbour in zip(examples, turned, strict=True)
    ]


def fit(other: list[int], own: list[int]) -> list[int]:
    """Cut or repeat another span to the length of this one, so that the slots match."""
    return (other * (1 + len(own) // len(other)))[: len(own)]


def show(row: dict[str, Any]) -> None:
    """Print one line."""
    cells = [f"{row['task']:<15} {row['ratio']:>3}x {row['reading']:<9}"]
    for name in ("loss", "accuracy"):
        mean, low, high = row[name]
        cells.append(f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]")
    if gain := row.get("gain_over_none"):
        mean, low, high = gain["loss"]
        cells.append(f"gain over none {mean:+.3f} [{low:+.3f}, {high:+.3f}] nats")
    sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
