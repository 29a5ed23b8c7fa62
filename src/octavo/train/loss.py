"""Score a batch of examples: next-token loss at the positions outside spans, and nowhere else.

Shapes: B examples, T positions, M spans, L source tokens, P scored positions, D width,
V vocabulary.

The output layer costs as much as eight decoder layers of a small model, so logits are computed at
scored positions only. The same examples can be read with latents, with the raw text in the spans'
places, or with the spans left out: the two baselines every number needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.nn import LCLM
from octavo.train.data import IGNORED, Example

View = Literal["latents", "raw", "none"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Loss and hits of every scored token, and the example each belongs to."""

    loss_P: Tensor
    is_hit_P: Tensor
    example_P: Tensor


def score(model: LCLM, examples: Sequence[Example], view: View = "latents") -> Scored:
    """Return loss (nats) and greedy hits of the scored tokens of `examples`.

    `raw` puts the span's own tokens in the place of its slots; `none` leaves the span empty.
    """
    rows = [_row(example, view, model.memory_token_id) for example in examples]
    device = next(model.adapter.parameters()).device
    ids_BT = _pad([ids for ids, _ in rows], 0).to(device)
    labels_BT = _pad([labels for _, labels in rows], IGNORED).to(device)
    latents_SD = None
    if view == "latents" and any(example.spans for example in examples):
        spans = [torch.tensor(span) for example in examples for span in example.spans]
        memory_ids_ML = torch.nn.utils.rnn.pad_sequence(spans, batch_first=True).to(device)
        lengths_M = torch.tensor([len(span) for span in spans])
        ratios_M = torch.tensor([e.ratio for e in examples for _ in e.spans])
        latents_SD = model.span_latents(memory_ids_ML, lengths_M, ratios_M)
    # Padded on the right under a causal mask: no scored position ever sees the padding.
    hidden_BTD = model.get_decoder()(
        inputs_embeds=model.embed(ids_BT, latents_SD), use_cache=False
    ).last_hidden_state
    is_scored_BT = labels_BT[:, 1:] != IGNORED
    target_P = labels_BT[:, 1:][is_scored_BT]
    logits_PV = model.get_output_embeddings()(hidden_BTD[:, :-1][is_scored_BT]).float()
    return Scored(
        loss_P=F.cross_entropy(logits_PV, target_P, reduction="none"),
        is_hit_P=logits_PV.argmax(-1) == target_P,
        example_P=is_scored_BT.nonzero()[:, 0],
    )


def _row(example: Example, view: View, slot_id: int) -> tuple[list[int], list[int]]:
    """Return ids and labels with each run of slots kept, replaced by raw tokens, or left out."""
    if view == "latents":
        return example.input_ids, example.labels
    ids: list[int] = []
    labels: list[int] = []
    raw_spans = iter(example.raw_spans)
    previous = None
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if token != slot_id:
            ids.append(token)
            labels.append(label)
        elif previous != slot_id and view == "raw":
            raw = next(raw_spans)
            ids += raw
            labels += [IGNORED] * len(raw)
        previous = token
    return ids, labels


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
