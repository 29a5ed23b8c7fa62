"""Two processes train as one does, go on as one or two, and stop together."""

import json
import math
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT
from training import (
    ADAPTER,
    GROUPS,
    assert_same_run,
    losses_of,
    recipe,
    rows_of,
    tensors_of,
    write_recipe,
)
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).parent / "drivers" / "forks.py"
DONE, INTERRUPTED, REFUSED = 0, 3, 4
FILE = "model.safetensors"
TIMEOUT = 120

Answer = list[list[Any]]
Launch = Callable[..., Answer]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Run a recipe on so many ranks; the result is `[exit code, message]` by rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(DRIVER)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert server.stdin
    assert server.stdout

    def ask(folder: Path, ranks: int, hook: str = "", resume: bool = False, **changes: Any) -> Any:
        file = write_recipe(recipe(folder, **changes), folder / "recipe.toml")
        request = {"recipe": str(file), "folder": str(folder), "ranks": ranks}
        request |= {"hook": hook, "resume": resume, "timeout": TIMEOUT}
        print(json.dumps(request), file=server.stdin, flush=True)
        ready, _, _ = select.select([server.stdout], [], [], 2 * TIMEOUT)
        assert ready, "the driver does not answer"
        return json.loads(server.stdout.readline())

    yield ask
    server.stdin.close()
    server.stdout.close()
    server.wait(timeout=10)


def assert_close_runs(one: Path, other: Path) -> None:
    """Assert equality but for the order of sums: Adam turns rounding near zero into small steps."""
    assert losses_of(one) == pytest.approx(losses_of(other), rel=1e-4)
    for ours, theirs in zip(rows_of(one), rows_of(other), strict=True):
        for name in ("step", "scored_tokens", "decoder_tokens", "source_tokens", "latents", "lr"):
            assert ours.get(name) == theirs.get(name)
        if "grad_norm" in ours:
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    ours, theirs = exports_of(one), exports_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-4, msg=name)


def exports_of(out: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors_of(out).items() if "/export/" in name}


SMALL = {"adapter": 1e-3, "encoder": 1e-3, "decoder": 1e-3}
STAGES = {
    "adapter": {"steps": 2, "lr": {"adapter": 1e-3, "memory_rows": 1e-3}},
    "decoder": {"steps": 3, "lr": SMALL, "weight_decay": {"adapter": 0.1}},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora__rank": 2},
        {"activation_checkpointing": True},
        {"micro_batch_rows": 1, "model__residual": "none", "data__row_tokens": 128},
        {"attention": "sdpa", "model__adapter_type": "attn_mlp"},
    ],
    ids=["plain", "lora", "recomputed", "small-micro-batches", "sdpa-attn-adapter"],
)
def test_two_ranks_train_what_one_trains(
    tmp_path: Path, launch: Launch, changes: dict[str, Any]
) -> None:
    stages = STAGES
    if "lora__rank" in changes:
        stages = {**STAGES, "decoder": {**STAGES["decoder"], "lr": {**SMALL, "memory_rows": 1e-3}}}
    changes = {"stages": stages, "measure_every": 2, "keep_best": True, **changes}
    for ranks in (1, 2):
        answer = launch(tmp_path / str(ranks), ranks, **changes)
        assert answer == [[DONE, ""]] * ranks
    assert_close_runs(tmp_path / "1" / "out", tmp_path / "2" / "out")
    measured = [
        [row["measured"] for row in rows_of(tmp_path / ranks / "out") if "measured" in row]
        for ranks in ("1", "2")
    ]
    assert len(measured[0]) == len(measured[1]) == 3
    for ours, theirs in zip(*measured, strict=True):
        for name in ours:
            one, two = ours[name]["latents"]["loss"][0], theirs[name]["latents"]["loss"][0]
            assert one == pytest.approx(two, rel=1e-3)


