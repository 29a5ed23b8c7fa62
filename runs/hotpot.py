"""Turn HotpotQA questions of the IRCoT annotations into the form of HotpotQA's own dev set.

IRCoT (Apache-2.0, arXiv 2212.10509) annotated 29 training questions with five paragraphs each; they
stand in for RULER's qa_2 where HotpotQA's dev set is not at hand.

Usage: python runs/hotpot.py multihop_mini_ircot.jsonl.zst OUT.json
"""

import json
import sys
from pathlib import Path

from octavo.files import write_text
from octavo.records import read_dataset

TITLE = "Wikipedia Title: "


def main(source: Path, out: Path) -> None:
    """Write the questions whose source names hotpotqa."""
    questions = []
    for record in read_dataset(source):
        if "hotpotqa" in record["source"]:
            paragraphs = [
                part.strip().partition("\n") for part in record["context"].split(TITLE)[1:]
            ]
            questions.append(
                {
                    "question": record["question"],
                    "answer": record["answers"][0],
                    "context": [[title, [text]] for title, _, text in paragraphs],
                }
            )
    write_text(out, json.dumps(questions, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
