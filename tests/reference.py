"""Slow, obvious twins of what octavo does fast."""

import math
from typing import Any

import torch


def scored_losses(lclm: Any, example: Any, ratio: int) -> list[float]:
    """Return the loss of every scored token of one example: alone, full logits, one at a time."""
    embeddings = lclm.get_input_embeddings()
    spans = iter(example.spans)
    embeds, tokens, is_scored = [], [], []
    for token, is_target in zip(example.ids, example.is_scored, strict=True):
        if token == lclm.memory_token_id:
            latents = lclm.encode([next(spans)], ratio)[0]
            embeds += list(latents)
            tokens += [token] * len(latents)
            is_scored += [False] * len(latents)
        else:
            embeds.append(embeddings(torch.tensor(token)))
            tokens.append(token)
            is_scored.append(is_target)
    assert not list(spans)
    logits = lclm.decoder(inputs_embeds=torch.stack(embeds)[None]).logits[0].tolist()
    losses = []
    for position in range(1, len(tokens)):
        if is_scored[position]:
            before = logits[position - 1]
            largest = max(before)
            total = sum(math.exp(value - largest) for value in before)
            losses.append(largest + math.log(total) - before[tokens[position]])
    return losses
