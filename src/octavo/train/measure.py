"""Measure a compressor on held-out text: loss and accuracy with latents, raw text and nothing.

Every number comes with a 95% bootstrap interval over examples, and `gain` is the paired difference
to reading nothing: a compressor whose gain's interval holds zero has shown nothing.

Shapes: E examples, S bootstrap samples.
"""

from collections.abc import Sequence
from typing import Any

import torch

from octavo.nn import LCLM
from octavo.train.data import Example, Examples
from octavo.train.loss import View, score

VIEWS: tuple[View, ...] = ("latents", "raw", "none")


@torch.no_grad()
def measure(
    model: LCLM, examples: Sequence[Example], *, views: Sequence[View] = VIEWS, batch: int = 8
) -> dict[str, Any]:
    """Return loss, accuracy and gain over `none` of one kind of examples at one ratio."""
    per_view: dict[View, list[tuple[float, float, int]]] = {}
    for view in views:
        rows: list[tuple[float, float, int]] = []
        for first in range(0, len(examples), batch):
            members = examples[first : first + batch]
            scored = score(model, members, view)
            for index in range(len(members)):
                is_its = scored.example_P == index
                loss, hits = scored.loss_P[is_its].sum(), scored.is_hit_P[is_its].sum()
                rows.append((float(loss), float(hits), int(is_its.sum())))
        per_view[view] = rows
    result: dict[str, Any] = {
        view: {
            "loss": _ratio_with_interval([(loss, count) for loss, _, count in rows]),
            "accuracy": _ratio_with_interval([(hits, count) for _, hits, count in rows]),
        }
        for view, rows in per_view.items()
    }
    if "none" in per_view and "latents" in per_view:
        pairs = list(zip(per_view["none"], per_view["latents"], strict=True))
        result["gain"] = {
            "loss": _ratio_with_interval([(n[0] - z[0], n[2]) for n, z in pairs]),
            "accuracy": _ratio_with_interval([(z[1] - n[1], n[2]) for n, z in pairs]),
        }
    result["examples"] = len(examples)
    return result


def take(examples: Examples, kind: str, ratio: int, count: int) -> list[Example]:
    """Return the first `count` examples of a stream that holds only this kind and ratio."""
    found = [examples[index] for index in range(count)]
    assert all(example.kind == kind and example.ratio == ratio for example in found)
    return found


def _ratio_with_interval(rows: Sequence[tuple[float, int]], samples: int = 1000) -> list[float]:
    """Return `[mean, low, high]` of sum / count, resampling examples with a fixed seed."""
    values_E2 = torch.tensor(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn_SE = torch.randint(len(rows), (samples, len(rows)), generator=generator)
    value_S, count_S = values_E2[drawn_SE].sum(1).unbind(1)
    means = (value_S / count_S).sort().values.tolist()
    value, count = values_E2.sum(0).tolist()
    low, high = means[int(0.025 * samples)], means[int(0.975 * samples)]
    return [round(number, 4) for number in (value / count, low, high)]
