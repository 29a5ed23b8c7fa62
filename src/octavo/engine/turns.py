"""Conversations that a local engine has read: their KV caches, found again by a common beginning.

Shapes: S slots of one prompt, D decoder width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.engine.base import Prompt
from octavo.engine.cache import GrowingCache

KEPT_TURNS = 2
"""Conversations kept; each holds layers x 2 x KV heads x head width x positions values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turn:
    """Everything that was read of one conversation, and its cache."""

    ids: Sequence[int]
    latents_SD: Tensor | None
    cache: GrowingCache


class Turns:
    """The latest conversations. Whoever calls holds the reader's lock."""

    def __init__(self, slot_id: int) -> None:
        """Keep nothing yet."""
        self._slot_id = slot_id
        self._kept: list[_Turn] = []

    @property
    def caches(self) -> list[GrowingCache]:
        """The caches that are kept."""
        return [turn.cache for turn in self._kept]

    def take(self, prompt: Prompt) -> tuple[GrowingCache, int]:
        """Return a cache of the prompt's beginning and how many positions it holds.

        A conversation that shares less than half of itself with the prompt is taken for another
        one: it is kept, and what is shared is copied.
        """
        # At least one token must be read, to have logits to continue from.
        most = len(prompt.input_ids) - 1
        shared = [min(most, self._common(turn, prompt)) for turn in self._kept]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or not shared[best]:
            return GrowingCache(), 0
        if 2 * shared[best] < len(self._kept[best].ids):
            cache = self._kept[best].cache.selected([0], 0)
        else:
            cache = self._kept.pop(best).cache
        return (cache, shared[best]) if cache.cut(shared[best]) else (GrowingCache(), 0)

    def keep(self, prompt: Prompt, answer: Sequence[int], cache: GrowingCache) -> None:
        """Keep the cache of a prompt and of as much of its answer as was read."""
        ids = [*prompt.input_ids, *answer]
        if cache.cut(len(ids)):
            self._kept.append(_Turn(ids=ids, latents_SD=prompt.latents, cache=cache))
            del self._kept[:-KEPT_TURNS]

    def forget(self) -> None:
        """Let go of all."""
        self._kept.clear()

    def _common(self, turn: _Turn, prompt: Prompt) -> int:
        """Return how many leading positions are the same, latents in slots included."""
        pairs = zip(turn.ids, prompt.input_ids, strict=False)
        most = min(len(turn.ids), len(prompt.input_ids))
        length = next((at for at, (old, new) in enumerate(pairs) if old != new), most)
        slots = [at for at in range(length) if prompt.input_ids[at] == self._slot_id]
        if not slots:
            return length
        assert turn.latents_SD is not None
        assert prompt.latents is not None
        old_SD, new_SD = (one[: len(slots)] for one in (turn.latents_SD, prompt.latents))
        differs_S = (old_SD != new_SD).any(1)
        return slots[int(differs_S.int().argmax())] if bool(differs_S.any()) else length
