"""Locks between processes, which end with the process that holds them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NUM_STRIPES = 256
"""Entries share so many locks, whose files stay: removing one while another waits for it would give
two processes the same lock."""


@contextmanager
def locked(path: Path, *, is_shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file, alone or with others that share it, until the block ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which lets go of the lock


def stripe_of(identity: str) -> str:
    """Return the file name of an entry's lock."""
    return f"{int(identity[:4], 16) % NUM_STRIPES:02x}.lock"
