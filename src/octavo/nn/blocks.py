"""Find the blocks of many spans at once, so that a training step has no work of its own per span.

Shapes: W stretches of tokens, K blocks of all of them, R tokens per block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """All blocks of one ratio."""

    ratio: int
    place_K: Tensor
    """Which blocks they are, counted over all stretches."""
    index_KR: Tensor
    """Where their tokens are; a short block names its last token again."""
    is_token_KR: Tensor
    """False where a short block has no token."""


def runs(starts_W: Tensor, lengths_W: Tensor) -> Tensor:
    """Return `start, start + 1, ...` of each stretch, one after the other."""
    before_W = lengths_W.cumsum(0) - lengths_W
    offsets = torch.arange(int(lengths_W.sum())) - before_W.repeat_interleave(lengths_W)
    return starts_W.repeat_interleave(lengths_W) + offsets


def find_blocks(starts_W: Tensor, lengths_W: Tensor, ratios_W: Tensor) -> list[Blocks]:
    """Cut stretches that begin at `starts_W` into blocks; the last of each may be short."""
    counts_W = -(-lengths_W // ratios_W)
    ratio_K = ratios_W.repeat_interleave(counts_W)
    first_K = runs(torch.zeros_like(counts_W), counts_W) * ratio_K
    size_K = torch.minimum(ratio_K, lengths_W.repeat_interleave(counts_W) - first_K)
    first_K = first_K + starts_W.repeat_interleave(counts_W)
    found = []
    for ratio in ratios_W.unique().tolist():
        place_K = (ratio_K == ratio).nonzero()[:, 0]
        offset_KR = torch.arange(ratio).expand(len(place_K), ratio)
        last_K1 = (size_K[place_K] - 1)[:, None]
        index_KR = first_K[place_K, None] + torch.minimum(offset_KR, last_K1)
        found.append(Blocks(ratio, place_K, index_KR, offset_KR <= last_K1))
    return found


def fold(blocks: Sequence[Blocks], one_ratio: Callable[[Blocks], Tensor]) -> Tensor:
    """Return a vector per block, in the order of the blocks; `one_ratio` makes those of a ratio."""
    parts = [one_ratio(some) for some in blocks]
    if len(parts) == 1:
        return parts[0]
    order_K = torch.cat([some.place_K for some in blocks]).argsort()
    return torch.cat(parts).index_select(0, order_K.to(parts[0].device))
