"""Turn hidden states into the loss and greedy hit of each scored token, a bounded part at a time.

Shapes: P scored positions, D decoder width, V vocabulary.

Logits of a long row are larger than everything else in a training step: 16,384 positions of
Qwen3's vocabulary are 10 GB in fp32, and their gradient as much again. So the output layer runs
over chunks, and when there is more than one, each is computed again in the backward pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The label of a position that is not scored, as Hugging Face has it."""

SCORE_CHUNK = 4096
"""Scored positions whose logits exist at a time: 2.5 GB in fp32 for Qwen3's vocabulary."""

Head = Callable[[Tensor], Tensor]


class Scores(NamedTuple):
    """What `LCLM.score` returns, in the order of rows and positions.

    A tuple, and no dataclass: FSDP2 finds the tensors whose gradient starts the backward pass by
    looking into the containers that torch knows.
    """

    loss_P: Tensor
    """Nats, fp32."""
    is_hit_P: Tensor
    """Whether the token is the one that greedy decoding takes."""
    row_P: Tensor
    """The row of the batch each position is from."""


def score_hidden(head: Head, hidden_PD: Tensor, target_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return `loss_P` and `is_hit_P` of the output layer `head` over `hidden_PD`."""
    # Also with nothing scored there is one chunk, an empty one: every rank runs the output layer.
    chunks = list(zip(hidden_PD.split(SCORE_CHUNK), target_P.split(SCORE_CHUNK), strict=True))
    is_recomputed = len(chunks) > 1 and torch.is_grad_enabled()
    losses, hits = [], []
    for hidden_CD, target_C in chunks:
        if is_recomputed:
            loss, is_hit = checkpoint(_score_chunk, head, hidden_CD, target_C, use_reentrant=False)
        else:
            loss, is_hit = _score_chunk(head, hidden_CD, target_C)
        losses.append(loss)
        hits.append(is_hit)
    return torch.cat(losses), torch.cat(hits)


def _score_chunk(head: Head, hidden_CD: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    logits_CV = head(hidden_CD).float()
    return F.cross_entropy(logits_CV, target_C, reduction="none"), logits_CV.argmax(-1) == target_C
