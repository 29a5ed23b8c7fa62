"""Let the rows of many requests share one batch: they join and leave between steps.

One thread drives the engine. A row that is cancelled costs no step more; rows that wait are taken
in as soon as there is room.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.engine.base import Batch, Engine, Prompt, Sampling

MAX_TOTAL = 4
"""Rows are admitted while they take at most so many times the decoder's positions in all."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a row."""

    id: int
    logprob: float | None
    alternatives: Sequence[tuple[int, float]]
    reused: int
    """Leading positions of the prompt that were kept from before."""


Event = Token | Exception | None
"""A token, what made the row fail, or its end."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One row's place in the queue."""

    prompt: Prompt
    sampling: Sampling
    on_event: Callable[[Event], None]
    """Called where the scheduler delivers."""
    is_cancelled: bool = False
    num_tokens: int = 0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.prompt.input_ids) + self.sampling.max_new_tokens


class Scheduler:
    """A running batch and those who wait to join it."""

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[list[tuple[Ticket, Event]]], None],
        *,
        max_rows: int,
    ) -> None:
        """Start the thread. `deliver` is called in it, once a step, with all that happened."""
        self._engine, self._deliver, self._max_rows = engine, deliver, max_rows
        self._waiting: deque[Ticket] = deque()
        self._active: dict[int, Ticket] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="octavo-scheduler", daemon=True)
        self._thread.start()

    @property
    def num_active(self) -> int:
        """Rows that answer now."""
        return len(self._active)

    def submit(self, ticket: Ticket) -> None:
        """Let a row wait for its turn."""
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """End a row with the step that runs now."""
        with self._changed:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def close(self) -> None:
        """End all rows and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        batch: Batch | None = None
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    break
                for row in [row for row, one in self._active.items() if one.is_cancelled]:
                    assert batch is not None
                    del self._active[row]
                    batch.drop(row)
                joining = self._take_in()
            if not self._active and batch is not None:
                batch.close()
                batch = None
            try:
                for ticket in joining:
                    if batch is None:
                        batch, row = self._engine.start([ticket.prompt], ticket.sampling), 0
                    else:
                        row = batch.join(ticket.prompt, ticket.sampling)
                    self._active[row] = ticket
                if batch is not None:
                    self._step(batch)
            except Exception as error:  # of the engine: out of memory, for one
                failed = {*self._active.values(), *joining}
                self._active.clear()
                self._deliver([(ticket, error) for ticket in failed])
        if batch is not None:
            batch.close()

    def _take_in(self) -> list[Ticket]:
        """Take as many as there is room for from those who wait."""
        taken: list[Ticket] = []
        room = MAX_TOTAL * self._engine.max_positions - sum(t.size for t in self._active.values())
        while self._waiting and len(self._active) + len(taken) < self._max_rows:
            if self._waiting[0].size > room and (self._active or taken):
                break
            taken.append(self._waiting.popleft())
            room -= taken[-1].size
        return taken

    def _step(self, batch: Any) -> None:
        """Take one step and tell everybody what came of it."""
        tokens = next(batch, None)
        events: list[tuple[Ticket, Event]] = []
        for row, ticket in list(self._active.items()):
            token = None if tokens is None else tokens[row]
            if token is not None:
                found = batch.alternatives[row], batch.reused[row]
                events.append((ticket, Token(token, batch.logprobs[row], *found)))
                ticket.num_tokens += 1
            if token is None or ticket.num_tokens >= ticket.sampling.max_new_tokens:
                events.append((ticket, None))
                del self._active[row]
                batch.drop(row)
        self._deliver(events)
