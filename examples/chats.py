"""What the training examples share: chats that ask for a passage of a chapter again."""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("output", help="folder for the trained model")
parser.add_argument("--model", help="a checkpoint; by default the one that octavo ships")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

CHAPTER = Path(__file__).with_name("king-solomons-mines-14.txt").read_text(encoding="utf-8")
PASSAGES = [text for text in CHAPTER.split("\n\n") if 200 < len(text) < 600]
QUESTION = "Write this passage out."


def chat(passage: str) -> dict[str, list[dict[str, object]]]:
    """Return one training row: a question about a passage in memory, and its answer."""
    asked = [{"type": "memory", "text": passage}, {"type": "text", "text": QUESTION}]
    answered = [{"type": "text", "text": passage}]
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    }


CHATS = [chat(passage) for passage in PASSAGES]
