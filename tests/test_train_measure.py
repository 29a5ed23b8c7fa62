"""What is measured on held-out examples, against plain loops over one example at a time."""

import dataclasses
import random
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT
from reference import scored_losses

import octavo
from octavo.data.examples import Example
from octavo.errors import TrainingError
from octavo.nn import LCLM
from octavo.train.measure import Baselines, View, measure, shuffled


@pytest.fixture(scope="module")
def lclm() -> LCLM:
    made: LCLM = octavo.load(CHECKPOINT, device="cpu").lclm
    return made


def example(lclm: LCLM, number: int, *, origin: str | None = None, spans: int = 2) -> Example:
    """Make up an example that scores the words after its spans."""
    draw = random.Random(number)
    start, end, slot = lclm.config.memory_token_ids

    def words(count: int) -> list[int]:
        return [draw.randrange(300) for _ in range(count)]

    ids, is_scored, read, raw = words(2), [False, False], [], []
    for _ in range(spans):
        text = words(draw.randint(0, 4))
        ids += [start, slot, end, *text]
        is_scored += [False] * 3 + [True] * len(text)
        read.append(words(draw.randint(1, 30)))
        raw.append(words(draw.randint(1, 30)))
    target = words(3)
    return Example(
        "interleaved", ids + target, is_scored + [True] * 3, read, origin or f"t:{number}", raw
    )


def examples(lclm: LCLM, count: int = 5) -> list[Example]:
    return [example(lclm, number) for number in range(count)]


def with_text(lclm: LCLM, one: Example, texts: list[list[int]]) -> Example:
    """Put plain tokens, or nothing, in the places of the slots."""
    ids: list[int] = []
    is_scored: list[bool] = []
    left = list(texts)
    for token, is_target in zip(one.ids, one.is_scored, strict=True):
        is_slot = token == lclm.memory_token_id
        tokens = left.pop(0) if is_slot else [token]
        ids += tokens
        is_scored += [is_target] * len(tokens)
    return dataclasses.replace(one, ids=ids, is_scored=is_scored, spans=[])


def mean_loss(lclm: LCLM, held_out: list[Example]) -> float:
    with torch.no_grad():
        losses = [loss for one in held_out for loss in scored_losses(lclm, one, 4)]
    return sum(losses) / len(losses)


def test_each_view_is_what_reading_one_example_at_a_time_gives(lclm: LCLM) -> None:
    held_out = examples(lclm)
    views = {
        "latents": held_out,
        "raw": [with_text(lclm, one, one.raw_spans) for one in held_out],
        "none": [with_text(lclm, one, [[] for _ in one.spans]) for one in held_out],
        "shuffled": shuffled(held_out),
    }
    found = measure(lclm, held_out, ratio=4, batch=2)
    for view, twins in views.items():
        assert found[view]["loss"][0] == pytest.approx(mean_loss(lclm, twins), abs=2e-4), view
    assert found["examples"] == 5
    gain = found["none"]["loss"][0] - found["latents"]["loss"][0]
    assert found["gain"]["loss"][0] == pytest.approx(gain, abs=2e-4)


