"""Batches of packed rows: labels, positions and slots, against one example at a time."""

import pytest

from octavo.data.examples import IGNORED, Example
from octavo.data.rows import Row
from octavo.errors import TrainingError
from octavo.train.batch import collate, lay_out

START, END, SLOT = 900, 901, 902


def example(first: int, *span_lengths: int, scored: int = 3) -> Example:
    """Spans of the given lengths, a given token after each, and scored tokens at the end."""
    ids: list[int] = []
    for place in range(len(span_lengths)):
        ids += [START, SLOT, END, first + place]
    given = len(ids)
    ids += range(first + 20, first + 20 + scored)
    spans = [list(range(1, length + 1)) for length in span_lengths]
    return Example("qa", ids, [False] * given + [True] * scored, spans, "test:0")


ROWS = [
    Row("main/0:0", 4, [example(10, 9, 4), example(30, 1)]),
    Row("main/0:1", 8, [example(50, 20)]),
    Row("main/0:2", 4, [example(70, scored=2), example(40, 3)]),
]


def test_a_packed_row_holds_its_examples_one_after_the_other_and_then_padding() -> None:
    batch = collate(ROWS, row_tokens=40, slot_id=SLOT)
    for index, row in enumerate(ROWS):
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for one in row.examples:
            its_ids, its_labels = lay_out(one, row.ratio, SLOT)
            assert len(its_ids) == one.length(row.ratio)
            ids += its_ids
            labels += its_labels
            positions += range(len(its_ids))
        rest = 40 - len(ids)
        assert batch.input_ids_BT[index].tolist() == ids + [0] * rest
        assert batch.labels_BT[index].tolist() == labels + [IGNORED] * rest
        assert batch.position_ids_BT[index].tolist() == positions + list(range(rest))
    assert batch.memory_lengths_M.tolist() == [9, 4, 1, 20, 3]
    assert batch.memory_ratios_M.tolist() == [4, 4, 4, 8, 4]
    for row, length in zip(batch.memory_ids_ML.tolist(), [9, 4, 1, 20, 3], strict=True):
        assert row[:length] == list(range(1, length + 1))
        assert not any(row[length:])


def test_a_span_has_a_slot_per_latent_at_the_rows_ratio() -> None:
    one = example(10, 9)
    for ratio, slots in ((2, 5), (4, 3), (9, 1), (16, 1)):
        ids, labels = lay_out(one, ratio, SLOT)
        assert ids.count(SLOT) == slots
        assert len(ids) == len(labels)


def test_the_first_token_of_an_example_is_never_a_target_of_the_one_before() -> None:
    eager = Example("pairs", [7, 8, 9], [True, True, True], [], "test:0")  # scored from the start
    batch = collate([Row("r", 4, [eager, eager, eager])], row_tokens=12, slot_id=SLOT)
    assert batch.labels_BT[0].tolist() == [IGNORED, 8, 9] * 3 + [IGNORED] * 3
    assert batch.num_scored == 6


def test_tags_and_slots_are_never_scored_and_counts_are_exact() -> None:
    batch = collate(ROWS, row_tokens=40, slot_id=SLOT)
    scored = batch.labels_BT != IGNORED
    for token in (START, END, SLOT):
        assert not (scored & (batch.input_ids_BT == token)).any()
    assert batch.num_scored == 3 + 3 + 3 + 1 + 3
    assert batch.num_positions == sum(e.length(r.ratio) for r in ROWS for e in r.examples)
    assert batch.num_latents == 3 + 1 + 1 + 3 + 1
    assert batch.num_source_tokens == 9 + 4 + 1 + 20 + 3


def test_rows_without_a_span_make_a_batch_too() -> None:
    plain = example(10, scored=4)
    batch = collate([Row("r", 4, [plain])], row_tokens=8, slot_id=SLOT)
    assert batch.memory_ids_ML.shape[0] == 0
    assert batch.num_latents == 0


def test_a_row_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match=r"row main/0:1 has \d+ positions at 8x"):
        collate(ROWS[1:2], row_tokens=8, slot_id=SLOT)
