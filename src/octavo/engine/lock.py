"""A lock that those who work long let others have in between."""

import threading
import time

_IDLE_SECONDS = 0.01
"""Somebody who has not come back for so long has nothing to do now."""


class SharedLock:
    """A reentrant lock, whose holder can stand back for a while where others wait."""

    def __init__(self) -> None:
        """Make it free."""
        self._lock = threading.RLock()
        self._num_waiting = 0
        self._used_at = 0.0

    def __enter__(self) -> None:
        self._num_waiting += 1  # a hint: that it may be off by one for a moment does no harm
        try:
            self._lock.acquire()
        finally:
            self._num_waiting -= 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()  # first: a Ctrl-C that comes behind it does no harm
        self._used_at = time.monotonic()

    def stand_back(self, seconds: float) -> None:
        """Let others have it for at most so long, if anybody waits; the caller holds it once.

        Whoever takes many short turns, as an answer that grows does, gets them one after another.
        """
        if not self._num_waiting:
            return
        end = time.monotonic() + seconds
        self._used_at = time.monotonic()
        self._lock.release()
        try:
            while (now := time.monotonic()) < end:
                if (
                    not self._num_waiting
                    and now - self._used_at > _IDLE_SECONDS
                    and self._is_free()
                ):
                    break
                time.sleep(0.001)
        finally:
            self._lock.acquire()

    def _is_free(self) -> bool:
        if free := self._lock.acquire(blocking=False):
            self._lock.release()
        return free
