"""Extract text in a process of its own, which a hostile file may hang, bloat or crash.

The child (`readers.py`) writes the text to stdout as UTF-8, or to stderr one line that says what is
wrong.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from octavo.errors import InputError, MissingExtraError

MAX_SECONDS = 120
MAX_MEMORY_BYTES = 2 << 30
MAX_INPUT_BYTES = 512 << 20
MAX_TEXT_BYTES = 256 << 20
_REFUSED, _MISSING = 3, 4
"""Exit codes of the child beside 0: it says why on stderr."""


def extract(path: Path, reader: str, *, max_seconds: float = MAX_SECONDS) -> str:
    """Return the text of a PDF, HTML or docx file; raises `InputError` and `MissingExtraError`."""
    if path.stat().st_size > MAX_INPUT_BYTES:
        raise InputError(f"{path} is larger than {MAX_INPUT_BYTES >> 20} MiB; split it")
    # Isolated from the user's modules and folder; a script, so that octavo itself is not imported.
    line = [sys.executable, "-P", str(Path(__file__).with_name("readers.py")), reader, str(path)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=max_seconds,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{path} was not read within {max_seconds:.0f} s; it may be damaged, or made to "
                "hang readers; convert it to text first"
            ) from None
        err.seek(0)
        lines = err.read(4096).decode("utf-8", "replace").strip().splitlines()
        if done.returncode == _MISSING:
            raise MissingExtraError(
                f"reading {path.suffix} needs {lines[-1] if lines else 'an extra'}: pip install "
                "'octavo[documents]'"
            )
        if done.returncode == _REFUSED:
            raise InputError(f"{path}: {lines[-1] if lines else 'cannot be read'}")
        if done.returncode:
            raise InputError(
                f"{path}: its reader ended with {done.returncode} (out of {MAX_MEMORY_BYTES >> 30} "
                "GiB of memory, or damaged); convert it to text first"
            )
        out.seek(0)
        data = out.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"{path} holds more than {MAX_TEXT_BYTES >> 20} MiB of text; split it")
    with contextlib.suppress(UnicodeDecodeError):
        if (text := data.decode("utf-8")).strip():
            return text
    raise InputError(f"{path} holds no text; a scanned document has to go through OCR first")
