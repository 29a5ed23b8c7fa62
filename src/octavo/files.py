"""Write files so that a reader finds either the old one or the whole new one.

Everything octavo writes goes through here: a temporary name in the same folder, fsync, rename.
"""

import ctypes
import os
import platform
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from octavo.errors import OctavoError


class WriteError(OctavoError, OSError):
    """A file could not be written; what was there before is untouched."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it at `path` in one step.

    Raises `WriteError` on a full disk, a missing folder or a folder without permission, and where
    `path` is a link, a device or a pipe; neither the temporary file nor a half-written `path` stays
    behind, also after Ctrl-C. What killed writes left beside it is removed.
    """
    try:
        if path.is_dir():
            raise WriteError(f"cannot write {path}: it is a folder; give a file name")
        if not path.parent.is_dir():
            raise WriteError(
                f"cannot write {path}: the folder {path.parent} does not exist; create it"
            )
        _check_place(path, stat.S_ISREG)
        remove_leftovers(path.parent)
    except OSError as error:
        raise _refusal(path, error) from error
    folder = _temporary(path.parent)  # safetensors leaves files of its own beside what it writes
    temporary = folder / "file.tmp"
    try:
        folder.mkdir()
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode  # as the umask has it; libraries make files private
        write(temporary)
        temporary.chmod(mode)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors says disk full
        raise _refusal(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block ends well, or else vanishes.

    An existing `path` is replaced only at the very end.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_place(path, stat.S_ISDIR)
        remove_leftovers(path.parent)
        temporary = _temporary(path.parent)
        temporary.mkdir()
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        yield temporary
        replace_folder(temporary, path)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors says disk full
        raise _refusal(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a folder that vanishes with the block; one that a kill left, with the next write."""
    temporary = _temporary(parent)
    try:
        remove_leftovers(parent)
        temporary.mkdir(mode=0o700)
        yield temporary
    except OSError as error:
        raise _refusal(temporary, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Make a finished folder durable and put it at `path`, where an older one may stand.

    The two change places in one step, so that there is a whole folder at `path` at every moment;
    on systems that cannot do so the older one is moved aside first.
    """
    mode = temporary.stat().st_mode & 0o666
    for file in temporary.rglob("*"):
        if file.is_file():
            file.chmod(mode)
        _fsync(file)
    _fsync(temporary)
    if not path.exists():
        os.replace(temporary, path)
    elif _exchange(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        retired = _temporary(path.parent)
        os.replace(path, retired)
        os.replace(temporary, path)
        shutil.rmtree(retired, ignore_errors=True)
    _fsync(path.parent)


def remove_folder(path: Path) -> None:
    """Let a folder vanish in one step; what it held is deleted afterwards.

    A process killed in between leaves a temporary folder, which the next write beside it removes.
    """
    retired = _temporary(path.parent)
    try:
        os.replace(path, retired)
        _fsync(path.parent)
    except FileNotFoundError:
        return
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step, where the system can (renameat2 of Linux)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fcntl.h> and <linux/fs.h>
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


_HOST = f"{zlib.crc32(platform.node().encode()):08x}"


def _temporary(folder: Path) -> Path:
    """Return a name of no other write, which tells who writes; it fits whatever the file's name."""
    return folder / f".octavo-{_HOST}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that are no more."""
    for left in folder.glob(f".octavo-{_HOST}-*.tmp"):
        try:
            os.kill(int(left.name.split("-")[2]), 0)
        except ProcessLookupError:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        except (ValueError, OSError):  # not ours, or a process of another user
            continue


def _check_place(path: Path, is_ordinary: Callable[[int], bool]) -> None:
    """Refuse what a rename would destroy: links, devices, pipes."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise WriteError(f"cannot write {path}: it is a link to {path.readlink()}; give that name")
    if not is_ordinary(mode):
        raise WriteError(f"cannot write {path}: something else is there; choose another name")


def _refusal(path: Path, error: Exception) -> WriteError:
    if isinstance(error, WriteError):
        return error
    reason = getattr(error, "strerror", None) or error
    return WriteError(f"cannot write {path}: {reason}; free some space or choose another place")


def _fsync(path: Path) -> None:
    """Make the bytes (or, for a folder, the names) durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
