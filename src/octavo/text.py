"""Turn tokens into text as they come, never showing half a character or half a stop string."""

from collections.abc import Sequence
from typing import Any


class TextStream:
    """The text of one answer, growing token by token."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        """Decode with `tokenizer`; the first of `stops` to appear ends the text before it."""
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._settled, self._window = 0, 0  # ids before `_settled` are text; `_window` starts anew
        self._decoded = ""
        self._shown = 0
        self.num_tokens = 0
        self.is_finished = False
        self.was_stopped = False

    @property
    def text(self) -> str:
        """What has been shown so far."""
        return self._decoded[: self._shown]

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        if self.is_finished:
            return ""
        self.num_tokens += 1
        self._ids.append(token)
        # Decode from a little before the new token: what came earlier is settled, and spaces
        # between tokens come out as they would in the whole.
        before = self._decode(self._ids[self._window : self._settled])
        after = self._decode(self._ids[self._window :])
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self._decoded += after[len(before) :]
            self._window, self._settled = self._settled, len(self._ids)
        return self._show(is_last=False)

    def finish(self) -> str:
        """End the text and return what was held back."""
        if self.is_finished:
            return ""
        before = self._decode(self._ids[self._window : self._settled])
        self._decoded += self._decode(self._ids[self._window :])[len(before) :]
        self._settled = self._window = len(self._ids)
        return self._show(is_last=True)

    def _show(self, *, is_last: bool) -> str:
        """Return new text up to a stop string, holding back what could be the start of one."""
        limit = len(self._decoded)
        found = [at for stop in self._stops if (at := self._decoded.find(stop)) >= 0]
        if found:
            limit, self.is_finished, self.was_stopped = min(found), True, True
        elif is_last:
            self.is_finished = True
        else:
            limit -= max((_overlap(self._decoded, stop) for stop in self._stops), default=0)
        piece = self._decoded[self._shown : limit]
        self._shown = max(self._shown, limit)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` could begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
