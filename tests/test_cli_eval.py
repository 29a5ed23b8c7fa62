"""`octavo eval`: rows from one command line, elsewhere if need be, and one line of error."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CHECKPOINT, TEXT, Result

from octavo.cli import main
from octavo.cli.options import ModelChoice
from octavo.errors import EvaluationError
from octavo_evals import methods, run
from octavo_evals.runner import Job
from octavo_evals.tasks import find_tasks

MODEL = ("--model", str(CHECKPOINT), "--device", "cpu")


Run = Callable[..., Result]


@pytest.fixture
def octavo_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `octavo eval` on a text of our own, into tmp_path/rows."""
    (tmp_path / "book.txt").write_text(TEXT * 40, encoding="utf-8")

    def run_line(*args: str) -> Result:
        line = ["eval", *args, "-o", str(tmp_path / "rows"), "--data", f"text={tmp_path}/book.txt"]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*line, *MODEL])
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, *capsys.readouterr())

    return run_line


def rows(folder: Path) -> list[tuple[str, int | None, str]]:
    lines = (folder / "rows" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["method"], r["ratio"], r["id"]) for r in map(json.loads, lines)]


def test_eval_writes_a_row_for_every_answer_and_only_once(octavo_eval: Run, tmp_path: Path) -> None:
    line = ("perplexity", "--length", "400", "--limit", "2")
    first = octavo_eval(*line)
    assert first.code == 0
    assert first.out.strip() == str(tmp_path / "rows" / "rows.jsonl")
    assert "6 rows written" in first.err
    wanted = {("octavo", 4), ("raw", None), ("none", None)}
    assert {(m, r) for m, r, _ in rows(tmp_path)} == wanted
    assert len(rows(tmp_path)) == 6
    again = octavo_eval(*line)
    assert "0 rows written" in again.err
    assert "6 were there" in again.err
    more = octavo_eval("perplexity", "--length", "400", "--limit", "3", "--method", "raw")
    assert "1 rows written" in more.err
    assert len(rows(tmp_path)) == 7


@pytest.mark.slow
def test_a_method_with_an_environment_of_its_own_runs_there(
    octavo_eval: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bm25 stands for a press: it is sent to the other Python, where it is what it is.
    entry = methods.Entry(place=methods.METHODS["bm25"].place, needs_kvpress=True)
    monkeypatch.setitem(methods.METHODS, "bm25", entry)  # type: ignore[arg-type]
    done = octavo_eval(
        "perplexity", "--length", "400", "--limit", "1", "--method=bm25@4", "--method", "none",
        "--python", sys.executable,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert sorted((m, r) for m, r, _ in rows(tmp_path)) == [("bm25", 4), ("none", None)]
    other = tmp_path / "python"
    other.write_text("""#!/bin/sh\necho '{"error": "it has no room"}'\nexit 1\n""")
    other.chmod(0o755)
    failed = octavo_eval(
        "perplexity", "--length", "20", "--method", "bm25@4", "--python", str(other)
    )
    assert failed.code == 1
    assert "its rows so far are kept: it has no room" in failed.err


def test_a_job_survives_the_way_to_another_python(tmp_path: Path) -> None:
    job = Job(
        model=ModelChoice(model=str(CHECKPOINT), device="cpu", base=tmp_path),
        tasks=("perplexity",), methods=(("snapkv", 4), ("none", None)), folder=tmp_path / "rows",
        lengths=(400,), data=(f"text={tmp_path}",), command="octavo eval …",
    )  # fmt: skip
    assert Job.from_json(job.to_json()) == job


@pytest.mark.slow
def test_the_runner_answers_nonsense_with_one_object() -> None:
    for given in ("", "{}", '{"tasks": 3}', json.dumps({"model": {}})):
        with pytest.raises(EvaluationError, match="stdin holds no job"):
            Job.from_json(given)
    line = [sys.executable, "-m", "octavo_evals.runner"]
    done = subprocess.run(line, input="{}", capture_output=True, text=True)
    assert done.returncode == 1
    assert "stdin holds no job" in json.loads(done.stdout)["error"]
    assert done.stderr == ""


def test_an_interrupt_keeps_the_rows(
    octavo_eval: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("perplexity", "--length", "400", "--limit", "2", "--method", "none")
    score, calls = run.cut, []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "cut", interrupted)
    stopped = octavo_eval(*line)
    assert stopped.code == 130
    assert "the same command goes on" in stopped.err
    assert len(rows(tmp_path)) == 1
    assert octavo_eval(*line).code == 0
    assert len(rows(tmp_path)) == 2


def test_a_group_runs_what_needs_no_data_and_says_what_it_left_out(
    octavo_eval: Run, tmp_path: Path
) -> None:
    line = ("--length", "1400", "--limit", "1", "--method", "none")
    done = octavo_eval("ruler", *line)
    assert done.code == 0
    every = {task.name for task in find_tasks(["ruler"])}
    written = (tmp_path / "rows" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    found = {json.loads(line)["task"] for line in written}
    assert found == every - {"ruler/qa_1", "ruler/qa_2"}
    for name in ("squad", "hotpot"):
        assert f"--data ruler.{name}=" in done.err
    assert "--data ruler.squad=" in octavo_eval("ruler", "ruler/qa_1", *line).error


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("perplexty", "--length", "400"), 1, "did you mean perplexity"),
        (("perplexity",), 1, "give --length 1024"),
        (("perplexity", "--length", "400", "--method", "octavi"), 1, "did you mean octavo"),
        (("perplexity", "--length", "400", "-r", "5"), 1, "choose one of these"),
        (("perplexity", "--length", "400", "--method", "snapkv@4"), 1, "scripts/kvpress-env"),
        (("perplexity", "--length", "400", "--python", "/no/python"), 2, "is no file"),
        (("perplexity", "--length", "400", "--limit", "0"), 2, "--limit"),
        (("perplexity", "--length", "9"), 1, "--length 256 or more"),
        (("squad",), 1, "--data squad="),
        (("perplexity", "--length", "400", "--data", "text"), 1, "is not NAME=PATH"),
        ((), 2, "TASK"),
    ],
)
def test_a_wrong_line_is_one_clear_error_and_writes_no_row(
    octavo_eval: Run, tmp_path: Path, args: tuple[str, ...], code: int, says: str
) -> None:
    done = octavo_eval(*args)
    assert done.code == code, done
    assert says in done.error
    assert not (tmp_path / "rows" / "rows.jsonl").exists()