def test_bf16_trains_on_two_ranks(tmp_path: Path, launch: Launch) -> None:
    for ranks in (1, 2):
        answer = launch(tmp_path / str(ranks), ranks, stages=STAGES, precision="bf16")
        assert answer == [[DONE, ""]] * ranks
    one, two = (losses_of(tmp_path / ranks / "out") for ranks in ("1", "2"))
    assert one == pytest.approx(two, rel=2e-2)  # bf16 has 8 bits, and is rounded elsewhere
    assert {t.dtype for t in exports_of(tmp_path / "2" / "out").values()} == {torch.float32}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_run_on_two_ranks_equals_an_uninterrupted_one(
    tmp_path: Path, launch: Launch, rank: int
) -> None:
    changes = {"stages": STAGES, "lora__rank": rank, "measure_every": 2, "keep_best": True}
    if rank:
        changes["stages"] = {
            **STAGES, "decoder": {**STAGES["decoder"], "lr": {**SMALL, "memory_rows": 1e-3}}
        }  # fmt: skip
    assert launch(tmp_path / "whole", 2, **changes) == [[DONE, ""]] * 2
    broken = tmp_path / "broken"
    for stage in ("adapter", "decoder"):
        answer = launch(broken, 2, hook="signal_in_step_2", resume=True, **changes)
        assert answer == [[INTERRUPTED, f"stage {stage}, step 2"]] * 2
    assert launch(broken, 2, resume=True, **changes) == [[DONE, ""]] * 2
    assert_same_run(tmp_path / "whole" / "out", broken / "out")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(
    tmp_path: Path, launch: Launch, before: int, after: int
) -> None:
    stages = {"decoder": {**STAGES["decoder"], "steps": 4}}
    assert launch(tmp_path / "whole", 1, stages=stages) == [[DONE, ""]]
    hook = "signal_rank_0_in_step_2"
    answer = launch(tmp_path / "moved", before, hook=hook, stages=stages)
    assert answer == [[INTERRUPTED, "stage decoder, step 2"]] * before
    answer = launch(tmp_path / "moved", after, resume=True, stages=stages)
    assert answer == [[DONE, ""]] * after
    assert_close_runs(tmp_path / "whole" / "out", tmp_path / "moved" / "out")


def test_a_rank_without_spans_does_not_hang_and_gradients_stay_right(
    tmp_path: Path, launch: Launch
) -> None:
    stages = {"decoder": STAGES["decoder"]}
    for ranks in (1, 2):
        answer = launch(tmp_path / str(ranks), ranks, hook="without_spans", stages=stages)
        assert answer == [[DONE, ""]] * ranks
    assert_close_runs(tmp_path / "1" / "out", tmp_path / "2" / "out")
    start = AutoModelForCausalLM.from_pretrained(CHECKPOINT / "encoder").state_dict()
    trained = exports_of(tmp_path / "2" / "out")
    name = "layers.0.mlp.up_proj.weight"
    (found,) = (
        t for key, t in trained.items() if key.endswith(f"encoder/model.safetensors/{name}")
    )
    moved = (found - start[f"model.{name}"]).abs().max()
    assert moved > 1e-4


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_both(
    tmp_path: Path, launch: Launch
) -> None:
    stages = {"decoder": STAGES["decoder"]}
    answer = launch(tmp_path, 2, hook="not_finite", stages=stages, save_every=3)
    assert answer == [[DONE, ""]] * 2
    rows = rows_of(tmp_path / "out")
    assert [row["step"] for row in rows if "skipped" in row] == [2]
    assert rows[1]["loss"] is None
    (row,) = rows[1]["rows"]  # of rank 1's two rows, the first
    assert row.startswith("main/")
    assert all(math.isfinite(losses_of(tmp_path / "out")[step]) for step in (0, 2))
    (state,) = (tmp_path / "out" / "decoder").glob("checkpoint-*/state.json")
    assert json.loads(state.read_text())["updates"] == 2
    assert all(bool(torch.isfinite(t).all()) for t in exports_of(tmp_path / "out").values())


