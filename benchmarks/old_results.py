"""What a long history loses when old tool results become latents, and what that saves.

A conversation of `--rounds` rounds: a call, and a document as its result. The question at the end
is about one of them, the oldest first. Results older than the last round are raw text, or latents
at a ratio, in the form in which an agent with `fold_after=1` leaves them. Answers are scored as
`octavo eval everyday` scores them.

    python benchmarks/old_results.py benchmarks/old_results_2core_202611.jsonl
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import octavo
from octavo.machine import describe_machine
from octavo_evals.tasks.everyday import answer_words, contains, read_documents


def conversation(documents: list[dict[str, Any]], question: str, ratio: int | None) -> list[Any]:
    """Return the messages; without a ratio all results are text."""
    turns: list[Any] = [{"role": "user", "content": "Read the papers, one after another."}]
    for at, document in enumerate(documents, 1):
        result: Any = document["text"].strip()
        if ratio is not None and at < len(documents):
            result = [{"type": "memory", "text": result, "ratio": ratio}]
        turns.append({"role": "assistant", "content": f"CALL read {{'paper': {at}}}"})
        turns.append({"role": "user", "content": result})
    turns.append({"role": "assistant", "content": "I have read them all."})
    return [*turns, {"role": "user", "content": question}]


def main() -> None:
    """Ask at the end of every conversation, and print scores, positions and seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--conversations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    model = octavo.load(device="cpu", dtype="float32")
    everything = list(read_documents())
    rows: list[dict[str, Any]] = []
    for number in range(options.conversations):
        first = number * options.rounds % (len(everything) - options.rounds)
        documents = everything[first : first + options.rounds]
        for about in range(options.rounds - 1):  # the last result is never folded
            question, *golds = documents[about]["questions"][number % 5]
            for ratio in (None, 2, 4):
                model.engine.forget()
                started = time.perf_counter()
                said = model.generate(
                    messages=conversation(documents, question, ratio), max_new_tokens=32
                )
                words = answer_words(said.text)
                rows.append(
                    {
                        "conversation": number, "about": about, "ratio": ratio,
                        "is_right": any(contains(words, answer_words(gold)) for gold in golds),
                        "positions": said.usage.prompt_tokens,
                        "seconds": time.perf_counter() - started,
                        "answer": said.text, "machine": describe_machine(),
                    }
                )  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        options.output.write_text(lines, encoding="utf-8")
    for ratio in (None, 2, 4):
        own = [row for row in rows if row["ratio"] == ratio]
        right = sum(row["is_right"] for row in own) / len(own)
        positions = sum(row["positions"] for row in own) / len(own)
        seconds = sum(row["seconds"] for row in own) / len(own)
        name = "text" if ratio is None else f"{ratio}x"
        print(
            f"{name:5} right {right:.0%} of {len(own)}  {positions:,.0f} positions  {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
