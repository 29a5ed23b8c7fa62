"""`octavo data prepare`: rows from a recipe, a table of what came of it, and one line of error."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CHECKPOINT, TEXT, Result, Terminal

from octavo.cli import main
from octavo.data import packing
from octavo.data.rows import Rows

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `octavo data prepare` in a folder with a recipe and a text."""
    (tmp_path / "a.txt").write_text(TEXT * 30, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        f"""
batch_rows = 4
micro_batch_rows = 4
model = {{ encoder = "{CHECKPOINT}/encoder", decoder = "{CHECKPOINT}/decoder" }}
[data]
train = ["a.txt"]
row_tokens = 256
rows_per_shard = 4
held_out_examples = 2
[data.mixtures.main]
weights = {{ reconstruction = 1 }}
copy_tokens = [8, 32]
context_tokens = [16, 64]
[stages.adapter]
steps = 3
lr = {{ adapter = 1e-3 }}
""",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)

    def run_line(*args: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["data", "prepare", *args])
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, *capsys.readouterr())

    return run_line


def test_rows_are_prepared_and_summed_up(run: Run) -> None:
    done = run("mine.toml", "-o", "rows", "--set", "stages.adapter.steps=2")
    assert done.code == 0, done.err
    rows = Rows(Path("rows"), "main")
    examples = [example for row in rows for example in row.examples]
    header, main_line, held_out = done.out.splitlines()
    assert header.split() == [
        "mixture",
        "rows",
        "examples",
        "positions",
        "source",
        "tokens",
        "bytes",
    ]
    name, count, *rest = main_line.split()
    assert (name, count, rest[:2]) == ("main", "8", ["reconstruction", str(len(examples))])
    positions = sum(e.length(row.ratio) for row in rows for e in row.examples)
    assert rest[2:4] == [f"{positions:,}", f"{sum(len(s) for e in examples for s in e.spans):,}"]
    assert held_out.startswith("held out")
    assert done.err.splitlines() == ["main: 4 of 8 rows", "main: 8 of 8 rows"]


def test_a_mixture_at_its_caps_is_told(run: Run) -> None:
    done = run("mine.toml", "-o", "rows", "--set", "data.mixtures.main.caps.reconstruction=6")
    assert done.code == 0, done.err
    assert "of 12 rows; its kinds are at their caps" in done.out.splitlines()[-1]


def test_ctrl_c_says_how_to_go_on_and_that_is_how(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = packing.BUILDERS["reconstruction"]

    def interrupted(*given: object) -> object:
        if Path("my rows/main/00000.safetensors").exists():
            raise KeyboardInterrupt
        return build(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setitem(packing.BUILDERS, "reconstruction", interrupted)
        stopped = run("mine.toml", "-o", "my rows", "--set", "seed=2")
    assert stopped.code == 130
    line = "octavo data prepare mine.toml -o 'my rows' --set seed=2"
    assert stopped.err.splitlines()[-1] == (
        f"interrupted; whole shards are kept, continue with: {line}"
    )
    assert stopped.out == ""
    assert run("mine.toml", "-o", "my rows", "--set", "seed=2").code == 0
    assert len(Rows(Path("my rows"), "main")) == 12


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        (["nope", "-o", "rows"], 1, "no recipe 'nope'; give a .toml file or a packaged name"),
        (["mine.toml"], 2, "Missing option"),
        (["mine.toml", "-o", "rows", "--set", "seed"], 2, "is not section.field=value"),
        (["mine.toml", "-o", "rows", "--set", "data.row_token=9"], 1, "did you mean 'row_tokens'"),
        (["mine.toml", "-o", "rows", "--processes", "0"], 2, "--processes"),
        (["mine.toml", "-o", "a.txt"], 1, "cannot make the folder"),
        (["mine.toml", "-o", "rows", "--set", "data.train=b.txt"], 1, "no file matches 'b.txt'"),
        (["mine.toml", "-o", "rows", "--set", "model.encoder=./none"], 1, "cannot load ./none"),
    ],
)
def test_what_cannot_work_is_one_line(run: Run, args: list[str], code: int, complaint: str) -> None:
    failed = run(*args)
    assert failed.code == code
    (line,) = failed.err.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert failed.out == ""


def test_a_terminal_shows_a_bar(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    assert run("mine.toml", "-o", "rows").code == 0
    assert "12 of 12 rows" in screen.getvalue()
