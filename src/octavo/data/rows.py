"""Packed rows on disk: shards that are read by row, however large they are.

    FOLDER/manifest.json            what was prepared from what, and every shard's rows and sha256
    FOLDER/MIXTURE/00000.safetensors, …
    FOLDER/held_out.safetensors     examples to measure on, not packed

A shard is flat tensors with the ends of what they hold, as in a sparse matrix: row 3 is examples
`row_ends[2]` to `row_ends[3]`, whose tokens are `ids[example_ends[a - 1]:example_ends[b - 1]]`.
Nothing is pickled, nothing knows a ratio but `ratios`, the one that each row was packed for.
"""

import bisect
import hashlib
import itertools
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from octavo.data.examples import Example
from octavo.errors import TrainingError
from octavo.files import write_file

FORMAT = "octavo-rows"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HELD_OUT = "held_out.safetensors"
_INT32, _INT64, _BYTE = "i", "q", "B"
_DTYPES = {_INT32: torch.int32, _INT64: torch.int64, _BYTE: torch.uint8}
_TENSORS = {
    **{"ids": _INT32, "is_scored": _BYTE, "source_ids": _INT32, "raw_ids": _INT32},
    **{"example_ends": _INT64, "span_ends": _INT64, "raw_ends": _INT64},
    **{"example_span_ends": _INT64, "row_ends": _INT64, "ratios": _INT32},
    **{"kinds": _BYTE, "origins": _BYTE, "origin_ends": _INT64},
}
"""Every tensor of a shard; `raw_*` are empty but for held-out examples."""
_AGAIN = "run `octavo data prepare` again"
MAX_OPEN = 64
"""Shards kept open: a run reads rows in random order."""


@dataclass(frozen=True, slots=True)
class Row:
    """Examples that are read as one sequence."""

    id: str
    """`MIXTURE/shard:number`; empty for a row that is not on disk yet."""
    ratio: int
    """What it was packed for: it fits at this ratio and at every larger one."""
    examples: list[Example]


