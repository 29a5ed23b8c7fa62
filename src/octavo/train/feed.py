"""Bring a stage the micro-batches of each step, made ahead of time by other processes if wanted.

Which rows a step reads is a function of the step alone, however many processes make them.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from octavo.data.packing import ShardMaker
from octavo.data.rows import Row, Rows
from octavo.recipe import RunConfig
from octavo.train import parallel
from octavo.train.batch import MicroBatch, collate


class RowSource(Protocol):
    """Where a mixture's rows come from, numbered from 0 on without an end."""

    def __len__(self) -> int:
        """Return how many there are before any is read again."""

    def read(self, first: int, count: int) -> list[Row]:
        """Return rows `first` to `first + count`."""

    def id(self, index: int) -> str:
        """Return what messages call a row."""


class RowOrder:
    """The order in which a mixture's rows are read: each once, then all again in another order."""

    def __init__(self, num_rows: int, seed: str) -> None:
        """Shuffle `num_rows` rows by `seed`."""
        self._num_rows, self._seed = num_rows, seed
        self._epoch, self._order = -1, list[int]()

    def __getitem__(self, index: int) -> int:
        """Return the row that is read as number `index`; any index has one."""
        epoch, place = divmod(index, self._num_rows)
        if epoch != self._epoch:
            self._order = list(range(self._num_rows))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[place]


class PreparedRows:
    """Rows that lie on disk, in a shuffled order."""

    def __init__(self, rows: Rows, seed: str) -> None:
        """Shuffle `rows` by `seed`."""
        self.rows, self._order = rows, RowOrder(len(rows), seed)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    def read(self, first: int, count: int) -> list[Row]:
        """Read rows `first` to `first + count` of the order."""
        return [self.rows[self._order[index]] for index in range(first, first + count)]

    def id(self, index: int) -> str:
        """Return a row's place on disk."""
        name: str = self.rows[self._order[index]].id
        return name


class StreamedRows:
    """Rows that are made when they are asked for, and kept nowhere."""

    def __init__(self, maker: ShardMaker, mixture: str) -> None:
        """Let `maker` make rows of a mixture."""
        self.maker, self.mixture = maker, mixture

    def __len__(self) -> int:
        """Return how many rows the stages will ask for."""
        return self.maker.config.num_rows(self.mixture)

    def read(self, first: int, count: int) -> list[Row]:
        """Make the rows, a function of `first` and `count` alone."""
        rows = self.maker.rows(self.mixture, first, count)
        return [
            Row(self.id(first + place), row.ratio, row.examples) for place, row in enumerate(rows)
        ]

    def id(self, index: int) -> str:
        """Return a row's number in the stream."""
        return f"{self.mixture}:{index}"


class Feed(Dataset[list[MicroBatch]]):
    """The micro-batches of one process, by step."""

    def __init__(self, rows: RowSource, config: RunConfig, first_row: int, slot_id: int) -> None:
        """Read from row `first_row` on."""
        self.rows, self.config, self.first_row, self.slot_id = rows, config, first_row, slot_id
        self.rank, num_ranks = parallel.world()
        self.share = config.batch_rows // num_ranks
        self._ratios = config.served_ratios()

    def __getitem__(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step."""
        first = self.first_row + step * self.config.batch_rows + self.rank * self.share
        mine = [self._served(row) for row in self.rows.read(first, self.share)]
        size = self.config.micro_batch_rows
        return [
            collate(
                mine[i : i + size],
                row_tokens=self.config.data.row_tokens,
                slot_id=self.slot_id,
            )
            for i in range(0, len(mine), size)
        ]

    def steps(self, first: int, stop: int) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of steps in order, made in `data.workers` other processes."""
        workers = self.config.data.workers
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, stop),
            num_workers=workers,
            collate_fn=_as_it_is,
            # Documents are large, and a forked process shares them.
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=2 if workers else None,
        )
        return iter(loader)

    def row_ids(self, step: int, places: Sequence[int]) -> list[str]:
        """Return the ids of a step's rows, counted over all ranks."""
        first = self.first_row + step * self.config.batch_rows
        return [self.rows.id(first + place) for place in places]

    def _served(self, row: Row) -> Row:
        """Return a row at a ratio that the model serves: its own, or the next larger one."""
        if row.ratio in self._ratios:
            return row
        return Row(row.id, min(r for r in self._ratios if r >= row.ratio), row.examples)


def _as_it_is(batches: list[MicroBatch]) -> list[MicroBatch]:
    return batches
