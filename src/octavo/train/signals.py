"""Turn SIGINT and SIGTERM into a request that the training loop answers between two steps."""

import signal
import threading
from types import FrameType, TracebackType


class Stop:
    """Whether somebody asked the run to stop. As a context manager it listens to the signals.

    The first signal asks; a second SIGINT interrupts at once, saving nothing more.
    """

    def __init__(self) -> None:
        """Start with nobody asking."""
        self.is_asked = False
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
        self.is_asked = True
