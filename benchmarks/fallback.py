"""How far the confidence of answers can be trusted, and what reading again saves and costs.

Everyday documents are asked from latents; an answer below the threshold is read again, from the
passages that the question finds or from the raw text. Per ratio:

    AUC          how often a right answer has the greater likelihood than a wrong one: pooled, and
                 over pairs of one kind of document only
    right        before, and with each fallback; `read again` is the share of questions
    saved, lost  wrong answers that became right, and right ones that became wrong
    tokens       positions the decoder read for all questions, against the raw text for all

    python benchmarks/fallback.py benchmarks/fallback_2core_202611.jsonl --documents 10
"""

import argparse
import json
from pathlib import Path
from typing import Any

import octavo
from octavo.confidence import THRESHOLD, auc, auc_within
from octavo.machine import describe_machine
from octavo_evals.tasks.everyday import answer_words, contains, read_documents

WAYS = ("latents", "passages", "raw")


def main() -> None:
    """Ask about every document from latents, then again from the text, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--ratio", type=int, action="append")
    parser.add_argument("--threshold", type=float, default=THRESHOLD)
    options = parser.parse_args()
    model = octavo.load(device="cpu", dtype="float32")
    rows: list[dict[str, Any]] = []
    for document in read_documents()[: options.documents]:
        for ratio in options.ratio or [2, 4]:
            context = model.compress(document["text"].strip(), ratio=ratio)
            for question, *golds in document["questions"]:
                rows.append(asked(model, context, question, golds, options.threshold))
                rows[-1] |= {"document": document["id"], "kind": document["kind"], "ratio": ratio}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        options.output.write_text(lines, encoding="utf-8")
    for ratio in options.ratio or [2, 4]:
        report(ratio, [row for row in rows if row["ratio"] == ratio])


def asked(
    model: octavo.Model,
    context: octavo.CompressedContext,
    question: str,
    golds: list[str],
    threshold: float,
) -> dict[str, Any]:
    """Return the row of a question: whether each way is right, what it read, and its likelihood."""
    row: dict[str, Any] = {"question": question, "machine": describe_machine()}
    for way in WAYS:
        fallback: Any = None if way == "latents" else way
        said = model.generate(
            question, context, max_new_tokens=32, fallback=fallback, threshold=threshold
        )
        words = answer_words(said.text)
        row[way] = {
            "answer": said.text,
            "is_right": any(contains(words, answer_words(gold)) for gold in golds),
            "is_read_again": said.fallback is not None,
            "positions": said.usage.prompt_tokens,
            "logprob": said.logprob,
            "confidence": said.confidence,
        }
    return row


def report(ratio: int, rows: list[dict[str, Any]]) -> None:
    """Print the lines of one ratio."""
    values = [row["latents"]["logprob"] for row in rows]
    truth = [row["latents"]["is_right"] for row in rows]
    kinds: dict[str, tuple[list[float], list[bool]]] = {}
    for row, value, is_right in zip(rows, values, truth, strict=True):
        own = kinds.setdefault(row["kind"], ([], []))
        own[0].append(value)
        own[1].append(is_right)
    pooled, within = auc(values, truth), auc_within(kinds.values())
    shown = [f"{one:.2f}" if one is not None else "-" for one in (pooled, within)]
    print(f"{ratio}x: {len(rows)} questions; AUC {shown[0]} pooled, {shown[1]} within a kind")
    first = sum(row["latents"]["positions"] for row in rows)
    for way in WAYS:
        right = sum(row[way]["is_right"] for row in rows) / len(rows)
        again = sum(row[way]["is_read_again"] for row in rows)
        saved = sum(row[way]["is_right"] and not row["latents"]["is_right"] for row in rows)
        lost = sum(row["latents"]["is_right"] and not row[way]["is_right"] for row in rows)
        more = sum(row[way]["positions"] for row in rows if row[way]["is_read_again"])
        print(
            f"  {way:9} right {right:.0%}  read again {again / len(rows):.0%}  saved {saved}  "
            f"lost {lost}  positions {first + more:,}"
        )


if __name__ == "__main__":
    main()