@pytest.mark.parametrize("hook", ["signal_in_step_2", "signal_rank_0_in_step_2"])
def test_a_signal_to_one_rank_stops_both_after_the_same_step(
    tmp_path: Path, launch: Launch, hook: str
) -> None:
    answer = launch(tmp_path, 2, hook=hook, save_every=99)
    assert answer == [[INTERRUPTED, "stage adapter, step 2"]] * 2
    saved = [path.name for path in (tmp_path / "out" / "adapter").iterdir()]
    assert saved == ["checkpoint-00000002"]
    assert len(losses_of(tmp_path / "out")) == 2


def test_memory_rows_alone_move_in_a_sharded_embedding(tmp_path: Path, launch: Launch) -> None:
    assert launch(tmp_path, 2, stages={"adapter": ADAPTER}) == [[DONE, ""]] * 2
    name = "model.embed_tokens.weight"
    before = AutoModelForCausalLM.from_pretrained(CHECKPOINT / "decoder").state_dict()[name]
    found = exports_of(tmp_path / "out")
    (after,) = (t for key, t in found.items() if key.endswith(f"decoder/{FILE}/{name}"))
    moved = (before != after).any(-1).nonzero().flatten().tolist()
    assert moved == [387, 388, 389]  # the golden checkpoint's memory tokens


def test_low_rank_factors_move_and_the_base_does_not_when_sharded(
    tmp_path: Path, launch: Launch
) -> None:
    stages = {"sft": {"steps": 2, "lr": dict.fromkeys(GROUPS, 1e-2)}}
    assert launch(tmp_path, 2, stages=stages, lora__rank=2) == [[DONE, ""]] * 2
    found = exports_of(tmp_path / "out")
    factors = {name: tensor for name, tensor in found.items() if "lora_B" in name}
    assert factors
    assert all(bool(tensor.abs().max() > 0) for tensor in factors.values())
    assert not any(name.split("/")[-2] == "model.safetensors" for name in found)


@pytest.mark.parametrize(
    ("hook", "says", "elsewhere"),
    [
        ("export_fails", "No space left on device", "writing .* failed on rank 0"),
        ("state_fails", "No space left on device.*resume", "saving .* failed on rank 0"),
        ("shard_fails", "No space left on device.*resume", "No space left on device.*resume"),
    ],
)
def test_a_failure_while_writing_stops_every_rank_with_an_error(
    tmp_path: Path, launch: Launch, hook: str, says: str, elsewhere: str
) -> None:
    (first, said), (second, said_there) = launch(
        tmp_path, 2, hook=hook, stages={"adapter": ADAPTER}
    )

    if hook == "export_fails":  # not an octavo error: a real one comes out of `write` as one
        assert (first, second) == (1, REFUSED)
    else:
        assert (first, second) == (REFUSED, REFUSED)
    assert re.search(says, said, re.DOTALL), said
    assert re.search(elsewhere, said_there), said_there
    if hook != "export_fails":
        assert list((tmp_path / "out" / "adapter").iterdir()) == []


def test_a_recipe_that_cannot_work_stops_every_rank(tmp_path: Path, launch: Launch) -> None:
    for changes, says in (
        ({"data__train": ["absent.txt"]}, "no file matches 'absent.txt'|failed on rank 0"),
        ({"micro_batch_rows": 4}, "micro_batch_rows 4 times 2 ranks"),
    ):
        answer = launch(tmp_path, 2, **changes)
        assert [code for code, _ in answer] == [REFUSED, REFUSED]
        assert all(any(part in said for part in says.split("|")) for _, said in answer)


def test_torchrun_runs_octavo_train_on_two_processes(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 2}}
    write_recipe(recipe(tmp_path, stages=stages), tmp_path / "recipe.toml")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "octavo", "train", "recipe.toml"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out" / "adapter" / "export")  # said once
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["ranks"] == 2
    assert len(losses_of(tmp_path / "out")) == 2
