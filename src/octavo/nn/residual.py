"""Add to each latent an order-preserving sum of its block's own token embeddings.

Shapes: L tokens of one span, R tokens per block, K = ceil(L / R) latents, D decoder width.

    latent = adapter(pool(hidden)) + gain * sum_j  w_j * Q_j e(x_j)

Token identity then reaches the decoder on a linear path from the first training step, and encoder
and adapter only add what the sum lacks. Q_j is a fixed signed permutation that tells position j
of a block from the others and costs one gather; Q_0 is the identity. An option of ours, which needs
encoder and decoder to share a tokenizer; the published adapter cannot express it.
"""

import torch
from torch import Tensor, nn


class BlockSum(nn.Module):
    """The order-preserving sum with one learned gain."""

    def __init__(self, width: int, max_ratio: int) -> None:
        """Prepare signed permutations for blocks of up to `max_ratio` tokens."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        order_RD, sign_RD = signed_permutations(width, max_ratio)
        self.register_buffer("order_RD", order_RD, persistent=False)
        self.register_buffer("sign_RD", sign_RD, persistent=False)
        self.order_RD: Tensor
        self.sign_RD: Tensor

    def forward(self, embeds_LD: Tensor, ratio: int) -> Tensor:
        """Return the sum `KD` of one span; a short last block sums the tokens it has."""
        missing = -len(embeds_LD) % ratio
        padded_LD = nn.functional.pad(embeds_LD, (0, 0, 0, missing))
        blocks_KRD = padded_LD.unflatten(0, (-1, ratio))
        order_KRD = self.order_RD[:ratio].expand(len(blocks_KRD), -1, -1)
        turned_KRD = blocks_KRD.gather(2, order_KRD) * self.sign_RD[:ratio].to(embeds_LD.dtype)
        return self.gain.to(embeds_LD.dtype) * turned_KRD.sum(1) / ratio**0.5


def signed_permutations(width: int, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` orders and signs of `width` channels; the first is the identity.

    Built from integers with a congruential generator (Knuth's MMIX constants), so that every
    platform and torch version builds the same ones: weights depend on them.
    """
    state, orders, signs = 1, [list(range(width))], [[1] * width]
    for _ in range(count - 1):
        keys = []
        for _ in range(width):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            keys.append(state >> 16)
        orders.append(sorted(range(width), key=keys.__getitem__))
        signs.append([1 if key & 1 else -1 for key in keys])
    return torch.tensor(orders[:count]), torch.tensor(signs[:count])
