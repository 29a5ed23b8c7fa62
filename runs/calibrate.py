"""Measure how far the shipped model's answers can be trusted, for src/octavo/assets/measured.

Usage: python runs/calibrate.py SQUAD.jsonl[.zst] [COUNT] [--curves]

Items are COUNT (30) questions about one paragraph among five that follow one another in the file,
and one question about each everyday document but the ten that the README's table asks about: what
`octavo agent --calibrate` measures on files of yours. With `--curves`, policies and layouts stay as
they were measured before, which is most of the time.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import octavo
from octavo.agent.calibrate import PAIRS, KnownItem, calibrate
from octavo.confidence import read_measured, write_measured
from octavo.records import read_dataset
from octavo_evals.tasks.everyday import read_documents

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


def everyday() -> list[KnownItem]:
    """Return one question about each everyday document that is not of the README's table."""
    items = []
    for number, document in enumerate(read_documents()[10:]):
        question, *answers = document["questions"][number % len(document["questions"])]
        items.append(KnownItem(context=document["text"], question=question, answers=answers))
    return items


def main(file: Path, count: int, is_curves_alone: bool) -> None:
    """Measure, and put the result where every installation finds it."""
    items = [*items_of(file, count), *everyday()]
    model = octavo.load(device="cpu", dtype="float32")
    before = read_measured(model.fingerprint)
    about = (
        f"{count} questions of {file.name.split('.')[0]}, each among {PARAGRAPHS} paragraphs, and "
        f"{len(items) - count} about everyday documents"
    )
    measured = calibrate(
        model,
        items,
        pairs=PAIRS[:1] if is_curves_alone else PAIRS,
        about=about,
        progress=lambda what, done, total: sys.stderr.write(f"{what}: {done} of {total}\n"),
    )
    if is_curves_alone:
        kept = {"policy": before.policy, "layout": before.layout, "accuracy": before.accuracy}
        about = f"curves: {about}; policies: {before.about}"
        measured = replace(measured, **kept, about=about)
    place = ASSETS / f"{measured.fingerprint}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(write_measured(measured).read_bytes())
    sys.stdout.write(f"{place}\n{json.dumps(dict(measured.accuracy), indent=1)}\n")


if __name__ == "__main__":
    given = [one for one in sys.argv[1:] if one != "--curves"]
    main(Path(given[0]), int(given[1]) if len(given) > 1 else 30, "--curves" in sys.argv)
