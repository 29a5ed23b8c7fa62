"""Add to each latent an order-preserving sum of its block's own token embeddings.

Shapes: L tokens of one span, R tokens per block, K = ceil(L / R) latents, D decoder width.

    latent = adapter(pool(hidden)) + sum_j  w_j * e(x_j) / sqrt(R)

Token identity then reaches the decoder on a linear path from the first training step, and encoder
and adapter only add what the sum lacks. `w_j` is a learned vector of channel weights per position
in the block. It starts near one, so that a decoder that has never seen a latent reads a block as
its words laid over each other; a small fixed sign pattern tells the positions apart, and training
turns it into an order code. Fixed rotations in its place learned more slowly (docs/log.md). An
option of ours, which needs encoder and decoder to share a tokenizer; the published adapter cannot
express it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SUMMED_TOKENS = 4_096
"""Token embeddings held at once, at whole blocks: memory then does not grow with the text."""

SIGN_SCALE = 0.2
"""How far the starting weights of all positions but the first are from one."""


class BlockSum(nn.Module):
    """The order-preserving sum, for every ratio up to the widest one served."""

    def __init__(self, width: int, max_ratio: int) -> None:
        """Prepare channel weights for blocks of up to `max_ratio` tokens."""
        super().__init__()
        self.weight_RD = nn.Parameter(starting_weights(width, max_ratio))

    def forward(self, embeds_LD: Tensor, ratio: int) -> Tensor:
        """Return the sum `KD` of one span; a short last block sums the tokens it has."""
        missing = -len(embeds_LD) % ratio
        padded_LD = nn.functional.pad(embeds_LD, (0, 0, 0, missing))
        blocks_KRD = padded_LD.unflatten(0, (-1, ratio))
        return self.sum_blocks(blocks_KRD)

    def add_to(
        self, latents_KD: Tensor, ids_L: Tensor, ratio: int, embed: Callable[[Tensor], Tensor]
    ) -> None:
        """Add the sums of one span to its latents in place, a bounded number of tokens at once.

        `embed` looks up the decoder's embeddings of some ids.
        """
        blocks = -(-SUMMED_TOKENS // ratio)
        pieces = ids_L.split(blocks * ratio)
        for lifted, piece in zip(latents_KD.split(blocks), pieces, strict=True):
            lifted += self(embed(piece), ratio)

    def sum_blocks(self, blocks_KRD: Tensor) -> Tensor:
        """Return the sum `KD` of blocks whose missing tokens are zeros."""
        ratio = blocks_KRD.shape[1]
        weighted_KRD = blocks_KRD * self.weight_RD[:ratio].to(blocks_KRD.dtype)
        return weighted_KRD.sum(1) / ratio**0.5


def starting_weights(width: int, count: int) -> Tensor:
    """Return `RD` weights of one, plus or minus `SIGN_SCALE` from the second position on.

    Signs come from a congruential generator (Knuth's MMIX constants), the same on every platform.
    """
    state, rows = 1, [torch.ones(width)]
    for _ in range(count - 1):
        signs = []
        for _ in range(width):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            signs.append(1.0 if state >> 63 else -1.0)
        rows.append(1 + SIGN_SCALE * torch.tensor(signs))
    return torch.stack(rows)
