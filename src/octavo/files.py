"""Write files so that a reader finds either the old one or the whole new one.

Everything octavo writes goes through here: a temporary name in the same folder, fsync, rename.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from octavo.errors import OctavoError


class WriteError(OctavoError, OSError):
    """A file could not be written; what was there before is untouched."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it at `path` in one step.

    Raises `WriteError` on a full disk, a missing folder or a folder without permission; neither
    the temporary file nor a half-written `path` stays behind, also after Ctrl-C.
    """
    if path.is_dir():
        raise WriteError(f"cannot write {path}: it is a folder; give a file name")
    if not path.parent.is_dir():
        raise WriteError(f"cannot write {path}: the folder {path.parent} does not exist; create it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors says disk full
        raise _refusal(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block ends well, or else vanishes.

    An existing `path` is replaced only at the very end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        retired = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.replace(path, retired)
        temporary.chmod(0o755)  # mkdtemp makes it private; a checkpoint is meant to be shared
        os.replace(temporary, path)
        shutil.rmtree(retired, ignore_errors=True)
        _fsync(path.parent)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors says disk full
        raise _refusal(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make a folder's own files, and their names, durable."""
    for file in path.iterdir():
        if file.is_file():
            _fsync(file)
    _fsync(path)


def _refusal(path: Path, error: Exception) -> WriteError:
    reason = getattr(error, "strerror", None) or error
    return WriteError(f"cannot write {path}: {reason}; free some space or choose another place")


def _fsync(path: Path) -> None:
    """Make the bytes (or, for a folder, the names) durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
