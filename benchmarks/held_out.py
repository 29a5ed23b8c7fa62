"""What a compressor keeps, on text it was never trained on: loss and accuracy, with intervals.

Two tasks at every ratio: copy a passage of 64 tokens (teacher-forced token accuracy, and the share
of passages copied without a fault), and continue a text after 256 tokens of context. Each is read
with latents, with the raw text, with nothing, and with the latents of another passage (`shuffled`:
it must do no better than nothing). Retention is (latents - none) / (raw - none). Writes one JSON
row per task and ratio; intervals are 95% bootstrap over examples.

    python benchmarks/held_out.py TEXT.jsonl [...] [--model M] [--examples N] [--output ROWS.jsonl]
"""

import argparse
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import octavo
from octavo.train.config import DataSection, SourceSection
from octavo.train.examples import Example, ExampleMaker
from octavo.train.measure import Baselines, measure
from octavo.train.sources import read_source

COPY, SPAN, TARGET = 64, 256, 48
REQUEST = "\nThe text above, word for word:\n"


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
    source = SourceSection(files=options.texts)
    documents = read_source("texts", source, DataSection(), Path.cwd())
    texts = [d.text for d in documents if len(d.text) > 6 * (SPAN + TARGET)]
    if not texts:
        sys.exit(f"no text of {SPAN + TARGET} tokens or more in {', '.join(options.texts)}")
    rng = random.Random(options.seed)
    tasks = {
        "copy": [copy(model, rng, texts) for _ in range(options.examples)],
        "continue": [proceed(model, rng, texts) for _ in range(options.examples)],
    }
    rows: list[dict[str, Any]] = []
    for task, examples in tasks.items():
        baselines: Baselines = {}
        for ratio in model.ratios:
            found = measure(model.lclm, examples, ratio=ratio, baselines=baselines)
            rows.append({"task": task, "ratio": ratio, **found, "fingerprint": model.fingerprint})
            show(rows[-1])
    if options.output:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        options.output.write_text(lines, encoding="utf-8")


def cut(model: octavo.Model, rng: random.Random, texts: list[str], lengths: list[int]) -> list[str]:
    """Cut consecutive pieces of the given lengths in tokens out of a random text."""
    while True:
        text, wanted = rng.choice(texts), sum(lengths)
        first = text.find(" ", rng.randrange(max(1, len(text) - 6 * wanted)))
        piece = text[max(0, first) : first + 12 * wanted]
        starts = [start for start, _ in model.prompts.source(piece).offsets]
        if len(starts) > wanted:
            ends = [0, *(starts[sum(lengths[: i + 1])] for i in range(len(lengths)))]
            return [piece[a:b] for a, b in itertools.pairwise(ends)]


def copy(model: octavo.Model, rng: random.Random, texts: list[str]) -> Example:
    """Return a passage to be written out again."""
    (passage,) = cut(model, rng, texts, [COPY])
    maker = ExampleMaker(model.prompts, keep_raw=True)
    parts: Any = [("span", passage), ("given", REQUEST), ("scored", passage)]
    return some(maker.from_parts("reconstruction", parts, "held out"))


def proceed(model: octavo.Model, rng: random.Random, texts: list[str]) -> Example:
    """Return a context and how its text goes on."""
    context, target = cut(model, rng, texts, [SPAN, TARGET])
    maker = ExampleMaker(model.prompts, keep_raw=True)
    return some(
        maker.from_parts("interleaved", [("span", context), ("scored", target)], "held out")
    )


def some(example: Example | None) -> Example:
    """Return an example that is known to exist."""
    assert example is not None
    return example


def show(row: dict[str, Any]) -> None:
    """Print a line per reading."""
    for reading in ("latents", "shuffled", "raw", "none"):
        cells = [f"{row['task']:<9} {row['ratio']:>3}x {reading:<9}"]
        for name in ("loss", "accuracy", "exact"):
            mean, low, high = row[reading][name]
            cells.append(f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]")
        if reading == "latents" and (kept := row.get("retention", {}).get("loss")):
            cells.append("retention {:.0%} [{:.0%}, {:.0%}]".format(*kept))
        sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
