"""Shared pieces: the golden checkpoints, and models made of them in milliseconds."""

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before torch and the hub are imported: tests never touch the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import octavo
from octavo.cli import main

# Several processes that each start a thread per core slow one another down tenfold.
torch.set_num_threads(1)

WIRE = Path(__file__).parent / "fixtures" / "wire"
CHECKPOINT = WIRE / "A_mean_causal_r4_w16" / "checkpoint"
"""The golden checkpoint most tests use: ratio 4, windows of 16 tokens, 2 layers."""

TEXT = (
    "Before the ferry left, Ines copied the tide table: 04:10 low, 10:35 high, 16:50 low. "
    'The clerk\'s note said "three crates, none sealed". Row 7 lists copper wire, 18 metres; '
    "row 8 is empty. Nobody had signed for the lamp oil, yet the cellar was full of it. "
)


@dataclass
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failed command."""
        assert self.code in (1, 2), self
        lines = self.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: "), lines
        return lines[0]


class Terminal(io.StringIO):
    """A stderr that says it is a screen."""

    def isatty(self) -> bool:
        return True


Run = Callable[..., Result]


LONGEST = (
    "test_runs.py", "test_store.py", "test_train_parallel.py", "test_train_run.py",
    "test_search.py", "test_serve_hard.py", "test_train_kill.py", "test_eval_kvpress.py",
)  # fmt: skip
"""Files that take minutes where slow tests run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: a file is one process's, and none should be left at the end."""
    items.sort(
        key=lambda item: LONGEST.index(n) if (n := item.path.name) in LONGEST else len(LONGEST)
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line in this process."""

    def run_line(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, out, err)

    return run_line


@pytest.fixture(scope="session")
def model() -> octavo.Model:
    """A whole model on the local engine."""
    return octavo.load(CHECKPOINT, device="cpu")


@pytest.fixture(scope="session")
def fake_model() -> octavo.Model:
    """The same settings and tokenizers on the fake engine."""
    return octavo.load(CHECKPOINT, engine="fake")


@pytest.fixture(scope="session")
def smol() -> octavo.Model:
    """The shipped model, loaded once: that takes seconds."""
    return octavo.load(device="cpu")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Let no test depend on the one before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see or change what the user keeps."""
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "octavo-home"))
