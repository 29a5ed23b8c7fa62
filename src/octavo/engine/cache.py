"""The KV cache of one or more rows: it grows in place, is cut back, and is laid beside others.

Shapes: B rows, H KV heads, T positions, W head width.

transformers' own `DynamicCache` copies every layer at every step. Here a layer has spare positions
at its end, and only a layer that has used them up is copied.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

MIN_SPARE = 64
"""Positions beyond those that are needed, at least; and a quarter of them, if that is more."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, in buffers `BHTW` of which the first positions are used."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states of new positions and return those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < stop:
            spare = max(MIN_SPARE, stop // 4)
            self._buffers = (
                _grown(self.keys, key_states, start, stop + spare),
                _grown(self.values, value_states, start, stop + spare),
            )
        keys, values = self._buffers
        keys[..., start:stop, :] = key_states
        values[..., start:stop, :] = value_states
        # Both at once and last: who is interrupted before has only written into spare positions.
        self.keys, self.values = keys[..., :stop, :], values[..., :stop, :]
        return self.keys, self.values

    def cut(self, length: int) -> bool:
        """Keep the first positions only; return whether there are so many."""
        if not self.is_initialized or self.get_seq_length() < length:
            return False
        self.keys, self.values = self.keys[..., :length, :], self.values[..., :length, :]
        return True

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Take keys and values `BHTW` as they are, without spare positions."""
        self.lazy_initialization(keys, values)
        self._buffers = (keys, values)
        self.keys, self.values = keys, values


class GrowingCache(DynamicCache):  # type: ignore[misc]
    """A cache of growing layers, for decoders whose every layer is attention."""

    def __init__(self) -> None:
        """Make layers as the decoder asks for them."""
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer

    def cut(self, length: int) -> bool:
        """Keep the first positions of all layers; return whether every layer has so many.

        A pass that was interrupted leaves some layers longer than others, which is no harm, but
        where one is too short the cache is of no use any more.
        """
        return bool(self.layers) and all([layer.cut(length) for layer in self.layers])

    def repeated(self, num_rows: int) -> "GrowingCache":
        """Return a cache that holds one row so many times; they share memory until they grow."""
        made = GrowingCache()
        for layer in self.layers:
            copy = GrowingLayer()
            if layer.is_initialized:
                copy.lazy_initialization(layer.keys, layer.values)
                copy.keys = layer.keys.expand(num_rows, -1, -1, -1)
                copy.values = layer.values.expand(num_rows, -1, -1, -1)
            made.layers.append(copy)
        return made

    def selected(self, rows: Sequence[int], first: int) -> "GrowingCache":
        """Return a copy of some rows from a position on."""
        made = GrowingCache()
        for layer in self.layers:
            copy = GrowingLayer()
            if layer.is_initialized:
                index = torch.tensor(list(rows), device=layer.keys.device)
                copy.fill(*(t[..., first:, :][index] for t in (layer.keys, layer.values)))
            made.layers.append(copy)
        return made


def side_by_side(rows: Sequence[tuple[GrowingCache, int, int, int]], spare: int) -> GrowingCache:
    """Lay rows of different lengths side by side, filled up on the left.

    Each is given as a cache, the row in it, and which of its positions count, `[start, stop)`.
    """
    longest = max(stop - start for _, _, start, stop in rows)
    made = GrowingCache()
    for index, like in enumerate(rows[0][0].layers):
        layer = GrowingLayer()
        made.layers.append(layer)
        if not like.is_initialized:
            continue
        buffers = []
        for name in ("keys", "values"):
            _, heads, _, width = getattr(like, name).shape
            shape = (len(rows), heads, longest + spare, width)
            buffer = getattr(like, name).new_zeros(shape)
            for at, (cache, row, start, stop) in enumerate(rows):
                states = getattr(cache.layers[index], name)[row, :, start:stop]
                buffer[at, :, longest - (stop - start) : longest] = states
            buffers.append(buffer)
        layer.fill(*buffers)
        layer.cut(longest)
    return made


def _grown(used: Tensor, new: Tensor, length: int, room: int) -> Tensor:
    """Return a larger buffer that begins with the positions in use."""
    rows, heads, _, width = new.shape
    buffer = new.new_empty((rows, heads, room, width))
    if length:
        buffer[..., :length, :] = used[..., :length, :]
    return buffer
