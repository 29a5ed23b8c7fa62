"""The one command for a GPU, in small on whatever device there is: legs that join, and weights."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT

import octavo

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def write_texts(folder: Path) -> None:
    """Write a few records to every file that the recipe names."""
    folder.mkdir(parents=True)
    recipe = tomllib.loads((ROOT / "runs" / "gpu.toml").read_text(encoding="utf-8"))
    ask = {"context": TEXT[:200], "question": "Who signed?", "answers": ["Ines"]}
    rows: list[dict[str, Any]] = [{"text": TEXT * 3}, ask, {"text": TEXT[::-1] * 3}] * 6
    for source in recipe["data"]["sources"].values():
        for name in source["files"]:
            lines = (json.dumps({**row, "id": f"{name}{i}"}) for i, row in enumerate(rows))
            (folder / name).write_text("\n".join(lines), encoding="utf-8")


def test_two_legs_join_and_end_in_weights_that_load(tmp_path: Path) -> None:
    write_texts(tmp_path / "out" / "texts")
    line = [ROOT / "runs" / "gpu.sh", "16", tmp_path / "none", tmp_path / "out", "--dry-run"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the second time finds all legs done
        done = subprocess.run([*map(str, line)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for leg in (1, 2):
        log = (tmp_path / "out" / f"leg-{leg}" / "log.jsonl").read_text(encoding="utf-8")
        steps = [row["step"] for row in map(json.loads, log.splitlines()) if "loss" in row]
        assert steps == [1, 2]
    model = octavo.load(tmp_path / "out" / "weights")
    assert model.ratios == [2, 4, 8, 16]
    assert (tmp_path / "out" / "weights.tar.0").stat().st_size <= 15_000_000