def greedy(lclm: LCLM, one: Example, count: int) -> Example:
    """Replace the last `count` tokens by what greedy decoding answers."""
    ids = one.ids[:-count]
    for _ in range(count):
        with torch.no_grad():
            spans = iter(one.spans)
            expanded: list[int] = []
            for token in ids:
                is_slot = token == lclm.memory_token_id
                expanded += [token] * (-(-len(next(spans)) // 4) if is_slot else 1)
            latents = torch.cat(lclm.encode(one.spans, 4))
            logits = lclm(input_ids=torch.tensor([expanded]), latents=latents).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    is_scored = [False] * (len(ids) - count) + [True] * count
    return dataclasses.replace(one, ids=ids, is_scored=is_scored)


def test_exact_is_the_share_that_greedy_decoding_answers_word_for_word(lclm: LCLM) -> None:
    held_out = [greedy(lclm, one, 3) for one in examples(lclm, 4)]
    assert measure(lclm, held_out, ratio=4)["latents"]["exact"] == [1.0, 1.0, 1.0]
    spoilt = held_out[0]
    ids = [*spoilt.ids[:-2], (spoilt.ids[-2] + 1) % 300, spoilt.ids[-1]]
    held_out[0] = dataclasses.replace(spoilt, ids=ids)
    found = measure(lclm, held_out, ratio=4)["latents"]
    assert found["exact"][0] == 0.75
    assert 0.75 < found["accuracy"][0] < 1
    assert found["exact"][1] < 0.75 < found["exact"][2]


def test_batches_and_order_change_no_number(lclm: LCLM) -> None:
    held_out = examples(lclm)
    one, other = (
        measure(lclm, held_out, ratio=4, batch=1),
        measure(lclm, held_out, ratio=4, batch=4),
    )
    for view in ("latents", "raw", "none", "shuffled", "gain"):
        for name, interval in one[view].items():
            assert other[view][name] == pytest.approx(interval, abs=2e-4)
    views: tuple[View, ...] = ("latents", "raw", "none")
    turned = measure(lclm, held_out[::-1], ratio=4, views=views)
    for view in views:
        assert turned[view]["loss"][0] == pytest.approx(one[view]["loss"][0], abs=2e-4)


def test_the_number_of_forward_passes_depends_on_the_number_of_examples_only(
    lclm: LCLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = lclm.score

    def score(**inputs: Any) -> Any:
        calls.append(len(inputs["input_ids_BT"]))
        return plain(**inputs)

    monkeypatch.setattr(lclm, "score", score)
    counts = []
    for held_out in (
        examples(lclm),
        [example(lclm, number, spans=0) for number in range(5)],
        [example(lclm, number, spans=3, origin="same") for number in range(5)],
    ):
        calls.clear()
        measure(lclm, held_out, ratio=4, batch=2)
        counts.append(len(calls))
    assert counts == [12, 12, 12]


def test_raw_text_and_nothing_are_read_once_for_all_ratios(
    lclm: LCLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = examples(lclm)
    monkeypatch.setattr(lclm, "extension", dataclasses.replace(lclm.extension, ratios=(8,)))
    alone = [measure(lclm, held_out, ratio=ratio) for ratio in (4, 8)]
    calls: list[int] = []
    score = LCLM.score

    def counted(self: LCLM, *args: Any, **inputs: Any) -> Any:
        calls.append(1)
        return score(self, *args, **inputs)

    monkeypatch.setattr(LCLM, "score", counted)
    baselines: Baselines = {}
    shared = [measure(lclm, held_out, ratio=ratio, baselines=baselines) for ratio in (4, 8)]
    assert shared == alone
    assert len(calls) == 4 + 2  # four views, then latents and shuffled


def test_retention_is_the_kept_part_of_what_raw_text_gains(
    lclm: LCLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that gets 1.0 nats with latents, 0.5 with raw text and 3.0 with nothing; views come
    # in this order.
    losses = iter([1.0, 0.5, 3.0])

    def score(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        is_scored_BT = inputs["labels_BT"][:, 1:] != -100
        row_P = is_scored_BT.nonzero()[:, 0]
        return torch.full((len(row_P),), next(losses)), torch.zeros(len(row_P)).bool(), row_P

    monkeypatch.setattr(lclm, "score", score)
    found = measure(lclm, examples(lclm), ratio=4, views=("latents", "raw", "none"))
    assert found["retention"] == {"loss": [0.8, 0.8, 0.8]}  # 2.0 of 2.5; accuracy gained nothing
    assert found["gain"]["loss"] == [2.0, 2.0, 2.0]


def test_shuffled_examples_read_another_documents_spans(lclm: LCLM) -> None:
    held_out = [example(lclm, number, origin=f"t:{number // 3}") for number in range(6)]
    for own, other in zip(held_out, shuffled(held_out), strict=True):
        assert [len(span) for span in other.spans] == [len(span) for span in own.spans]
        assert other.ids == own.ids
        givers = [
            giver.origin
            for giver in held_out
            if all(
                set(span) <= set(given)
                for span, given in zip(other.spans, giver.spans, strict=True)
            )
        ]
        assert givers
        assert own.origin not in givers


def test_a_single_example_has_no_other_to_be_shuffled_with(lclm: LCLM) -> None:
    found = measure(lclm, examples(lclm, 1), ratio=4)
    assert "shuffled" not in found
    assert found["examples"] == 1


def test_intervals_hold_the_mean_and_shrink_with_more_examples(lclm: LCLM) -> None:
    few, many = (
        measure(lclm, examples(lclm, n), ratio=4, views=["none"])["none"]["loss"] for n in (4, 40)
    )
    for mean, low, high in (few, many):
        assert low < mean < high
    assert many[2] - many[1] < few[2] - few[1]


def test_what_cannot_be_measured_is_named(lclm: LCLM) -> None:
    with pytest.raises(TrainingError, match="no examples to measure"):
        measure(lclm, [], ratio=4)
    bare = dataclasses.replace(example(lclm, 1), raw_spans=[])
    with pytest.raises(TrainingError, match="t:1 lacks the raw text"):
        measure(lclm, [bare, bare], ratio=4)
    silent = dataclasses.replace(bare, is_scored=[False] * len(bare.ids))
    with pytest.raises(TrainingError, match="t:1 has no scored token"):
        measure(lclm, [silent, silent], ratio=4, views=["latents"])
