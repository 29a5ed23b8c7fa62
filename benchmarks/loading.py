"""Seconds from the start of Python to a loaded model and to an answer, beside the bare decoder.

Every run is a fresh process; the commands take turns, so that a busy minute meets all of them.

    decoder   import torch and transformers, load SmolLM2-135M-Instruct in fp32 and its tokenizer
    octavo    octavo.load(): the decoder, the encoder of its first layers, adapter, LoRA factors
    generate  `octavo generate QUESTION --file F --max-new-tokens 1`, loading included

    python benchmarks/loading.py benchmarks/loading_2core_202611.jsonl
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from octavo.machine import describe_machine
from octavo.weights.base import ensure_base

DECODER = """
import sys, torch, transformers
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
"""
OCTAVO = "import octavo; octavo.load(device='cpu', dtype='float32')"
LETTER = "Dear Tom, the boiler will be installed on Friday by Ann Brandt. It costs 2,400 euros."


def main() -> None:
    """Time every command `--repeats` times, and print medians and their ratios to the decoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    letter = arguments.output.with_suffix(".txt")
    letter.write_text(LETTER, encoding="utf-8")
    python = [sys.executable, "-c"]
    answer = ["generate", "When is the boiler installed?", "--file", str(letter), "--quiet"]
    commands = {
        "decoder": [*python, DECODER, str(ensure_base())],
        "octavo": [*python, OCTAVO],
        "generate": [sys.executable, "-m", "octavo", *answer, "--max-new-tokens", "1"],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    rows = []
    try:
        for repeat in range(-1, arguments.repeats):  # the first round fills the disk's cache
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                row = {"command": name, "repeat": repeat, "seconds": time.perf_counter() - started}
                rows.append({**row, "machine": describe_machine()})
    finally:
        letter.unlink()
    arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    medians = {
        name: statistics.median(
            r["seconds"] for r in rows if r["command"] == name and r["repeat"] >= 0
        )
        for name in commands
    }
    for name, seconds in medians.items():
        print(f"{name:9} {seconds:5.2f} s  {seconds / medians['decoder']:.2f}x")


if __name__ == "__main__":
    main()
