"""Fold the hidden states of windows into one vector per block.

Shapes: B windows of equal length, L pooled tokens, R tokens per block, K = ceil(L / R), E width.

`eos` needs no function here: the encoder reads the K marker states as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_mean(hidden_BLE: Tensor, ratio: int) -> Tensor:
    """Average each block. A short last block averages the tokens it has, not padding."""
    num_full = hidden_BLE.shape[1] // ratio
    full_BLE, tail_BLE = hidden_BLE.tensor_split([num_full * ratio], dim=1)
    pooled_BKE = full_BLE.unflatten(1, (num_full, ratio)).mean(2)
    if tail_BLE.shape[1]:
        pooled_BKE = torch.cat([pooled_BKE, tail_BLE.mean(1, keepdim=True)], dim=1)
    return pooled_BKE


def pool_concat(hidden_BLE: Tensor, ratio: int) -> Tensor:
    """Lay the tokens of each block side by side. A short last block is filled with zeros."""
    missing = -hidden_BLE.shape[1] % ratio
    padded_BLE = F.pad(hidden_BLE, (0, 0, 0, missing))
    return padded_BLE.unflatten(1, (-1, ratio)).flatten(2)
