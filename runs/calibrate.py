"""Measure how far the shipped model's answers can be trusted, for src/octavo/assets/measured.

Usage: python runs/calibrate.py SQUAD.jsonl[.zst] [COUNT]

Each item is a question about one paragraph among five that follow one another in the file: what
`octavo agent --calibrate` measures on files of yours, on items that more than one model knows.
"""

import json
import random
import sys
from pathlib import Path

import octavo
from octavo.agent.calibrate import KnownItem, calibrate
from octavo.confidence import write_measured
from octavo.records import read_dataset

PARAGRAPHS = 5
ASSETS = Path(octavo.__file__).parent / "assets" / "measured"


def items_of(file: Path, count: int) -> list[KnownItem]:
    """Draw questions from all over a file."""
    records = list(read_dataset(file))
    contexts = list(dict.fromkeys(record["context"] for record in records))
    places = {context: place for place, context in enumerate(contexts)}
    items = []
    for record in random.Random(0).sample(records, count):
        last = max(len(contexts) - PARAGRAPHS, 0)
        first = min(max(0, places[record["context"]] - PARAGRAPHS // 2), last)
        text = "\n\n".join(contexts[first : first + PARAGRAPHS])
        items.append(
            KnownItem(context=text, question=record["question"], answers=record["answers"])
        )
    return items


def main(file: Path, count: int) -> None:
    """Measure, and put the result where every installation finds it."""
    items = items_of(file, count)
    about = f"{count} questions of {file.name.split('.')[0]}, each among {PARAGRAPHS} paragraphs"
    measured = calibrate(
        octavo.load(),
        items,
        about=about,
        progress=lambda what, done, total: sys.stderr.write(f"{what}: {done} of {total}\n"),
    )
    place = ASSETS / f"{measured.fingerprint}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(write_measured(measured).read_bytes())
    sys.stdout.write(f"{place}\n{json.dumps(dict(measured.accuracy), indent=1)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30)
