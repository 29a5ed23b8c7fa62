"""Kill processes that add, remove and sweep at random moments, then look at what they left.

Called as `store_kills.py FOLDER SEED KILLS SECONDS`; prints what it hit as JSON. The model is
loaded once: every process is a fork.
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

LONGEST_SECONDS = (0.02, 0.1, 0.4)
"""Before a kill: within one step, or after several."""
TEXTS = [f"{conftest.TEXT} It was day {number}. " * 2 for number in range(8)]


def work(folder: Path, seed: int, model: octavo.Model) -> None:
    """Add, remove and sweep without end."""
    draw, store = random.Random(seed), Store(folder)
    while True:
        text = draw.choice(TEXTS)
        what = draw.choices(["add", "remove", "gc"], [7, 2, 1])[0]
        if what == "add":
            store.add(text, model=model, name=f"day {TEXTS.index(text)}", tags=["log"])
        elif what == "gc":
            store.gc()
        elif entries := store.list():
            try:
                store.remove(draw.choice(entries).id)
            except octavo.StoreError:
                continue  # it was gone already


def check(store: Store) -> int:
    """Stop with what is wrong, if anything is; read all that is listed, and count it."""
    num_read = 0
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
        num_read += 1
    return num_read


def main(folder: str, seed: str, kills: str, seconds: str) -> None:
    draw, end = random.Random(seed), time.monotonic() + float(seconds)
    model, place = octavo.load(conftest.CHECKPOINT, engine="fake"), Path(folder)
    store = Store(place)
    hit = unfinished = num_read = 0
    while hit < int(kills) and time.monotonic() < end:
        seed_of_work = draw.randrange(1 << 30)
        pid = os.fork()
        if not pid:
            try:
                work(place, seed_of_work, model)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        time.sleep(draw.uniform(0, draw.choice(LONGEST_SECONDS)))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit("a process ended by itself")
        hit += 1
        if hit % 10 == 0:
            unfinished += store.verify().unfinished
            num_read += check(store)
    check(store)
    store.gc()
    left = store.verify()
    if left.unfinished or left.problems or left.entries != len(store.list()):
        raise SystemExit(f"gc left {left}")
    print(json.dumps({"kills": hit, "unfinished": unfinished, "read": num_read}))


if __name__ == "__main__":
    main(*sys.argv[1:])
