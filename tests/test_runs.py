"""The scripts of `runs/` that wait for a GPU, in tiny shapes on what there is."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = tomllib.loads((ROOT / "runs" / "gpu.toml").read_text(encoding="utf-8"))
TEXTS = {"wiki", "vital", "books", "speeches", "textbooks", "manuals"}
PLACES = "harbour ferry market mill bakery tower garden station chapel library".split()


def line_of(kind: str, number: int) -> dict[str, object]:
    """Return one made-up record: a text, or a question about one."""
    said = [
        f"On day {number + at} the keeper of the {place} wrote down {number * 7 + at} visitors."
        for at, place in enumerate(PLACES)
    ]
    if kind in TEXTS:
        return {"text": "\n\n".join([" ".join(said)] * 4)}
    answer = str(number * 7 + 2)
    question = f"How many visitors did the {PLACES[2]} have?"
    return {"context": " ".join(said), "question": question, "answers": [answer]}


@pytest.mark.slow
def test_all_minutes_of_a_gpu_are_rehearsed_in_parts_that_are_never_done_twice(
    tmp_path: Path,
) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    packed.mkdir()
    with tarfile.open(packed / "texts.tar.xz", "w:xz", preset=0) as archive:
        for kind, source in RECIPE["data"]["sources"].items():
            for name in source["files"]:
                lines = "\n".join(json.dumps(line_of(kind, n)) for n in range(1, 9)).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(lines)
                archive.addfile(entry, io.BytesIO(lines))
    command = ["bash", str(ROOT / "runs" / "gpu.sh"), "9", str(packed), str(out), "--dry-run"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for part in ("check", "train"):  # as where a machine is taken away in between
        subprocess.run([*command, "--only", part], env=environment, check=True)
    assert not (out / "bench.jsonl").exists()
    done = {path: path.stat().st_mtime_ns for path in out.rglob("export/**/*.safetensors")}
    assert len({path.parts[len(out.parts)] for path in done}) == 2  # two legs
    subprocess.run(command, env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert "right" in (out / "checked").read_text(encoding="utf-8")
    assert "WRONG" not in (out / "checked").read_text(encoding="utf-8")
    assert (out / "weights" / "octavo.json").is_file()
    assert (out / "weights.tar.0").stat().st_size > 1000
    assert (out / "bench.jsonl").read_text(encoding="utf-8").count("\n") >= 2
    rows = (out / "everyday" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(row)["method"] for row in rows} == {"raw", "octavo"}


def write_leg(folder: Path, start: str, steps: list[int]) -> None:
    """Write what is looked at of a leg: what it began with, and its log."""
    folder.mkdir(parents=True)
    (folder / "leg").write_text(f"{start} 7 {max(steps)}\n")
    lines: list[dict[str, object]] = []
    for step, loss in ((0, 2.5), (max(steps), 2.0)):
        views = {"latents": {"loss": [loss, loss - 0.1, loss + 0.1]}}
        measured = {f"{kind}/4": views for kind in ("reconstruction", "needle", "qa")}
        lines.append({"step": step, "measured": measured})
    lines[1:1] = [{"step": step, "loss": 2.0, "seconds": 1.0} for step in steps]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_legs_are_drawn_where_they_join_and_refused_where_they_do_not(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "runs" / "legs.py")]
    legs, picture = tmp_path / "smol", tmp_path / "legs.png"
    write_leg(legs / "leg-1", "src/octavo/assets/smol", [1, 2, 3])
    write_leg(legs / "leg-2", "runs/smol/leg-1/sft/export", [1, 2])
    said = subprocess.run([*script, str(legs), str(picture)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("held-out loss 2.500 to 2.000") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name, start, steps in (
        ("leg-3", "runs/smol/leg-2/sft/export", [1, 2, 2, 3]),  # a step was done twice
        ("leg-3", "src/octavo/assets/smol", [1, 2]),  # what was learned is lost
    ):
        other = tmp_path / start.replace("/", "-")
        for leg in ("leg-1", "leg-2"):
            (other / leg).mkdir(parents=True)
            for file in ("leg", "log.jsonl"):
                (other / leg / file).write_bytes((legs / leg / file).read_bytes())
        write_leg(other / name, start, steps)
        said = subprocess.run([*script, str(other), str(picture)], capture_output=True, text=True)
        assert said.returncode == 1
        assert "the legs do not join: leg-3" in said.stderr
