"""Measure a compressor on held-out examples: with latents, raw text, nothing, and wrong latents.

Every number is `[mean, low, high]`, a 95% bootstrap interval over examples. `gain` is the paired
difference to reading nothing: a compressor whose gain's interval holds zero has shown nothing.
`retention` is the part of what raw text gains over nothing that the latents keep. `shuffled` reads
the latents of another example, and must do no better than nothing.

Shapes: E examples, B rows, T positions, M spans, P scored positions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from octavo.data.examples import Example
from octavo.data.rows import Row
from octavo.errors import TrainingError
from octavo.nn import LCLM
from octavo.statistics import estimate
from octavo.train.batch import collate

View = Literal["latents", "raw", "none", "shuffled"]
VIEWS: tuple[View, ...] = ("latents", "raw", "none", "shuffled")


class Tally(NamedTuple):
    """What one example got: summed loss and hits, how many tokens, and whether all were hits."""

    loss: float
    hits: float
    tokens: float
    is_exact: float


Baselines = dict[View, list[Tally]]
"""What raw text and nothing got, which no ratio changes."""


@torch.no_grad()
def measure(
    model: LCLM,
    examples: Sequence[Example],
    *,
    ratio: int,
    views: Sequence[View] = VIEWS,
    batch: int = 8,
    baselines: Baselines | None = None,
) -> dict[str, Any]:
    """Return loss, accuracy and exact match of held-out examples in each view, gain and retention.

    `exact` is the share of examples whose scored tokens are all what greedy decoding takes, which
    is the share it answers word for word. The number of forward passes depends on nothing but the
    number of examples, `views` and `batch`: ranks that share a sharded model all take part.
    `baselines` keeps what no ratio changes (`raw`, `none`) for the next call with the same examples
    and model. `shuffled` needs two examples, and is left out for a single one. Raises
    `TrainingError` for nothing to measure, nothing scored, and for `raw` without `raw_spans`.
    """
    if not examples:
        raise TrainingError("there are no examples to measure; give at least one held-out example")
    if len(examples) == 1:
        views = [view for view in views if view != "shuffled"]
    known = {} if baselines is None else baselines
    tallies = {
        view: known.get(view) or _tally(model, examples, view, ratio, batch) for view in views
    }
    known.update({view: tallies[view] for view in ("raw", "none") if view in tallies})
    result: dict[str, Any] = {view: _scores(rows) for view, rows in tallies.items()}
    if "none" in tallies and "latents" in tallies:
        nothing, latents = _values(tallies["none"]), _values(tallies["latents"])
        gains = {name: _gain(name, latents[name], nothing[name]) for name in nothing}
        result["gain"] = {name: _interval(gain) for name, gain in gains.items()}
        if "raw" in tallies:
            raw = _values(tallies["raw"])
            result["retention"] = {
                name: _interval(_over(gain, possible))
                for name, gain in gains.items()
                if _interval(possible := _gain(name, raw[name], nothing[name]))[1] > 0
            }
    result["examples"] = len(examples)
    return result


def _tally(
    model: LCLM,
    examples: Sequence[Example],
    view: View,
    ratio: int,
    batch: int,
) -> list[Tally]:
    """Score every example in one view; examples of like length share a forward pass."""
    if view == "shuffled":
        examples = shuffled(examples)
    slot_id = model.memory_token_id
    rows = [Row("", ratio, [_seen(example, view, slot_id)]) for example in examples]
    lengths = [row.examples[0].length(ratio) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    device = next(model.adapter.parameters()).device
    found: dict[int, Tally] = {}
    for first in range(0, len(order), batch):
        members = order[first : first + batch]
        longest = lengths[members[-1]]
        read = collate([rows[i] for i in members], row_tokens=longest, slot_id=slot_id)
        inputs = read.inputs(device)
        del inputs["position_ids_BT"]  # one example a row: nothing is packed
        scores = model.score(**inputs)
        loss_P, is_hit_P, row_P = (tensor.cpu() for tensor in scores)
        for place, index in enumerate(members):
            is_its = row_P == place
            hits, tokens = float(is_hit_P[is_its].sum()), float(is_its.sum())
            if not tokens:
                raise TrainingError(
                    f"the example from {examples[index].origin} has no scored token; leave it out"
                )
            loss = float(loss_P[is_its].double().sum())
            found[index] = Tally(loss, hits, tokens, float(hits == tokens))
    return [found[index] for index in range(len(rows))]


def _seen(example: Example, view: View, slot_id: int) -> Example:
    """Return an example as a view reads it: each slot kept, replaced by raw text, or left out."""
    if view in ("latents", "shuffled"):
        return example
    if view == "raw" and len(example.raw_spans) != len(example.spans):
        raise TrainingError(
            f"the example from {example.origin} lacks the raw text of its spans; prepare held-out "
            "examples with raw_spans, or measure without the raw view"
        )
    raw_spans = iter(example.raw_spans)
    ids: list[int] = []
    is_scored: list[bool] = []
    for token, is_its in zip(example.ids, example.is_scored, strict=True):
        tokens = [token]
        if token == slot_id:
            tokens = next(raw_spans) if view == "raw" else []
        ids += tokens
        is_scored += [is_its] * len(tokens)
    return replace(example, ids=ids, is_scored=is_scored, spans=[])


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """Give every example the spans of one from elsewhere, cut or repeated to its own lengths.

    The giver is half the set away, or the next after it with another origin: neighbours are often
    cut from one document, whose latents would be no wrong ones.
    """
    count = len(examples)
    result = []
    for index, example in enumerate(examples):
        others = [examples[(index + count // 2 + step) % count] for step in range(count)]
        givers = [other for other in others if other is not example and other.spans]
        elsewhere = [other for other in givers if other.origin != example.origin]
        given = (elsewhere or givers or [example])[0].spans
        spans = [
            _fit(given[place % len(given)], len(own)) for place, own in enumerate(example.spans)
        ]
        result.append(replace(example, spans=spans))
    return result


def _fit(span: list[int], length: int) -> list[int]:
    return (span * (1 + length // len(span)))[:length]


# -- numbers with intervals: every value is a sum over examples, divided by another ----------------


def _values(rows: Sequence[Tally]) -> dict[str, Tensor]:
    """Return, for each number, an `E2` tensor of what each example adds to both its sums."""
    table = torch.tensor(rows, dtype=torch.float64)
    loss, hits, count, is_exact = table.unbind(1)
    return {
        "loss": torch.stack([loss, count], 1),
        "accuracy": torch.stack([hits, count], 1),
        "exact": torch.stack([is_exact, torch.ones_like(count)], 1),
    }


def _scores(rows: Sequence[Tally]) -> dict[str, list[float]]:
    return {name: _interval(values_E2) for name, values_E2 in _values(rows).items()}


def _gain(name: str, values_E2: Tensor, nothing_E2: Tensor) -> Tensor:
    """Return how much better a view is than reading nothing, example by example."""
    sign = -1 if name == "loss" else 1
    return torch.stack([sign * (values_E2 - nothing_E2)[:, 0], nothing_E2[:, 1]], 1)


def _over(gain_E2: Tensor, possible_E2: Tensor) -> Tensor:
    """Return the sums of one gain over another's; both count the same tokens."""
    return torch.stack([gain_E2[:, 0], possible_E2[:, 0]], 1)


def _interval(values_E2: Tensor) -> list[float]:
    """Return `[mean, low, high]`; a single example is its own interval."""
    found = estimate([values_E2.numpy()])
    ends = (found.value if end is None else end for end in (found.low, found.high))
    return [round(number, 4) for number in (found.value, *ends)]
