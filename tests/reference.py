"""Slow, obvious twins of what octavo does fast."""

import math
from typing import Any

import torch

IGNORED = -100


def scored_losses(lclm: Any, example: Any) -> list[float]:
    """Return the loss of every scored token of one example: full logits, one token at a time."""
    embeddings = lclm.get_input_embeddings()
    latents = [latent for span in example.spans for latent in lclm.encode([span], example.ratio)[0]]
    rows = []
    for token in example.input_ids:
        if token == lclm.memory_token_id:
            rows.append(latents.pop(0))
        else:
            rows.append(embeddings(torch.tensor(token)))
    assert not latents
    logits = lclm.decoder(inputs_embeds=torch.stack(rows)[None]).logits[0].tolist()
    losses = []
    for position, label in enumerate(example.labels):
        if label == IGNORED or position == 0:
            continue
        before = logits[position - 1]
        largest = max(before)
        total = sum(math.exp(value - largest) for value in before)
        losses.append(largest + math.log(total) - before[label])
    return losses
