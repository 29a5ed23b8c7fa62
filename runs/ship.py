"""Turn a trained export into the shipped asset: half precision, and nothing that repeats the base.

Usage: python runs/ship.py EXPORT ASSET
"""

import json
import sys
from pathlib import Path

import torch

from octavo.weights.layout import read, write


def main(export: Path, asset: Path) -> None:
    """Write `asset` from `export`, keeping the model card that lies there."""
    card = asset / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    # fp16 keeps three more bits of a LoRA factor than bf16, and none comes near its range.
    write(read(export, trainable=True), asset, dtype=torch.float16)
    for file in asset.rglob("tokenizer.json"):  # two fifths of it are indentation
        values = json.loads(file.read_text(encoding="utf-8"))
        short = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        file.write_text(short, encoding="utf-8")
    if text is not None:
        card.write_text(text, encoding="utf-8")
    total = sum(file.stat().st_size for file in asset.rglob("*") if file.is_file())
    sys.stdout.write(f"{asset}: {total / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
