"""Kills processes that add, remove and sweep at random moments, then looks at what they left.

Called as `store_kills.py FOLDER SEED KILLS SECONDS`; prints what it hit as JSON. Torch and the model
are loaded once: every process is a fork.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import conftest

import octavo
from octavo.store import Store

TEXTS = [f"{conftest.TEXT} It was day {number}. " * 2 for number in range(8)]


def work(folder: Path, seed: int) -> None:
    """Add, remove and sweep without end."""
    model = octavo.load(conftest.CHECKPOINT, engine="fake")
    os.write(1, b".")
    draw, store = random.Random(seed), Store(folder)
    while True:
        text = draw.choice(TEXTS)
        what = draw.choices(["add", "remove", "gc"], [6, 3, 1])[0]
        if what == "add":
            store.add(text, model=model, name=f"day {TEXTS.index(text)}", tags=["log"])
        elif what == "gc":
            store.gc()
        elif entries := store.list():
            try:
                store.remove(draw.choice(entries).id)
            except octavo.StoreError:
                continue  # it was gone already


def check(store: Store) -> None:
    """Stop with what is wrong, if anything is; read all that is listed."""
    verdict = store.verify()
    if verdict.problems:
        raise SystemExit(f"damage: {verdict.problems}")
    for entry in store.list():
        try:
            text = store.text(entry.id)
        except octavo.StoreError:
            continue  # a row without a folder, which counts for nothing
        context = store.context(entry.id)
        if text not in TEXTS or context.text != text:
            raise SystemExit(f"entry {entry.id} holds another text")
        if not store.index(entry.id).search("lamp oil", 1):
            raise SystemExit(f"the index of {entry.id} finds nothing")


def main(folder: str, seed: str, kills: str, seconds: str) -> None:
    draw, end = random.Random(seed), time.monotonic() + float(seconds)
    octavo.load(conftest.CHECKPOINT, engine="fake")  # so that forks need not import
    place = Path(folder)
    store = Store(place)
    hit = 0
    unfinished = 0
    while hit < int(kills) and time.monotonic() < end:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(writer, 1)
            try:
                work(place, draw.randrange(1 << 30))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(writer)
        os.read(reader, 1)  # it has begun
        os.close(reader)
        time.sleep(draw.uniform(0, 0.12))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit("a process ended by itself")
        hit += 1
        draw.random()
        unfinished += store.verify().unfinished
        if hit % 10 == 0:
            check(store)
    check(store)
    store.gc()
    left = store.verify()
    if left.unfinished or left.problems or left.entries != len(store.list()):
        raise SystemExit(f"gc left {left}")
    print(json.dumps({"kills": hit, "unfinished": unfinished, "entries": left.entries}))


if __name__ == "__main__":
    main(*sys.argv[1:])
