"""The search: grids, ranking, and runs that survive a kill, a failure and a second searcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKPOINT
from training import recipe, write_recipe
from typer.testing import CliRunner

from octavo.cli import command_line
from octavo.errors import TrainingError
from octavo.recipe import RunConfig
from octavo.search import read_grid, search, write_table
from octavo.search import runs as search_runs
from octavo.search.result import write_random_halves
from octavo.search.runs import _claim, list_runs
from octavo.search.table import rank
from octavo.train.stages import train

GRIDS = Path(search_runs.__file__).parent.parent / "recipes" / "grids"
PACKAGED = {file.stem: file for file in GRIDS.parent.glob("*.toml")}
STAGE = {"steps": 3, "lr": {"adapter": 1e-2, "encoder": 1e-2}}


def write_grid(folder: Path, text: str, **changes: Any) -> Path:
    """Write a recipe of the golden halves, and a grid over it."""
    given = {"stages": {"decoder": STAGE}, "save_every": 1, "data__root": str(folder), **changes}
    write_recipe(recipe(folder, **given), folder / "base.toml")
    (folder / "grid.toml").write_text(f'recipe = "base.toml"\n{text}', encoding="utf-8")
    return folder / "grid.toml"


def put_result(folder: Path, loss: float, **changes: Any) -> None:
    """Write what a finished run would have come to."""
    folder.mkdir(parents=True)
    kinds = {"qa": {"latents": loss, "raw": 1.0, "none": 4.0}}
    found = {
        "loss": loss, "kinds": kinds, "ratio": 4, "latents": 1024, "encoder_gflops": 9.0,
        "steps": 2, "curve": [5.0, loss], **changes,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(found))


# --- grids ----------------------------------------------------------------------------------


def test_axes_are_multiplied_and_variants_come_besides(tmp_path: Path) -> None:
    grid = read_grid(
        write_grid(
            tmp_path,
            """seeds = [3, 4]
            [set]
            "stages.decoder.steps" = 9
            [axes]
            "model.pooling" = ["mean", "eos"]
            rate = [{ name = "joint" }, { name = "slow", "stages.decoder.lr" = { adapter = 0.1 } }]
            [[variants]]
            name = "wide"
            set = { model = { encoder_window_size = 32 } }
            paper = 1.5
            """,
        ),
        PACKAGED,
    )
    assert [one.name for one in grid.variants] == [
        *("pooling mean, joint", "pooling mean, slow", "pooling eos, joint", "pooling eos, slow"),
        "wide",
    ]
    assert grid.variants[3].settings == {
        "stages.decoder.steps": 9, "model.pooling": "eos", "stages.decoder.lr.adapter": 0.1,
    }  # fmt: skip
    config = RunConfig.load(grid.recipe, grid.variants[4].overrides(3))
    assert (config.model.encoder_window_size, config.seed) == (32, 3)
    assert config.stages["decoder"].steps == 9
    assert [job.folder.name for job in list_runs(grid, tmp_path)][4:6] == [
        *("wide-s3", "pooling-mean-joint-s4"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no variants"),
        ("axis = 3", "the key 'axis'; did you mean 'axes'"),
        ("[[variants]]\nset = {}", "without a name"),
        ("[[variants]]\nname = 'a'\nseed = 3", "a variant with the key 'seed'"),
        ("[[variants]]\nname = 'a b'\n[[variants]]\nname = 'a, b'", "two variants called 'a-b-s0'"),
        ("seeds = ['x']\n[[variants]]\nname = 'a'", "expected whole numbers"),
        ("seeds = [", "not a readable grid"),
    ],
)
def test_a_grid_that_cannot_work_says_why(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        read_grid(write_grid(tmp_path, text), PACKAGED)
    (tmp_path / "grid.toml").write_text("recipe = 'nowhere'")
    with pytest.raises(TrainingError, match="has the recipe 'nowhere'; expected a file, or one of"):
        read_grid(tmp_path / "grid.toml", PACKAGED)


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_variant_of_a_packaged_grid_is_a_recipe(path: Path) -> None:
    grid = read_grid(path, PACKAGED)
    assert len(grid.variants) >= 10
    assert any(one.paper for one in grid.variants)
    for one in grid.variants:
        RunConfig.load(grid.recipe, one.overrides(0))


# --- ranking --------------------------------------------------------------------------------


def test_variants_are_ranked_with_intervals_over_seeds_and_beside_the_paper(tmp_path: Path) -> None:
    grid = read_grid(
        write_grid(
            tmp_path,
            "seeds = [0, 1]\n[[variants]]\nname = 'a'\npaper = 1.2\n[[variants]]\nname = 'b'\n"
            "paper = 1.1\n[[variants]]\nname = 'c'\npaper = 1.3\n[[variants]]\nname = 'd'\n",
        ),
        PACKAGED,
    )
    for name, losses in {"a": (2.0, 2.2), "b": (2.4, 2.6), "c": (3.0,)}.items():
        for seed, loss in enumerate(losses):
            put_result(tmp_path / "runs" / f"{name}-s{seed}", loss)
    a, b, c, d = rank(grid, tmp_path)
    assert [row["variant"] for row in (a, b, c, d)] == ["a", "b", "c", "d"]
    mean, low, high = a["loss"]
    half = 12.706 * 0.1  # Student's t of one degree; the standard error is 0.2 / sqrt(2) / sqrt(2)
    assert (mean, low, high) == pytest.approx((2.1, 2.1 - half, 2.1 + half), abs=1e-5)
    assert b["behind"] == pytest.approx([0.4, 0.4, 0.4])
    assert c["loss"] == [3.0, None, None]
    assert a["kept"][0] == pytest.approx((4 - 2.1) / 3, abs=1e-5)
    assert (d["loss"], d["seeds"]) == (None, [])
    text = write_table(grid, tmp_path, {"d-s0": "it fell over"}).read_text()
    assert "| 1 | a | 2.100 [0.829, 3.371] |" in text
    assert "Of 3 pairs that the paper ranked too, 2 are in its order." in text
    assert "- failed: `d-s0`: it fell over" in text
    assert (tmp_path / "pareto.png").stat().st_size > 5_000


# --- runs -----------------------------------------------------------------------------------


def test_a_result_holds_the_loss_the_curve_and_the_costs_of_a_run(tmp_path: Path) -> None:
    from octavo.search.result import write_result

    out = tmp_path / "out"
    config = recipe(tmp_path, stages={"decoder": STAGE}, measure_every=99)
    train(config, tmp_path)
    write_result(out, tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert found["curve"] == [round(row["loss"], 6) for row in rows if "loss" in row]
    (measured,) = [row["measured"] for row in rows if "measured" in row]
    own = [measured[kind]["latents"]["loss"][0] for kind in measured if kind.endswith("/4")]
    assert found["loss"] == pytest.approx(sum(own) / len(own))
    assert found["latents"] == 1024
    assert found["encoder_gflops"] > 0
    (out / "decoder" / "export").rename(tmp_path / "gone")
    with pytest.raises(TrainingError, match="stopped before its end"):
        write_result(out, tmp_path / "result.json")


def test_halves_from_scratch_have_the_shape_of_a_model_and_other_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    scratch = {"of": str(CHECKPOINT / "decoder"), "num_hidden_layers": 1}
    for seed in (0, 0, 1):
        write_random_halves(scratch, tmp_path / str(seed), seed)
    zero, one = (load_file(tmp_path / str(seed) / "model.safetensors") for seed in (0, 1))
    theirs = load_file(CHECKPOINT / "decoder" / "model.safetensors")
    assert zero.keys() < theirs.keys()
    name = "model.embed_tokens.weight"
    assert zero[name].shape == theirs[name].shape
    assert not zero[name].equal(one[name])
    with pytest.raises(TrainingError, match=r"scratch\.layers is no setting"):
        write_random_halves({**scratch, "layers": 3}, tmp_path / "2", 0)


def test_a_run_is_not_reused_for_other_settings_of_the_same_name(tmp_path: Path) -> None:
    text = "[[variants]]\nname = 'a'\nset = {{ 'model.pooling' = '{}' }}"
    first = read_grid(write_grid(tmp_path, text.format("mean")), PACKAGED)
    out = tmp_path / "search"
    put_result(out / "runs" / "a-s0", 2.0)
    assert search(first, out) == {}
    other = read_grid(write_grid(tmp_path, text.format("eos")), PACKAGED)
    with pytest.raises(
        TrainingError, match=r"settings\.model\.pooling is 'eos', but .* rename the"
    ):
        search(other, out)


def test_a_run_that_another_process_has_is_left_alone(tmp_path: Path) -> None:
    with _claim(tmp_path / "lock") as mine, _claim(tmp_path / "lock") as theirs:
        assert mine is not None
        assert theirs is None
        keeper = subprocess.Popen(["sleep", "30"], pass_fds=[mine])
    try:
        with _claim(tmp_path / "lock") as still:
            assert still is None  # the process that was started meanwhile holds on
    finally:
        keeper.kill()
        keeper.wait()
    with _claim(tmp_path / "lock") as free:
        assert free is not None


def test_a_part_of_a_search_takes_its_share(tmp_path: Path) -> None:
    names = "\n".join(f"[[variants]]\nname = '{name}'" for name in "abcde")
    grid = read_grid(write_grid(tmp_path, names), PACKAGED)
    for name in "ace":
        put_result(tmp_path / "runs" / f"{name}-s0", 2.0)
    assert search(grid, tmp_path, part=(1, 2)) == {}
    assert not (tmp_path / "runs" / "b-s0").exists()
    line = ["search", str(tmp_path / "grid.toml"), "-o", str(tmp_path), "--part", "3/2"]
    assert CliRunner().invoke(command_line(["search", "info"]), line).exit_code != 0


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_to_the_same_table_and_a_failure_stops_no_other(
    tmp_path: Path,
) -> None:
    grid = write_grid(
        tmp_path,
        """
        [[variants]]
        name = "impossible"
        set = { "model.encoder_window_size" = 15 }
        [[variants]]
        name = "mean"
        [[variants]]
        name = "eos"
        set = { "model.pooling" = "eos" }
        """,
        stages={"decoder": {**STAGE, "steps": 40}},
    )

    def start(out: str) -> "subprocess.Popen[bytes]":
        line = [sys.executable, "-m", "octavo", "search", str(grid), "-o", str(tmp_path / out)]
        return subprocess.Popen([*line, "--processes", "2"], start_new_session=True)

    assert start("whole").wait(300) == 1  # one failed
    log = tmp_path / "killed" / "runs" / "mean-s0" / "out" / "log.jsonl"

    def wait_for_steps(count: int) -> None:
        deadline = time.monotonic() + 200
        while not (log.is_file() and log.read_text().count('"loss"') >= count):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    killed = start("killed")
    wait_for_steps(3)
    os.kill(killed.pid, signal.SIGTERM)  # the runs save themselves, and none lives on alone
    assert killed.wait(120) == 130
    with _claim(log.parents[1] / "lock") as free:
        assert free is not None
    num_saved = log.read_text().count('"loss"')
    assert num_saved < 40
    killed = start("killed")
    wait_for_steps(num_saved + 1)
    os.kill(killed.pid, signal.SIGKILL)  # the runs live on: they are waited for, not run twice
    killed.wait()
    again = start("killed")
    time.sleep(1.0)
    os.killpg(again.pid, signal.SIGKILL)
    again.wait()
    assert start("killed").wait(300) == 1
    whole, other = (
        json.loads((tmp_path / out / "table.json").read_text()) for out in ("whole", "killed")
    )
    assert whole == other
    assert [bool(row["loss"]) for row in whole] == [True, True, False]
    text = (tmp_path / "killed" / "table.md").read_text()
    assert "- failed: `impossible-s0`: compression ratio 4 does not divide" in text
