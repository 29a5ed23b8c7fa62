"""Ctrl-C in a real terminal: what runs stops, and what is done next is right."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import CHECKPOINT, TEXT
from training import ADAPTER, losses_of, recipe, write_recipe

import octavo

pytestmark = pytest.mark.slow

MODEL = ("--model", str(CHECKPOINT), "--device", "cpu")
SECONDS = 120
CTRL_C = b"\x03"


class Screen:
    """A terminal with one command in it."""

    def __init__(self, main: int, process: "subprocess.Popen[bytes]") -> None:
        self._main, self.process = main, process
        self.shown = b""

    def read_until(self, text: str, after: int = 0, seconds: float = SECONDS) -> int:
        """Wait for a text; return where it ends."""
        deadline = time.monotonic() + seconds
        while (at := self.shown.find(text.encode(), after)) < 0:
            if time.monotonic() >= deadline:
                raise TimeoutError((text, self.shown[-300:]))
            if not select.select([self._main], [], [], 0.1)[0]:
                continue
            try:
                self.shown += os.read(self._main, 1 << 16)
            except OSError:  # nobody holds the other end any more
                raise AssertionError((text, self.shown[-300:])) from None
        return at + len(text)

    def type(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def interrupt(self, text: str, after: int) -> int:
        """Press Ctrl-C, and again as one does, until a text is there; return where it ends.

        GNU readline looks at an interrupt only when it comes while `select` waits for a key; one
        that comes while a key is still being drawn is looked at with the next.
        """
        for _ in range(SECONDS // 10):
            self.type(CTRL_C)
            with suppress(TimeoutError):
                return self.read_until(text, after, seconds=10)
        raise TimeoutError((text, self.shown[-300:]))

    def wait(self) -> int:
        """Read to the end; return the exit code."""
        while True:
            try:
                if select.select([self._main], [], [], 0.1)[0]:
                    self.shown += os.read(self._main, 1 << 16)
                elif self.process.poll() is not None:
                    break
            except OSError:
                break
        return self.process.wait(SECONDS)


def _as_a_shell_does() -> None:
    """Take the terminal, and SIGINT, which those whom a script runs in the background ignore."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def terminal(folder: Path, *line: object) -> Iterator[Screen]:
    """Run a command of octavo with a terminal of its own, in which Ctrl-C is a key."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo", *map(str, line)],
        stdin=other, stdout=other, stderr=other, cwd=folder, start_new_session=True,
        preexec_fn=_as_a_shell_does,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(other)
    try:
        yield Screen(main, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(main)


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"Row {n}: {TEXT}" for n in range(60)))
    return path


def test_ctrl_c_in_an_answer_ends_it_and_the_next_is_right(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    wanted = octavo.load(device="cpu").generate("Who signed?", context=[TEXT]).text
    with terminal(tmp_path, "chat", "--file", "text.txt", "--device", "cpu") as screen:
        at = screen.read_until("> ")
        for number in range(3):
            question = f"Tell me the whole story in all detail, part {number}."
            screen.type(question.encode() + b"\r")
            at = screen.read_until("\n", screen.read_until(question, at))
            time.sleep(0.3 * number)  # before the first token, and after it
            at = screen.interrupt("> ", at)
        screen.type(b"half a li")
        at = screen.interrupt("> ", screen.read_until("half a li", at))
        screen.type(b"/new\r")
        at = screen.read_until("> ", screen.read_until("forgotten", at))
        screen.type(b"Who signed?\r")
        at = screen.read_until("Who signed?", at)
        stop = screen.read_until("> ", at)
        said = screen.shown[at:stop].decode().replace("\r", "").removesuffix("> ").strip()
        screen.type(b"/quit\r")
        assert screen.wait() == 0
    assert b"Traceback" not in screen.shown
    assert said.endswith(wanted.strip())


def test_ctrl_c_while_a_text_is_compressed_leaves_nothing_and_the_next_run_is_whole(
    tmp_path: Path, long_text: Path
) -> None:
    line = ("compress", long_text, "-o", "out.safetensors", *MODEL)
    with terminal(tmp_path, *line) as screen:
        screen.read_until("compressing")
        screen.type(CTRL_C)
        assert screen.wait() == 130
    assert b"Traceback" not in screen.shown
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["long.txt"]
    with terminal(tmp_path, *line) as screen:
        assert screen.wait() == 0, screen.shown
    model = octavo.load(CHECKPOINT, device="cpu")
    again = model.load_context(tmp_path / "out.safetensors")
    assert again.latents.equal(model.compress(long_text.read_text()).latents)


def test_ctrl_c_in_training_saves_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 200}}
    write_recipe(
        recipe(tmp_path, stages=stages, save_every=1000, measure_every=1000, keep_best=False),
        tmp_path / "recipe.toml",
    )
    log = tmp_path / "out" / "log.jsonl"
    with terminal(tmp_path, "train", "recipe.toml") as screen:
        deadline = time.monotonic() + SECONDS
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        screen.type(CTRL_C)
        screen.read_until("stopping after this step")
        assert screen.wait() == 0, screen.shown
    assert b"--resume" in screen.shown
    steps = len(losses_of(tmp_path / "out"))
    assert 0 < steps < 200
    with terminal(tmp_path, "train", "recipe.toml", "--resume") as screen:
        assert screen.wait() == 0, screen.shown
    assert len(losses_of(tmp_path / "out")) == 200
