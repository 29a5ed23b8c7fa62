"""Rows on disk: what is written is read back, row by row, and damage is one clear error."""

import json
import multiprocessing
import pickle
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from octavo.data.examples import Example
from octavo.data.rows import (
    FORMAT,
    FORMAT_VERSION,
    HELD_OUT,
    MANIFEST,
    Row,
    Rows,
    Shard,
    describe_file,
    read_held_out,
    write_shard,
)
from octavo.errors import TrainingError
from octavo.files import WriteError


def example(rng: random.Random, *, has_raw: bool = False) -> Example:
    spans = [
        [rng.randrange(50_000) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(0, 3))
    ]
    ids = [rng.randrange(150_000) for _ in range(rng.randint(2, 12))]
    is_scored = [False, *(rng.random() < 0.5 for _ in ids[1:])]
    raw = [[token + 1 for token in span] * 2 for span in spans] if has_raw else []
    origin = f"bücher:{rng.randrange(10_000)}"
    return Example(rng.choice(["chat", "qa"]), ids, is_scored, spans, origin, raw)


def some_rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        Row("", rng.choice([2, 16]), [example(rng) for _ in range(rng.randint(1, 4))])
        for _ in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of a mixture, and held-out examples."""
    (tmp_path / "main").mkdir()
    shards = []
    for number, count in enumerate((5, 3)):
        file = f"main/{number:05d}.safetensors"
        summary = write_shard(tmp_path / file, some_rows(count, number), {"plan": "p"})
        shards.append({"file": file, "rows": summary["rows"], **describe_file(tmp_path / file)})
    rng = random.Random(9)
    kinds: dict[str, list[Example]] = {"chat": [], "qa": []}
    for _ in range(12):
        found = example(rng, has_raw=True)
        kinds[found.kind].append(found)
    write_shard(tmp_path / HELD_OUT, (Row("", 2, found) for found in kinds.values()))
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "mixtures": {"main": {"shards": shards}},
        "held_out": {"file": HELD_OUT, **describe_file(tmp_path / HELD_OUT)},
    }
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return tmp_path


def contents(rows: Any) -> list[tuple[int, list[Example]]]:
    return [(row.ratio, row.examples) for row in rows]


def test_rows_survive_the_disk_whatever_the_order_they_are_read_in(folder: Path) -> None:
    written = contents([*some_rows(5, 0), *some_rows(3, 1)])
    rows = Rows(folder, "main")
    assert len(rows) == 8
    assert contents(rows) == written
    order = [6, 0, 7, 3, 5, 4, 0, 2, 1]
    fresh = Rows(folder, "main")
    assert contents(fresh[i] for i in order) == [written[i] for i in order]
    assert contents(rows[-2:]) == written[-2:]
    with pytest.raises(IndexError):
        _ = rows[8]


def test_a_row_knows_its_place(folder: Path) -> None:
    ids = [row.id for row in Rows(folder, "main")]
    assert ids[:2] == ["main/00000:0", "main/00000:1"]
    assert ids[5:] == ["main/00001:0", "main/00001:1", "main/00001:2"]


def test_more_shards_than_are_kept_open_read_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [0, 7, 1, 6]
    expected = contents(Rows(folder, "main")[i] for i in order)
    opened = weakref.WeakSet[Shard]()

    class Watched(Shard):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.add(self)

    monkeypatch.setattr("octavo.data.rows.MAX_OPEN", 1)
    monkeypatch.setattr("octavo.data.rows.Shard", Watched)
    rows = Rows(folder, "main")
    assert contents(rows[i] for i in order) == expected
    assert len(opened) == 1


def _read_in_child(rows: Rows, queue: Any) -> None:
    queue.put([row.examples[0].ids for row in rows])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch has threads; the child uses none
def test_opened_rows_can_be_read_after_a_fork(folder: Path) -> None:
    rows = Rows(folder, "main")
    expected = [row.examples[0].ids for row in rows]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(rows, queue))
    child.start()
    assert queue.get() == expected
    child.join()


def test_opened_rows_travel_to_another_process_as_a_place(folder: Path) -> None:
    rows = Rows(folder, "main")
    _ = rows[0]
    assert contents(pickle.loads(pickle.dumps(rows))) == contents(rows)


def test_held_out_examples_keep_their_raw_spans(folder: Path) -> None:
    rng = random.Random(9)
    expected = [example(rng, has_raw=True) for _ in range(12)]
    found = read_held_out(folder)
    assert found == {k: [e for e in expected if e.kind == k] for k in ("chat", "qa")}
    assert any(e.raw_spans for examples in found.values() for e in examples)


def test_a_shard_counts_what_it_holds(tmp_path: Path) -> None:
    rows = some_rows(6)
    summary = write_shard(tmp_path / "s.safetensors", iter(rows), {"plan": "p"})
    assert Shard(tmp_path / "s.safetensors").about == summary
    chats = [(e, row.ratio) for row in rows for e in row.examples if e.kind == "chat"]
    assert summary["by_kind"]["chat"] == {
        "examples": len(chats),
        "positions": sum(
            len(e.ids) - len(e.spans) + sum(-(-len(s) // ratio) for s in e.spans)
            for e, ratio in chats
        ),
        "source_tokens": sum(len(span) for e, _ in chats for span in e.spans),
        "scored_tokens": sum(sum(e.is_scored) for e, _ in chats),
    }
    assert set(summary["by_source"]) == {"bücher"}
    assert sum(summary["ratios"].values()) == summary["rows"] == 6


def test_a_shard_without_rows_is_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.safetensors", [])
    assert len(Shard(tmp_path / "s.safetensors")) == 0


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_shard(tmp_path / name, some_rows(5), {"plan": "p"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_that_stop_coming_leave_no_file(tmp_path: Path) -> None:
    def half() -> Any:
        yield some_rows(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "s.safetensors", half())
    with pytest.raises(WriteError, match="does not exist"):
        write_shard(tmp_path / "no" / "s.safetensors", some_rows(1))
    assert list(tmp_path.iterdir()) == []


SHARD = "main/00001.safetensors"


def _cut(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-5])


def _scramble(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(b"\xff" * path.stat().st_size)


def _other_version(folder: Path) -> None:
    """Write the shard as another octavo would, and let the manifest agree with its size."""
    path = folder / SHARD
    about = {"format": FORMAT, "version": 99, "rows": 3}
    save_file(load_file(path), path, {"octavo": json.dumps(about)})
    _agree(folder)


def _fewer_rows(folder: Path) -> None:
    write_shard(folder / SHARD, some_rows(2, 1))
    _agree(folder)


def _agree(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["mixtures"]["main"]["shards"][1].update(describe_file(folder / SHARD))
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _foreign(folder: Path) -> None:
    path = folder / SHARD
    save_file(load_file(path), path)
    _agree(folder)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_cut, r"00001.safetensors is damaged \(\d+ bytes, expected \d+\)"),
        (lambda folder: (folder / SHARD).unlink(), "00001.safetensors is missing"),
        (_scramble, "00001.safetensors is damaged"),
        (_other_version, "version 99; this octavo reads octavo-rows, version 1"),
        (_foreign, "is of format None"),
        (_fewer_rows, "2 rows, expected 3"),
        (lambda folder: (folder / MANIFEST).unlink(), "holds no finished rows"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff{"), "manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json is of format None"),
    ],
)
def test_damage_is_an_error_that_says_what_to_do(
    folder: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(folder)
    with pytest.raises(TrainingError, match=complaint) as refusal:
        _ = list(Rows(folder, "main"))
    assert "run `octavo data prepare` again" in str(refusal.value)


def test_a_changed_byte_is_found_when_asked_for(folder: Path) -> None:
    Rows(folder, "main").verify()
    data = bytearray((folder / SHARD).read_bytes())
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)
    rows = Rows(folder, "main")
    with pytest.raises(TrainingError, match="its sha256 is not the manifest's"):
        rows.verify()


def test_a_mixture_that_was_not_prepared_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(TrainingError, match="no rows of the mixture 'sft', only of main"):
        Rows(folder, "sft")


def test_damaged_held_out_examples_are_refused(folder: Path) -> None:
    path = folder / HELD_OUT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"held_out.safetensors is damaged"):
        read_held_out(folder)
