"""The store and `octavo ask`: how long a large store and a book take.

    python benchmarks/store.py OUT.jsonl [--entries 10000] [--model smol] [--only book|int8|store]

Rows, one a line: `add` (a short text, indexed only), `list` (all entries, in this process and by
the command), `ask-store` (one question to all of them), `ask-book` (one question to a book-sized
file by the command, without a model: first, which makes the index, and again, which finds it),
`int8` (what a byte a number costs: how much likelier the text that follows is from full latents, in
nats a token).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from octavo.ask.sources import TextSource, find_passages
from octavo.store import Store

CHAPTER = Path(__file__).parent.parent / "examples" / "king-solomons-mines-14.txt"
QUESTION = "What did Sir Henry do with the axe of Twala?"
BOOK_CHARACTERS = 600_000
"""Of a novel of 110,000 words."""


def seconds_of(line: list[str], home: Path) -> float:
    """Return how long a command takes, from its start to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "octavo", *line]
    environment = {**os.environ, "OCTAVO_HOME": str(home)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def measure_store(home: Path, num_entries: int) -> list[dict[str, Any]]:
    """Fill a store, list it, ask it."""
    store, text = Store(home / "store"), CHAPTER.read_text(encoding="utf-8")
    started = time.perf_counter()
    for number in range(num_entries):
        at = number * 37 % (len(text) - 1000)
        store.add(f"Note {number}. {text[at : at + 1000]}", model=None, name=f"note {number}")
    add_seconds = (time.perf_counter() - started) / num_entries
    listing, asking = [], []
    for _ in range(5):
        started = time.perf_counter()
        entries = store.list()
        listing.append(time.perf_counter() - started)
        started = time.perf_counter()
        sources = [
            TextSource(
                title=one.title,
                index=store.open_index(one),
                read=lambda key=one.id: store.text(key),
            )
            for one in entries
        ]
        found = find_passages(QUESTION, sources, 3)
        asking.append(time.perf_counter() - started)
    assert len(entries) == num_entries
    assert found
    command = [seconds_of(["store", "list"], home) for _ in range(3)]
    whole = [seconds_of(["ask", QUESTION, "--no-answer"], home) for _ in range(3)]
    return [
        {"what": "add", "entries": num_entries, "seconds": add_seconds},
        {"what": "list", "entries": num_entries, "seconds": statistics.median(listing),
         "command_seconds": statistics.median(command)},
        {"what": "ask-store", "entries": num_entries, "seconds": statistics.median(asking),
         "command_seconds": statistics.median(whole)},
    ]  # fmt: skip


def measure_book(home: Path) -> list[dict[str, Any]]:
    """Ask a book-sized file, first and again."""
    chapter = CHAPTER.read_text(encoding="utf-8")
    book = home / "book.txt"
    book.write_text((chapter * (BOOK_CHARACTERS // len(chapter) + 1))[:BOOK_CHARACTERS])
    line = ["ask", QUESTION, str(book), "--no-answer"]
    first = seconds_of(line, home)
    again = statistics.median(seconds_of(line, home) for _ in range(5))
    return [{"what": "ask-book", "characters": BOOK_CHARACTERS, "first": first, "again": again}]


def measure_int8(home: Path, name: str) -> list[dict[str, Any]]:
    """Compare what the decoder makes of full and of int8 latents."""
    import torch

    import octavo
    from octavo.context import CompressedContext
    from octavo.engine.base import Prompt

    torch.set_num_threads(1)
    model, store = octavo.load(name, device="cpu"), Store(home / "int8")
    text = CHAPTER.read_text(encoding="utf-8")
    rows = []
    for ratio in model.ratios:
        losses, nats = [], []
        for at in range(0, 24_000, 4_000):
            piece = text[at : at + 4_000]
            full = model.compress(piece, ratio)
            entry = store.add(piece, model=model, ratio=ratio, precision="int8")
            small = store.context(entry.id)
            losses.append(entry.loss)
            target = model.prompts.text_ids(text[at + 4_000 : at + 4_300])

            def score(context: CompressedContext, target: list[int] = target) -> float:
                encoded = model.prompts.encode_messages(
                    [{"role": "user", "content": [{"type": "memory", "context": context}]}]
                )
                prompt = Prompt(input_ids=encoded.input_ids, latents=context.latents)
                return statistics.mean(model.engine.score(prompt, target).logprobs)

            nats.append(score(full) - score(small))
        rows.append(
            {"what": "int8", "model": model.name, "ratio": ratio, "pieces": len(nats),
             "relative_error": statistics.mean(losses), "nats_a_token": statistics.mean(nats),
             "worst_nats_a_token": max(map(abs, nats))}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure all, and print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--model", default="smol")
    parser.add_argument("--only", choices=["book", "int8", "store"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, rows = Path(folder), []
        if asked.only in ("book", None):
            rows += measure_book(home)
        if asked.only in ("int8", None):
            rows += measure_int8(home, asked.model)
        if asked.only in ("store", None):
            rows += measure_store(home / "home", asked.entries)
    machine = {"python": sys.version.split()[0], "cpus": os.cpu_count()}
    lines = [json.dumps(row | machine) for row in rows]
    asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
