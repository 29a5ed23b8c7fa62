"""What a run stands on: devices and precisions by name, and memory, there is and used."""

import contextlib
import ctypes
import gc
import os
import platform
import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

from octavo.errors import ConfigError

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_FORGET_PEAK = "5"
"""Resets VmHWM to the present size (proc_pid_clear_refs(5), Linux 4.0 and later)."""

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a name; a typo is an error, not some other precision."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def find_device(name: str | None = None) -> torch.device:
    """Return the named device, or the best that is there; raises `ConfigError` for one that is not.

    A name without an index gets the index of the device that is current.
    """
    if name is None or name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(0, device=torch.device(name)).device
    except Exception as error:  # torch raises many kinds; all mean "not available"
        raise ConfigError(f"device {name!r} is not available here; try cpu") from error
    if device.type == "meta":
        raise ConfigError("device 'meta' holds no numbers; try cpu")
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: emulated bf16 on a CPU without it is 2.5x slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return _cpu_has("bf16") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def memory_of(device: torch.device) -> int | None:
    """Return the bytes that a device, or for a CPU this process, may hold at most."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return physical


def describe_machine() -> str:
    """Name the processor, or the accelerator, that this process runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """Return the most memory that this process has held so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a device or on the host."""
    message = str(error).lower()
    return (
        isinstance(error, MemoryError) or "out of memory" in message or "allocate memory" in message
    )


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


def _cpu_has(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
