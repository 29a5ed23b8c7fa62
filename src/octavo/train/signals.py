"""Turn SIGINT and SIGTERM into a request that the training loop answers between two steps."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Stop:
    """Whether the run was asked to stop; as a context manager it handles the signals.

    The first signal asks; a second SIGINT interrupts at once, saving nothing more.
    """

    def __init__(self, on_ask: Callable[[], None] = lambda: None) -> None:
        """Start without a request; the first signal calls `on_ask`, in its handler."""
        self.is_asked, self._on_ask = False, on_ask
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # signals arrive nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before or signal.SIG_DFL)  # type: ignore[arg-type]
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.is_asked:
            self.is_asked = True
            self._on_ask()
