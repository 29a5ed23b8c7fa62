"""Draw the examples of a mixture and pack them, of many lengths, into rows of one length.

An example goes to the open row that it leaves the least room in (best fit). Every row is opened
with a ratio of its own, at which its examples are measured: at a larger ratio they only shrink.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.data.builders import BUILDERS, check_kinds
from octavo.data.examples import Example, ExampleMaker
from octavo.data.rows import Row, Shard, describe_file, write_shard
from octavo.data.sources import Library
from octavo.errors import TrainingError
from octavo.prompt import PromptEncoder
from octavo.recipe import MixtureSection, RunConfig

OPEN_ROWS = 32
"""Rows being filled at a time. With lengths from a 64th of a row up, more fill them no better."""
MAX_TOO_LONG = 1000
"""Examples of a kind in a row that are too long before the kind is given up."""
MAX_ATTEMPTS = 1000
"""Draws of a kind in a row that make no example before it is given up: many texts are short."""
_PROBE_ROWS = 4
"""Rows made to learn how large rows are."""


@dataclass(slots=True)
class _Open:
    """A row being filled."""

    ratio: int
    room: int
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example, length: int) -> None:
        self.examples.append(example)
        self.room -= length

    def close(self) -> Row:
        return Row("", self.ratio, self.examples)


def pack(
    examples: Iterator[Example],
    rng: random.Random,
    ratios: Mapping[int, float],
    row_tokens: int,
    *,
    num_rows: int | None = None,
    open_rows: int = OPEN_ROWS,
    dropped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Yield rows of at most `row_tokens` positions, each at a ratio drawn by the weights `ratios`.

    A ratio at which the example in hand does not fit is not drawn for the row it opens. Examples
    that fit at no ratio are left out and counted in `dropped`, by kind. Without `num_rows`, all
    others are in exactly one row. With it, so many rows are filled, and packing ends when the last
    is open and an eighth as many examples have found no room: these few are left out.
    Raises `TrainingError` when every example, or very many of a kind in a row, are too long.
    """
    weights = {ratio: weight for ratio, weight in ratios.items() if weight > 0}
    rows: list[_Open] = []
    too_long = _TooLong(row_tokens, dropped if dropped is not None else Counter())
    num_opened = num_misfits = 0
    for example in examples:
        lengths = {ratio: example.length(ratio) for ratio in weights}
        fitting = [ratio for ratio, length in lengths.items() if length <= row_tokens]
        if not fitting:
            too_long.count(example, min(lengths.values()))
            continue
        too_long.reset(example.kind)
        candidates = [row for row in rows if lengths[row.ratio] <= row.room]
        if candidates:
            best = min(candidates, key=lambda row: row.room - lengths[row.ratio])
        elif num_rows is not None and num_opened == num_rows:
            num_misfits += 1
            if num_misfits > min(open_rows, num_rows // 8):
                break
            continue
        else:
            if len(rows) == open_rows:
                fullest = min(rows, key=lambda row: row.room)
                rows.remove(fullest)
                yield fullest.close()
            best = _Open(rng.choices(fitting, [weights[r] for r in fitting])[0], row_tokens)
            rows.append(best)
            num_opened += 1
        best.add(example, lengths[best.ratio])
        if not best.room:
            rows.remove(best)
            yield best.close()
    if not num_opened:
        too_long.refuse()
    for row in rows:
        yield row.close()


class _TooLong:
    """The examples that fit no row."""

    def __init__(self, row_tokens: int, dropped: Counter[str]) -> None:
        self._row_tokens, self._dropped = row_tokens, dropped
        self._in_a_row: Counter[str] = Counter()
        self._longest: dict[str, tuple[int, Example]] = {}

    def count(self, example: Example, length: int) -> None:
        kind = example.kind
        self._dropped[kind] += 1
        self._in_a_row[kind] += 1
        if kind not in self._longest or self._longest[kind][0] < length:
            self._longest[kind] = (length, example)
        if self._in_a_row[kind] >= MAX_TOO_LONG:
            self._raise(f"{MAX_TOO_LONG} {kind} examples in a row are", *self._longest[kind])

    def reset(self, kind: str) -> None:
        self._in_a_row[kind] = 0

    def refuse(self) -> None:
        """Raise when there were examples, but all too long."""
        if self._longest:
            longest = max(self._longest.values(), key=lambda found: found[0])
            self._raise("every example is", *longest)

    def _raise(self, which: str, length: int, example: Example) -> None:
        raise TrainingError(
            f"{which} longer than a row: the longest, {example.kind} from {example.origin}, takes "
            f"{length} positions, but data.row_tokens is {self._row_tokens}; raise it, or lower "
            "the lengths of the mixture"
        )


def never() -> bool:
    """Return False: nothing asks to stop. A lambda could not be pickled for other processes."""
    return False


@dataclass(slots=True)
class ShardMaker:
    """Make any shard of a recipe: a function of its mixture and number, and of what is here."""

    config: RunConfig
    library: Library
    prompts: PromptEncoder
    out: Path
    plan: str
    is_stopped: Callable[[], bool] = never
    """Asked before every example; when true, making a shard ends in KeyboardInterrupt."""

    def num_shards(self, name: str) -> int:
        """Return how many shards a mixture has."""
        return -(-self.config.num_rows(name) // self.config.data.rows_per_shard)

    def wanted_rows(self, name: str, number: int) -> int:
        """Return how many rows a shard is to have."""
        size = self.config.data.rows_per_shard
        return min(size, self.config.num_rows(name) - number * size)

    def file(self, name: str, number: int) -> str:
        """Return where a shard lies in the folder."""
        return f"{name}/{number:05d}.safetensors"

    def is_there(self, name: str, number: int) -> bool:
        """Whether a whole shard of this plan lies there."""
        try:
            return bool(Shard(self.out / self.file(name, number)).about["plan"] == self.plan)
        except (TrainingError, KeyError):
            return False

    def make(self, name: str, number: int) -> dict[str, Any]:
        """Write a shard unless it is there; return what the manifest says of it, and its counts."""
        file = self.file(name, number)
        if self.is_there(name, number):
            summary = Shard(self.out / file).about
        else:
            dropped: Counter[str] = Counter()
            rows = self.rows(name, number, self.wanted_rows(name, number), dropped)
            summary = write_shard(self.out / file, rows, {"plan": self.plan, "dropped": dropped})
        shard = {"file": file, "rows": summary["rows"], **describe_file(self.out / file)}
        return {"shard": shard, "summary": summary}

    def rows(
        self, name: str, number: int, num_rows: int, dropped: Counter[str] | None = None
    ) -> Iterator[Row]:
        """Yield the rows of a shard."""
        rng = random.Random(f"{self.config.seed}/{name}/{number}")
        ratios = {int(ratio): w for ratio, w in self.config.mixture(name).ratios.items()}
        return pack(
            self._examples(rng, name, number),
            rng,
            {r: ratios[r] for r in sorted(ratios)} or dict.fromkeys(self.config.served_ratios(), 1),
            self.config.data.row_tokens,
            num_rows=num_rows,
            dropped=dropped,
        )

    def _examples(self, rng: random.Random, name: str, number: int) -> Iterator[Example]:
        """Yield examples by the mixture's weights until every kind has reached its cap."""
        mixture, maker = self.config.mixture(name), ExampleMaker(self.prompts)
        # In one order, whatever the recipe's: draws depend on it.
        weights = {kind: w for kind in BUILDERS if (w := mixture.weights.get(kind, 0)) > 0}
        num_shards = self.num_shards(name)
        left = {
            kind: cap // num_shards + (number < cap % num_shards)
            for kind, cap in mixture.caps.items()
        }
        while kinds := [kind for kind in weights if left.get(kind, 1) > 0]:
            kind = rng.choices(kinds, [weights[kind] for kind in kinds])[0]
            yield self._example(rng, kind, maker, mixture)
            if kind in left:
                left[kind] -= 1

    def _example(
        self, rng: random.Random, kind: str, maker: ExampleMaker, mixture: MixtureSection
    ) -> Example:
        for _ in range(MAX_ATTEMPTS):
            if self.is_stopped():
                raise KeyboardInterrupt
            if example := BUILDERS[kind](rng, self.library, maker, mixture):
                return example
        raise TrainingError(
            f"{MAX_ATTEMPTS} draws in a row made no {kind} example: the texts are too short for "
            "the lengths of the mixture, or too long; change its *_tokens, or the texts"
        )

    def probe(self, name: str) -> float:
        """Return about how many bytes a row of a mixture takes, from a few.

        Raises `TrainingError` for a kind that the texts cannot make, or that fits no row.
        """
        mixture, rng = self.config.mixture(name), random.Random(f"{self.config.seed}/{name}/probe")
        check_kinds(mixture, self.library)
        for kind in (kind for kind, weight in mixture.weights.items() if weight > 0):
            self._example(rng, kind, ExampleMaker(self.prompts), mixture)
        rows = list(self.rows(name, 0, min(_PROBE_ROWS, self.wanted_rows(name, 0))))
        examples = [example for row in rows for example in row.examples]
        num_bytes = sum(5 * len(e.ids) + 4 * sum(map(len, e.spans)) for e in examples)
        return num_bytes / max(1, len(rows))
