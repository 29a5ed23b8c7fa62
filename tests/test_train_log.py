"""The log of a run: no row twice, none lost, also after a crash in the middle of a line."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import MissingExtraError
from octavo.files import WriteError
from octavo.train.log import Log


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def filled(path: Path) -> Log:
    log = Log(path)
    for stage, steps in (("adapter", 4), ("decoder", 3)):
        for step in range(1, steps + 1):
            log({"stage": stage, "step": step, "loss": 1.5})
            if step % 2 == 0:
                log({"stage": stage, "step": step, "measured": {}})
    return log


def test_rewinding_keeps_what_the_checkpoint_knows(tmp_path: Path) -> None:
    log = filled(tmp_path / "log.jsonl")
    log.rewind("adapter", 2, 0)  # saved at step 2, before it was measured
    assert [(r["stage"], r["step"], "measured" in r) for r in rows(log.path)] == [
        ("adapter", 1, False), ("adapter", 2, False)
    ]  # fmt: skip


def test_rewinding_a_later_stage_keeps_the_earlier_ones(tmp_path: Path) -> None:
    log = filled(tmp_path / "log.jsonl")
    before = rows(log.path)
    log.rewind("decoder", 2, 2)
    assert rows(log.path) == before[:-1]
    log.rewind("decoder", 0, 0)
    assert {row["stage"] for row in rows(log.path)} == {"adapter"}


@pytest.mark.parametrize("torn", ['{"stage": "decoder", "st', '{"stage": "dec\n', "\x00\x00\n"])
def test_rewinding_drops_the_line_a_killed_run_was_writing(tmp_path: Path, torn: str) -> None:
    log = filled(tmp_path / "log.jsonl")
    before = rows(log.path)
    with log.path.open("a", encoding="utf-8") as file:
        file.write(torn)
    log.rewind("decoder", 3, 3)
    assert rows(log.path) == before


def test_a_log_that_never_began_needs_no_rewinding(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.rewind("adapter", 0, 0)
    assert not log.path.exists()


def test_a_log_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(WriteError, match=r"log\.jsonl: No space left.*free some space and resume"):
        Log(tmp_path / "log.jsonl")({"stage": "adapter", "step": 1})


def test_tensorboard_gets_every_number_or_says_what_is_missing(tmp_path: Path) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"pip install 'octavo\[tensorboard\]'"):
            Log(tmp_path / "log.jsonl", tensorboard=True)
        return
    assert SummaryWriter is not None
    log = Log(tmp_path / "log.jsonl", tensorboard=True)
    log({"stage": "adapter", "step": 1, "loss": 1.5, "lr": {"adapter": 0.1}})
    assert list((tmp_path / "tensorboard").iterdir())
