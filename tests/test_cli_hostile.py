"""What a shell may do to the command line: each ends in a result or in one line that names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKPOINT, TEXT, Result, Run

FAKE = ("--model", str(CHECKPOINT), "--engine", "fake")
LOCAL = ("--model", str(CHECKPOINT), "--device", "cpu", "--max-new-tokens", "2")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT, encoding="utf-8")


def shell(line: str) -> Result:
    """Run a line of a shell, in which `octavo` is this package."""
    env = {**os.environ, "PYTHON": sys.executable}
    script = f'octavo() {{ "$PYTHON" -m octavo "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=env, timeout=120)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_closed_stdin_is_an_empty_one() -> None:
    result = shell("octavo compress - -o out.safetensors <&-")
    assert "stdin is empty" in result.error
    assert result.code == 1


def test_a_closed_stdout_is_refused_before_any_work() -> None:
    result = shell(f"octavo compress book.txt -o out.safetensors -m {CHECKPOINT} >&-")
    assert result.code == 2
    assert "stdout is closed" in result.error
    assert not Path("out.safetensors").exists()


@pytest.mark.slow
def test_a_closed_stderr_only_silences() -> None:
    result = shell("octavo info nosuch 2>&-")
    assert (result.code, result.err) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_one_line() -> None:
    result = shell("octavo --version >/dev/full")
    assert result.code == 1
    assert "No space left" in result.error


LONG = "b" * 244


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["compress", "book.txt", "-o", LONG * 2, "-m", "nosuch"], "File name too long"),
        (["compress", LONG * 2, "-o", "out"], "File name too long"),
        (["generate", "Who?", "-c", LONG * 2], "File name too long"),
        (["compress", "book.txt", "-o", "z\udce9", "-m", "nosuch"], "is not UTF-8"),
        (["generate", "Who?", "-c", "z\udce9"], "is not UTF-8"),
        (["info", "z\udce9.safetensors"], "is not UTF-8"),
        (["generate", "caf\udce9?"], "not valid UTF-8"),
        (["compress", "~nouser/a.txt", "-o", "out"], "no such user has a home folder"),
        (["info", "~nouser"], "no such user has a home folder"),
        (["generate", "Who?", "-m", "~nouser"], "no such user has a home folder"),
        (["train", "~nouser/a.toml"], "no such user has a home folder"),
        (["compress", "a\0b", "-o", "out"], "embedded null byte"),
        (["generate", "Who?", *LOCAL[:2], "--device", "meta"], "'meta' holds no numbers"),
        (["generate", "Who?", *LOCAL[:2], "--device", "hpu"], "'hpu' is not available"),
        (["generate", "Who?", *LOCAL, "--seed", "9" * 20], "at most 64 bits"),
        (["generate", "Who?", *LOCAL, "--seed", "-" + "9" * 20], "at most 64 bits"),
        (["info", "nosuch"], "or a context that `octavo compress` wrote"),
        (["pull", "."], "model_config.json is missing"),
    ],
)
def test_what_cannot_work_is_one_line_that_says_why(run: Run, line: list[str], said: str) -> None:
    result = run(*line)
    assert result.code == 1
    assert said in result.error
    assert "unexpected" not in result.error


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 6000 + "}", "\0", "null"])
def test_settings_that_are_no_plain_json_are_refused_by_their_file(run: Run, text: str) -> None:
    Path("ck").mkdir()
    for name in ("model_config.json", "octavo.json"):
        Path("ck", "model_config.json").write_bytes((CHECKPOINT / "model_config.json").read_bytes())
        Path("ck", name).write_text(text, encoding="utf-8")
        assert f"ck/{name}" in run("info", "ck").error


def test_a_name_that_is_not_utf_8_may_still_be_read(run: Run) -> None:
    Path("caf\udce9.txt").write_text(TEXT, encoding="utf-8")
    assert run("compress", "caf\udce9.txt", "-o", "out.safetensors", *FAKE).code == 0


@pytest.mark.parametrize("temperature", ["1e-300", "1e-45"])
def test_hardly_any_temperature_takes_the_likeliest_token(run: Run, temperature: str) -> None:
    cold = run("generate", "Who?", *LOCAL, "--temperature", temperature, "--no-stream")
    assert cold.code == 0
    assert cold.out == run("generate", "Who?", *LOCAL, "--no-stream").out


def test_a_ratio_is_refused_before_a_model_loads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.weights.layout.read", None)
    for line in (["compress", "book.txt", "-o", "out"], ["generate", "Who?", "-f", "book.txt"]):
        result = run(*line, "-r", "5", "--model", CHECKPOINT)
        assert result.code == 1
        assert "ratio 5 is not served by this model, which was trained for 4" in result.error


def test_the_longest_name_that_a_file_may_have_is_written(run: Run) -> None:
    longest = "b" * 255
    assert run("compress", "book.txt", "-o", longest, *FAKE).code == 0
    assert run("info", longest).code == 0
