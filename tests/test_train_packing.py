"""Packing: no row is too long, nothing is lost or doubled, and little room is wasted."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from octavo.data import packing
from octavo.data.examples import Example
from octavo.data.packing import pack
from octavo.data.rows import Row
from octavo.errors import TrainingError

START, SLOT, END = 1, 2, 3
RATIOS = {2: 1.0, 4: 2.0, 16: 1.0}


def example(rng: random.Random, number: int, bounds: tuple[int, int] = (16, 128)) -> Example:
    """Return a text with up to two spans, all lengths log-uniform, that knows its number."""
    low, high = bounds
    text = [number % 250 + 4] * int(low * (high / low) ** rng.random())
    spans = [
        [number % 250 + 4] * int(low * (high / low) ** rng.random())
        for _ in range(rng.randint(0, 2))
    ]
    ids = [*text, *[START, SLOT, END] * len(spans)]
    return Example("kind", ids, [False] * len(ids), spans, f"s:{number}")


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [example(rng, number) for number in range(count)]


def slow_positions(found: Sequence[Example], ratio: int) -> int:
    """Lay examples out position by position, one slot for every block of a span."""
    positions = 0
    for one in found:
        for token in one.ids:
            positions += token != SLOT
        for span in one.spans:
            positions += len([span[i : i + ratio] for i in range(0, len(span), ratio)])
    return positions


def test_no_row_is_longer_than_its_budget_at_its_ratio_or_a_larger_one() -> None:
    rows = list(pack(iter(examples(400)), random.Random(1), RATIOS, 256))
    for row in rows:
        for ratio in range(row.ratio, 40):
            assert 0 < slow_positions(row.examples, ratio) <= 256


@pytest.mark.parametrize("open_rows", [1, 3, 32])
def test_nothing_is_lost_or_doubled(open_rows: int) -> None:
    given = examples(300)
    rows = pack(iter(given), random.Random(1), RATIOS, 256, open_rows=open_rows)
    origins = [one.origin for row in rows for one in row.examples]
    assert sorted(origins) == sorted(one.origin for one in given)


def test_little_room_is_wasted_and_more_open_rows_waste_less() -> None:
    def efficiency(open_rows: int) -> float:
        rows = list(pack(iter(examples(3000)), random.Random(1), RATIOS, 512, open_rows=open_rows))
        return sum(slow_positions(row.examples, row.ratio) for row in rows) / (512 * len(rows))

    assert efficiency(32) > 0.93
    assert efficiency(32) > efficiency(1)


def test_an_example_goes_where_it_leaves_the_least_room() -> None:
    def text(length: int) -> Example:
        return Example("kind", [9] * length, [False] * length, [], "s:0")

    # 60 and 70 open a row each; 25 would fit both and fills the second better; 40 fits the first.
    given = [text(length) for length in (60, 70, 25, 40)]
    rows = list(pack(iter(given), random.Random(0), {4: 1.0}, 100))
    assert [[len(e.ids) for e in row.examples] for row in rows] == [[60, 40], [70, 25]]


def test_rows_have_the_ratios_of_the_weights() -> None:
    rows = list(pack(iter(examples(3000)), random.Random(1), {**RATIOS, 8: 0.0}, 128))
    share = Counter(row.ratio for row in rows)
    assert set(share) == set(RATIOS)
    assert 0.4 < share[4] / len(rows) < 0.6


def test_so_many_rows_are_made_and_no_more_and_they_are_full() -> None:
    def endless() -> Iterator[Example]:
        rng, number = random.Random(0), 0
        while True:
            yield example(rng, number)
            number += 1

    rows = list(pack(endless(), random.Random(1), RATIOS, 512, num_rows=64))
    assert len(rows) == 64
    assert sum(slow_positions(row.examples, row.ratio) for row in rows) > 0.85 * 64 * 512
    assert len(list(pack(endless(), random.Random(1), RATIOS, 512, num_rows=1))) == 1


def test_the_same_examples_and_seed_make_the_same_rows() -> None:
    def rows(seed: int) -> list[Row]:
        return list(pack(iter(examples(200)), random.Random(seed), RATIOS, 256))

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_an_example_that_fits_at_large_ratios_only_opens_no_row_of_a_small_one() -> None:
    span = Example("kind", [START, SLOT, END, 9], [False] * 4, [[9] * 400], "s:0")
    rows = list(pack(iter([span] * 20), random.Random(0), RATIOS, 60))
    assert {row.ratio for row in rows} == {16}
    assert sum(len(row.examples) for row in rows) == 20


def test_too_long_examples_are_left_out_and_counted() -> None:
    long = Example("long", [9] * 300, [False] * 300, [], "s:1")
    dropped: Counter[str] = Counter()
    rows = list(
        pack(iter([long, *examples(5), long]), random.Random(0), RATIOS, 256, dropped=dropped)
    )
    assert dropped == {"long": 2}
    assert sum(len(row.examples) for row in rows) == 5


def test_all_examples_too_long_is_an_error_that_names_the_longest() -> None:
    given = [Example("chat", [9] * n, [False] * n, [], f"book:{n}") for n in (300, 310, 305)]
    with pytest.raises(TrainingError, match=r"chat from book:310, takes 310 .*row_tokens is 256"):
        list(pack(iter(given), random.Random(0), RATIOS, 256))


def test_a_kind_that_is_always_too_long_is_an_error_though_others_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "MAX_TOO_LONG", 7)
    long = Example("chat", [9] * 300, [False] * 300, [], "book:1")
    given = [one for pair in zip(examples(7), [long] * 7, strict=True) for one in pair]
    with pytest.raises(TrainingError, match="7 chat examples in a row are longer than a row"):
        list(pack(iter(given), random.Random(0), RATIOS, 256))


def test_no_examples_make_no_rows() -> None:
    assert list(pack(iter([]), random.Random(0), RATIOS, 256)) == []
