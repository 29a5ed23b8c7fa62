"""Kills processes that save contexts and checkpoints at random moments, and looks what is left.

Called as `saves.py FOLDER KILLS SEED`; prints as JSON how many kills found a save under way, and
everything that was wrong: a file or folder that was gone or no whole one, or a stray name after the
next write. Torch is imported once: every victim is a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from conftest import CHECKPOINT, TEXT

import octavo
from octavo.train import checkpoints

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
model = octavo.load(CHECKPOINT, device="cpu")
contexts = [model.compress(TEXT), model.compress(TEXT * 9)]
sums = [float(one.latents.sum()) for one in contexts]
tensors = {"weight": torch.arange(50_000.0)}


def save(kind: str, turn: int) -> None:
    if kind == "context":
        contexts[turn % 2].save(folder / "c.safetensors")
    elif kind == "model":
        model.save(folder / "model")
    else:
        checkpoints.save(folder / "stage", 1, tensors, {"step": 1}, keep=1)


def check(kind: str) -> None:
    """Raise whatever is wrong with what is there."""
    if kind == "context":
        assert float(model.load_context(folder / "c.safetensors").latents.sum()) in sums
    elif kind == "model":
        assert octavo.load(folder / "model", device="cpu").fingerprint == model.fingerprint
    else:
        (found,) = checkpoints.find(folder / "stage")
        into = {"weight": torch.zeros(50_000)}
        checkpoints.read_state(found)
        checkpoints.load(found, into)
        assert torch.equal(into["weight"], tensors["weight"])


def main() -> dict[str, Any]:
    rng, wrong, interrupted = random.Random(seed), [], 0
    kinds = ("context", "model", "step")
    took = {}
    for kind in kinds:
        save(kind, 0)
        begun = time.perf_counter()
        save(kind, 1)
        took[kind] = time.perf_counter() - begun
    for number in range(kills):
        kind = kinds[number % len(kinds)]
        if (child := os.fork()) == 0:
            for turn in range(1000):
                save(kind, turn)
        time.sleep(rng.uniform(0, 3 * took[kind]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += any(path.name.startswith(".") for path in folder.rglob("*"))
        try:
            check(kind)
            save(kind, 0)
            check(kind)
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
        wrong += [str(path) for path in folder.rglob(".*")]
    return {"kills": kills, "interrupted": interrupted, "wrong": wrong}


print(json.dumps(main()))
