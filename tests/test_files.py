"""Files: what is written where, what is never destroyed, and what a killed write leaves."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import TEXT

import octavo
from octavo import CompressedContext, WriteError

SAVES = Path(__file__).parent / "drivers" / "saves.py"


@pytest.fixture(scope="module")
def context(model: octavo.Model) -> CompressedContext:
    return model.compress(TEXT)


def test_links_devices_and_pipes_are_never_replaced(
    model: octavo.Model, context: CompressedContext, tmp_path: Path
) -> None:
    (tmp_path / "target").write_text("keep me")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "device").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("link", "nowhere", "device", "pipe"):
        with pytest.raises(WriteError, match="cannot write"):
            context.save(tmp_path / name)
        with pytest.raises(WriteError, match="cannot write"):
            model.save(tmp_path / name)
    with pytest.raises(WriteError, match="something else"):
        context.save(Path("/dev/null"))
    assert (tmp_path / "target").read_text() == "keep me"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_of_something_else_is_never_replaced(model: octavo.Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(WriteError, match="holds no checkpoint"):
        model.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "keep me"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(
    model: octavo.Model, context: CompressedContext, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        context.save(tmp_path / "c.safetensors")
        model.save(tmp_path / "model")
    finally:
        os.umask(before)
    for path in [tmp_path / "c.safetensors", *(tmp_path / "model").rglob("*")]:
        if path.is_file():
            assert path.stat().st_mode & 0o777 == mode, path
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask


def test_names_may_be_as_long_as_the_system_has_them(
    context: CompressedContext, tmp_path: Path
) -> None:
    context.save(tmp_path / ("n" * 255))
    assert len(CompressedContext.load(tmp_path / ("n" * 255))) == len(context)
    with pytest.raises(WriteError, match="too long"):
        context.save(tmp_path / ("n" * 256))


def test_threads_may_write_to_one_place(model: octavo.Model, tmp_path: Path) -> None:
    contexts = [model.compress(TEXT), model.compress(TEXT * 9)]
    failures = []

    def work(one: CompressedContext) -> None:
        try:
            for _ in range(20):
                one.save(tmp_path / "c.safetensors")
                assert len(CompressedContext.load(tmp_path / "c.safetensors")) in sizes
        except Exception as error:
            failures.append(error)

    sizes = {len(one) for one in contexts}
    threads = [threading.Thread(target=work, args=(one,)) for one in contexts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def killed_saves(folder: Path, count: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SAVES), str(folder), str(count), "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["interrupted"] > count // 4


@pytest.mark.slow
def test_three_hundred_killed_saves_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    killed_saves(tmp_path, 300)
