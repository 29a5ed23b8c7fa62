"""Measure the most memory that a block of work takes above what was held before it."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path
from types import TracebackType

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_FORGET_PEAK = "5"
"""Resets VmHWM to the present size (proc_pid_clear_refs(5), Linux 4.0 and later)."""


class Peak:
    """A context manager; afterwards `bytes` is the peak of the block, above its start.

    On CUDA it counts what torch allocates on the device, on a CPU under Linux the resident pages
    of the whole process. Elsewhere, and where the kernel refuses, `bytes` stays None. Blocks must
    not nest: there is one peak per process and device.
    """

    def __init__(self, device: torch.device | str = "cpu", *, collects: bool = True) -> None:
        """Measure on `device`; `collects` first frees what only cycles hold (0.1 s)."""
        self._collects = collects
        self.bytes: int | None = None
        self._device = torch.device(device)
        self._before: int | None = None

    def __enter__(self) -> "Peak":
        self.bytes = None
        if self._collects:
            gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif self._device.type == "cpu" and sys.platform == "linux":
            _return_free_pages()
            try:
                _CLEAR_REFS.write_text(_FORGET_PEAK)
            except OSError:  # not allowed in some containers
                return self
            self._before = _status("VmRSS")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _status("VmHWM")
        if peak is not None:
            self.bytes = max(0, peak - self._before)


def _status(name: str) -> int | None:
    """Return a size out of /proc/self/status in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024  # always in kB
    return None


def _return_free_pages() -> None:
    """Let the C library give freed memory back, or the block would reuse it uncounted."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