def write_shard(
    path: Path, rows: Iterable[Row], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write rows, whole or not at all, and return what the shard says about itself.

    That is `about`, looked at when all rows have passed, and `counts_of` them. Rows may come from a
    generator: no more than their numbers are held in memory.
    """
    tensors = {name: array(code) for name, code in _TENSORS.items()}
    kinds: dict[str, int] = {}
    counts = Counts()
    for row in rows:
        counts.add(row)
        tensors["ratios"].append(row.ratio)
        for example in row.examples:
            _append(tensors, example, kinds.setdefault(example.kind, len(kinds)))
        tensors["row_ends"].append(len(tensors["kinds"]))
    if tensors["raw_ends"] and len(tensors["raw_ends"]) != len(tensors["span_ends"]):
        raise ValueError("some examples have raw spans, others lack them")
    summary = {"format": FORMAT, "version": FORMAT_VERSION, "kinds": list(kinds)}
    summary |= {**(about or {}), **counts.to_dict()}
    flat = {name: _tensor(values) for name, values in tensors.items()}
    # One key: the order of several is not the same in every version of safetensors.
    metadata = {"octavo": json.dumps(summary)}
    write_file(path, lambda temporary: save_file(flat, temporary, metadata))
    return summary


def _append(tensors: dict[str, "array[int]"], example: Example, kind: int) -> None:
    tensors["ids"].extend(example.ids)
    tensors["is_scored"].extend(example.is_scored)
    tensors["example_ends"].append(len(tensors["ids"]))
    for span in example.spans:
        tensors["source_ids"].extend(span)
        tensors["span_ends"].append(len(tensors["source_ids"]))
    for span in example.raw_spans:
        tensors["raw_ids"].extend(span)
        tensors["raw_ends"].append(len(tensors["raw_ids"]))
    tensors["example_span_ends"].append(len(tensors["span_ends"]))
    tensors["kinds"].append(kind)
    tensors["origins"].extend(example.origin.encode("utf-8"))
    tensors["origin_ends"].append(len(tensors["origins"]))


def _tensor(values: "array[int]") -> Tensor:
    dtype = _DTYPES[values.typecode]
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


class Counts:
    """What rows hold, by kind, by source and by ratio."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.ratios: Counter[str] = Counter()
        self.kinds: dict[str, Counter[str]] = {}
        self.sources: dict[str, Counter[str]] = {}

    def add(self, row: Row) -> None:
        """Count one row; positions are those at the ratio it is packed for."""
        self.num_rows += 1
        self.ratios[str(row.ratio)] += 1
        for example in row.examples:
            counts = {
                "examples": 1,
                "positions": example.length(row.ratio),
                "source_tokens": sum(map(len, example.spans)),
                "scored_tokens": sum(example.is_scored),
            }
            source = example.origin.rpartition(":")[0] or example.origin
            self.kinds.setdefault(example.kind, Counter()).update(counts)
            self.sources.setdefault(source, Counter()).update(counts)

    def merge(self, summary: Mapping[str, Any]) -> None:
        """Add the counts of a shard's summary."""
        self.num_rows += summary["rows"]
        self.ratios.update(summary["ratios"])
        for name in ("kinds", "sources"):
            own: dict[str, Counter[str]] = getattr(self, name)
            for key, counts in summary[f"by_{name.removesuffix('s')}"].items():
                own.setdefault(key, Counter()).update(counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts in an order that does not depend on how they were gathered."""
        return {
            "rows": self.num_rows,
            "ratios": {ratio: self.ratios[ratio] for ratio in sorted(self.ratios, key=int)},
            "by_kind": {name: dict(self.kinds[name]) for name in sorted(self.kinds)},
            "by_source": {name: dict(self.sources[name]) for name in sorted(self.sources)},
        }


class Shard:
    """One file of rows, opened; reading a row touches that row's bytes only."""

    def __init__(self, path: Path) -> None:
        """Raise `TrainingError` for a file that is missing, damaged or of another format."""
        self.path = path
        try:
            self._file = safe_open(path, "pt")
            about = json.loads((self._file.metadata() or {}).get("octavo", "{}"))
            missing = sorted(_TENSORS.keys() - set(self._file.keys()))
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
        _check_format(path, about)
        if missing:
            raise _damaged(path, f"it has no {missing[0]}")
        self.about: dict[str, Any] = about

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.about["rows"])

    def row(self, index: int) -> tuple[int, list[Example]]:
        """Return a row's ratio and its examples."""
        try:
            first, last = self._ends("row_ends", index, index + 1)
            return int(self._get("ratios", index, index + 1)[0]), self._examples(first, last)
        except (SafetensorError, IndexError, ValueError) as error:
            raise _damaged(self.path, f"row {index}: {error}") from error

    def _get(self, name: str, start: int, stop: int) -> Tensor:
        values: Tensor = self._file.get_slice(name)[start:stop]
        return values

    def _ends(self, name: str, start: int, stop: int) -> list[int]:
        """Return where items `start` to `stop` begin, and where the last of them ends."""
        ends: list[int] = self._get(name, max(0, start - 1), stop).tolist()
        return ends if start else [0, *ends]

    def _lists(self, ends_name: str, name: str, start: int, stop: int) -> list[list[int]]:
        """Return items `start` to `stop` of a ragged tensor."""
        if start == stop:
            return []
        ends = self._ends(ends_name, start, stop)
        flat: list[int] = self._get(name, ends[0], ends[-1]).tolist()
        return [flat[a - ends[0] : b - ends[0]] for a, b in itertools.pairwise(ends)]

    def _examples(self, start: int, stop: int) -> list[Example]:
        ids = self._lists("example_ends", "ids", start, stop)
        is_scored = self._lists("example_ends", "is_scored", start, stop)
        origins = self._lists("origin_ends", "origins", start, stop)
        kinds = self._get("kinds", start, stop).tolist()
        of_spans = self._ends("example_span_ends", start, stop)
        first, last = of_spans[0], of_spans[-1]
        spans = self._lists("span_ends", "source_ids", first, last)
        has_raw = self._file.get_slice("raw_ends").get_shape()[0] > 0
        raw = self._lists("raw_ends", "raw_ids", first, last) if has_raw else []
        return [
            Example(
                self.about["kinds"][kinds[i]],
                ids[i],
                [bool(value) for value in is_scored[i]],
                spans[of_spans[i] - first : of_spans[i + 1] - first],
                bytes(origins[i]).decode("utf-8"),
                raw[of_spans[i] - first : of_spans[i + 1] - first],
            )
            for i in range(stop - start)
        ]


class Rows(Sequence[Row]):
    """The prepared rows of one mixture, read one at a time; may be forked, and pickles itself."""

    def __init__(self, folder: Path, mixture: str) -> None:
        """Raise `TrainingError` unless every shard of the manifest is there at its full size."""
        self.folder, self.mixture = folder, mixture
        self.manifest = read_manifest(folder)
        known = self.manifest["mixtures"]
        if mixture not in known:
            raise TrainingError(
                f"{folder} has no rows of the mixture {mixture!r}, only of {', '.join(known)}; "
                "prepare rows by this recipe, or let the stage read one of these"
            )
        self._shards: list[dict[str, Any]] = known[mixture]["shards"]
        for shard in self._shards:
            _check_size(folder, shard)
        self._stops = list(itertools.accumulate(shard["rows"] for shard in self._shards))
        self._open: dict[int, Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the files itself."""
        return Rows, (self.folder, self.mixture)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index: Any) -> Any:
        """Return row number `index`."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = bisect.bisect_right(self._stops, index)
        place = index - (self._stops[number - 1] if number else 0)
        ratio, examples = self._shard(number).row(place)
        return Row(f"{self.mixture}/{number:05d}:{place}", ratio, examples)

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            while len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            listed = self._shards[number]
            shard = Shard(self.folder / listed["file"])
            if len(shard) != listed["rows"]:
                raise _damaged(shard.path, f"{len(shard)} rows, expected {listed['rows']}")
            self._open[number] = shard
        return self._open[number]

    def verify(self) -> None:
        """Read every shard; raise `TrainingError` where a sha256 is not the manifest's."""
        for shard in self._shards:
            path = self.folder / shard["file"]
            if sha256_of(path) != shard["sha256"]:
                raise _damaged(path, "its sha256 is not the manifest's")


def read_held_out(folder: Path) -> dict[str, list[Example]]:
    """Return the examples to measure on, by kind."""
    listed = read_manifest(folder)["held_out"]
    _check_size(folder, listed)
    shard = Shard(folder / listed["file"])
    rows = [shard.row(index)[1] for index in range(len(shard))]
    return {examples[0].kind: examples for examples in rows}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a folder of prepared rows says about itself."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingError(
            f"{folder} holds no finished rows (it has no {MANIFEST}); {_AGAIN} with -o {folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    about = manifest if isinstance(manifest, dict) else {}
    _check_format(path, about)
    return about


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's size and sha256, as the manifest has them."""
    return {"bytes": os.stat(path).st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_format(path: Path, about: Mapping[str, Any]) -> None:
    found, version = about.get("format"), about.get("version")
    if (found, version) != (FORMAT, FORMAT_VERSION):
        raise TrainingError(
            f"{path} is of format {found!r}, version {version!r}; this octavo reads {FORMAT}, "
            f"version {FORMAT_VERSION}: {_AGAIN}, into a new folder"
        )


def _check_size(folder: Path, listed: Mapping[str, Any]) -> None:
    path = folder / listed["file"]
    try:
        size = path.stat().st_size
    except OSError as error:
        raise TrainingError(f"{path} is missing; {_AGAIN}") from error
    if size != listed["bytes"]:
        raise _damaged(path, f"{size} bytes, expected {listed['bytes']}")


def _damaged(path: Path, reason: str) -> TrainingError:
    return TrainingError(f"{path} is damaged ({reason}); remove it and {_AGAIN}")
