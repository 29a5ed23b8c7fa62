"""A budget of latents spread by density, beside the same number of latents at one ratio.

Everyday documents stand in the middle of filler, and are asked what stands in them:

    prose        a chapter of a novel: about as dense as a letter
    boilerplate  the same six lines of a log again and again, with other times

Both ways get the same budget, the latents of `--ratio` for all of the text, which is what `uniform`
is. Answers are scored as `octavo eval everyday` scores them; every question counts once.

    python benchmarks/density.py benchmarks/density_2core_202611.jsonl --documents 10
"""

import argparse
import json
from pathlib import Path
from typing import Any

import octavo
from octavo.machine import describe_machine
from octavo.session import Session
from octavo.statistics import estimate
from octavo_evals.tasks.everyday import answer_words, contains, read_documents

CHAPTER = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"
LINES = (
    "INFO health check of the gateway answered in time",
    "INFO cache swept, nothing was old",
    "INFO session of the kiosk renewed",
    "INFO backup of the ledger begun",
    "INFO backup of the ledger done",
    "INFO heartbeat",
)
FILLER_CHARACTERS = 5000
"""On either side, about 1,200 tokens."""


def filler(kind: str, at: int) -> str:
    """Return filler of a kind; `at` makes every piece another one."""
    if kind == "prose":
        chapter = CHAPTER.read_text(encoding="utf-8")
        begin = at * FILLER_CHARACTERS % (len(chapter) - FILLER_CHARACTERS)
        return chapter[begin : begin + FILLER_CHARACTERS]
    lines = (f"{n // 60 % 24:02}:{n % 60:02} {LINES[n % len(LINES)]}" for n in range(at, at + 2000))
    text = ""
    while len(text) < FILLER_CHARACTERS:
        text += next(lines) + "\n"
    return text


def main() -> None:
    """Ask about every document in both fillers, both ways, and print the share of right answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--ratio", type=int, action="append")
    parser.add_argument("--model")
    options = parser.parse_args()
    model = octavo.load(options.model, device="cpu", dtype="float32")
    rows: list[dict[str, Any]] = []
    for at, document in enumerate(read_documents()[: options.documents]):
        for kind in ("prose", "boilerplate"):
            before, after = (filler(kind, 2 * at + side) for side in (0, 1))
            whole = f"{before}\n\n{document['text'].strip()}\n\n{after}"
            for ratio in options.ratio or [4, 8]:
                rows += asked(model, document, kind, whole, ratio)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        options.output.write_text(lines, encoding="utf-8")
    report(rows)


def asked(
    model: octavo.Model, document: dict[str, Any], kind: str, text: str, ratio: int
) -> list[dict[str, Any]]:
    """Return a row a question and way."""
    uniform = model.compress(text, ratio=ratio)
    spread = Session(model, [text], budget=len(uniform)).contexts
    asks = "\n\nAnswer with a few words of the text: "
    questions = [f"{asks}{question}" for question, *_ in document["questions"]]
    rows = []
    for way, contexts in (("uniform", [uniform]), ("density", spread)):
        said = model.generate(questions, context=contexts, max_new_tokens=32)
        for (question, *golds), answer in zip(document["questions"], said, strict=True):
            words = answer_words(answer.text)
            is_right = any(contains(words, answer_words(gold)) for gold in golds)
            rows.append(
                {
                    "document": document["id"], "filler": kind, "ratio": ratio, "way": way,
                    "latents": sum(map(len, contexts)), "question": question,
                    "answer": answer.text, "is_right": is_right, "machine": describe_machine(),
                }
            )  # fmt: skip
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """Print the share of right answers of both ways, and their paired difference."""
    for kind in ("prose", "boilerplate"):
        for ratio in sorted({row["ratio"] for row in rows}):
            table = []
            for document in sorted({row["document"] for row in rows}):
                own = [
                    row for row in rows
                    if (row["document"], row["filler"], row["ratio"]) == (document, kind, ratio)
                ]  # fmt: skip
                right = [
                    sum(row["is_right"] for row in own if row["way"] == way)
                    for way in ("uniform", "density")
                ]
                table.append([*right, len(own) / 2])
            both = [estimate([table], lambda a, b, at=at: (a, b)[at]) for at in range(2)]
            by = estimate([table], lambda a, b: b - a)
            print(
                f"{kind:12} {ratio:>2}x  uniform {both[0].value:.0%}  density {both[1].value:.0%}  "
                f"difference {by.value:+.0%} [{by.low:+.0%}, {by.high:+.0%}]"
            )


if __name__ == "__main__":
    main()
