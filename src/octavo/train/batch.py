"""Lay packed rows out as the tensors of one forward pass.

Shapes: B rows, T positions of a row, M spans of the batch, L source tokens of the longest span.

Three rules keep the examples of a row apart: positions restart at every example, which is how the
decoder tells packed examples from each other; the first token of an example is never a target of
the one before; and the padding at the end is an example of its own. Slots are laid out here, at the
row's ratio, so that rows on disk know no ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.data.examples import IGNORED, Example
from octavo.data.rows import Row
from octavo.errors import TrainingError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass, and what they count for."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    position_ids_BT: Tensor
    memory_ids_ML: Tensor
    memory_lengths_M: Tensor
    memory_ratios_M: Tensor
    row_ids: list[str]
    num_scored: int
    """Tokens that have a loss."""
    num_positions: int
    """Decoder positions without padding."""
    num_source_tokens: int
    num_latents: int

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return what `LCLM.score` takes, on a device."""
        return {
            "input_ids_BT": self.input_ids_BT.to(device),
            "labels_BT": self.labels_BT.to(device),
            "position_ids_BT": self.position_ids_BT.to(device),
            "memory_ids_ML": self.memory_ids_ML.to(device),
            "memory_lengths_M": self.memory_lengths_M,
            "memory_ratios_M": self.memory_ratios_M,
        }


def collate(rows: Sequence[Row], *, row_tokens: int, slot_id: int) -> MicroBatch:
    """Return the batch of `rows`, each padded to `row_tokens` positions.

    Raises `TrainingError` for a row that does not fit at its ratio.
    """
    ids_BT = torch.zeros(len(rows), row_tokens, dtype=torch.long)
    labels_BT = torch.full((len(rows), row_tokens), IGNORED)
    positions_BT = torch.arange(row_tokens).repeat(len(rows), 1)
    spans: list[list[int]] = []
    ratios: list[int] = []
    num_positions = 0
    for index, row in enumerate(rows):
        ids: list[int] = []
        labels: list[int] = []
        starts: list[int] = []
        for example in row.examples:
            starts.append(len(ids))
            example_ids, example_labels = lay_out(example, row.ratio, slot_id)
            ids += example_ids
            labels += example_labels
            spans += example.spans
            ratios += [row.ratio] * len(example.spans)
        if len(ids) > row_tokens:
            raise TrainingError(
                f"row {row.id} has {len(ids)} positions at {row.ratio}x, but rows may have "
                f"{row_tokens}; prepare the rows again, or raise data.row_tokens"
            )
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        labels_BT[index, : len(ids)] = torch.tensor(labels)
        for start in [*starts, len(ids)]:
            positions_BT[index, start:] = torch.arange(row_tokens - start)
        num_positions += len(ids)
    lengths_M = torch.tensor([len(span) for span in spans], dtype=torch.long)
    memory_ids_ML = torch.zeros(len(spans), int(lengths_M.max()) if spans else 0, dtype=torch.long)
    for index, span in enumerate(spans):
        memory_ids_ML[index, : len(span)] = torch.tensor(span)
    return MicroBatch(
        input_ids_BT=ids_BT,
        labels_BT=labels_BT,
        position_ids_BT=positions_BT,
        memory_ids_ML=memory_ids_ML,
        memory_lengths_M=lengths_M,
        memory_ratios_M=torch.tensor(ratios, dtype=torch.long),
        row_ids=[row.id for row in rows],
        num_scored=int((labels_BT[:, 1:] != IGNORED).sum()),
        num_positions=num_positions,
        num_source_tokens=int(lengths_M.sum()),
        num_latents=int((ids_BT == slot_id).sum()),
    )


def lay_out(example: Example, ratio: int, slot_id: int) -> tuple[list[int], list[int]]:
    """Return an example's ids with one slot per latent, and its labels."""
    ids: list[int] = []
    labels: list[int] = []
    spans = iter(example.spans)
    for token, is_scored in zip(example.ids, example.is_scored, strict=True):
        if token == slot_id:
            num_latents = -(-len(next(spans)) // ratio)
            ids += [token] * num_latents
            labels += [IGNORED] * num_latents
        else:
            ids.append(token)
            labels.append(token if is_scored else IGNORED)
    labels[0] = IGNORED
    return ids, labels
