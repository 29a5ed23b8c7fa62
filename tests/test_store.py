"""The store: a text is folded once, found again, and whole whatever happens to the disk."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from drivers import store_kills

import octavo
from octavo.errors import ContextError, InputError, StoreError
from octavo.files import WriteError
from octavo.store import Store

LONG = TEXT * 5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def counted(model: octavo.Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by every text that is folded."""
    folded: list[str] = []
    compress = model.compress

    def count(text: str, *args: Any, **settings: Any) -> octavo.CompressedContext:
        folded.append(text)
        return compress(text, *args, **settings)

    monkeypatch.setattr(model, "compress", count)
    return folded


# -- in and out ------------------------------------------------------------------------------------


def test_what_was_added_comes_back_as_it_was(store: Store, model: octavo.Model) -> None:
    entry = store.add(LONG, model=model, name="tides", tags=["log", "1885"])
    fresh = model.compress(LONG)
    again = store.context("tides")
    assert torch.equal(again.latents, fresh.latents)
    assert torch.equal(again.offsets, fresh.offsets)
    assert again.text == store.text(entry.id) == LONG
    assert again.fingerprint == model.fingerprint
    assert (entry.names, set(entry.tags)) == (("tides",), {"log", "1885"})
    assert (entry.latents, entry.ratio, entry.parts) == (len(fresh), fresh.ratio, 1)
    assert store.index("tides").search("lamp oil", 1)
    assert model.generate("Who?", context=again, max_new_tokens=4).usage.latents == len(fresh)


def test_the_same_text_is_folded_once(
    store: Store, fake_model: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = counted(fake_model, monkeypatch)
    first = store.add(LONG, model=fake_model, tags=["a"])
    again = Store(store.folder).add(LONG, model=fake_model, name="tides", tags=["b"])
    assert folded == [LONG]
    assert first.id == again.id
    assert (again.names, set(again.tags)) == (("tides",), {"a", "b"})
    assert len(store.list()) == 1


def test_another_ratio_or_compressor_is_another_entry(
    store: Store, model: octavo.Model, fake_model: octavo.Model
) -> None:
    ids = {
        store.add(LONG, model=model).id,
        store.add(LONG, model=fake_model).id,
        store.add(LONG, model=None).id,
        store.add(LONG + "!", model=model).id,
    }
    assert len(ids) == 4
    assert len(store.list(fingerprint=model.fingerprint)) == 2


def test_a_name_moves_to_the_text_it_was_given_last(store: Store, fake_model: octavo.Model) -> None:
    old = store.add("The first draft. " * 9, model=fake_model, name="draft")
    new = store.add("The second draft. " * 9, model=fake_model, name="draft")
    assert store.entry("draft").id == new.id
    assert store.entry(old.id).names == ()


def test_an_id_may_be_shortened_until_it_is_ambiguous(
    store: Store, fake_model: octavo.Model
) -> None:
    ids = [store.add(f"{LONG} {n}", model=None).id for n in range(40)]
    assert store.entry(ids[0][:12]).id == ids[0]
    shared = next(one[0] for one in ids if sum(other[0] == one[0] for other in ids) > 1)
    with pytest.raises(StoreError, match="may be any of"):
        store.entry(shared)


def test_what_is_not_there_is_one_clear_error(store: Store, fake_model: octavo.Model) -> None:
    for ask in (store.entry, store.context, store.text, store.index, store.remove):
        with pytest.raises(StoreError, match="octavo store list"):
            ask("nothing")
    entry = store.add(LONG, model=None, keep_text=False)
    with pytest.raises(StoreError, match="kept without its text"):
        store.text(entry.id)
    with pytest.raises(ContextError, match="indexed, not compressed"):
        store.contexts(entry.id)
    for text in ("", " \n"):
        with pytest.raises(StoreError, match="empty"):
            store.add(text, model=None)
    with pytest.raises(StoreError, match="surrogate"):
        store.add("half \ud800", model=None)
    for label in ("", " x", "a\nb", "x" * 999, "\ud800"):
        with pytest.raises(StoreError, match="name"):
            store.add(LONG, model=None, name=label)
    with pytest.raises(octavo.RatioError):
        store.add(LONG, model=fake_model, ratio=5)


def test_text_is_kept_unless_it_was_not_to_be(store: Store, fake_model: octavo.Model) -> None:
    entry = store.add(LONG, model=fake_model, keep_text=False)
    assert store.context(entry.id).text is None
    kept = b"".join(one.read_bytes() for one in store.folder.rglob("*") if one.is_file())
    assert b"lamp oil" not in kept


def test_a_text_longer_than_the_decoder_is_kept_in_parts(
    store: Store, fake_model: octavo.Model
) -> None:
    text = "".join(f"Row {n} lists copper wire, {n} metres. " for n in range(1600))
    entry = store.add(text, model=fake_model)
    contexts = store.contexts(entry.id)
    assert entry.parts == len(contexts) > 1
    assert "".join(one.text or "" for one in contexts) == text
    assert sum(map(len, contexts)) == entry.latents
    assert all(len(one) < fake_model.engine.max_positions for one in contexts)
    assert fake_model.generate("Who?", context=contexts[1], max_new_tokens=4).text
    with pytest.raises(ContextError, match="parts"):
        store.context(entry.id)


def test_int8_latents_take_a_quarter_and_say_what_they_lost(
    store: Store, model: octavo.Model
) -> None:
    full = store.add(LONG, model=model, keep_text=False)
    small = store.add(LONG + "!", model=model, keep_text=False, precision="int8")
    latents, exact = store.context(small.id).latents, model.compress(LONG + "!").latents
    lost = (latents - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert small.loss == pytest.approx(float(lost), rel=1e-3)
    assert 0 < small.loss < 0.01
    assert full.loss == 0
    part = store.folder.rglob("0.safetensors")
    sizes = {one.parent.name: one.stat().st_size for one in part}
    assert sizes[small.id] < 0.5 * sizes[full.id]  # offsets and counts are the rest
    assert store.context(small.id).latents.dtype == exact.dtype


# -- harm ------------------------------------------------------------------------------------------


def test_only_the_owner_may_enter(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    assert Store().folder == tmp_path / "home" / "store"
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a store"):
        Store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        Store(tmp_path / "file")


@pytest.mark.parametrize(
    "name", ["text.txt", "passages.safetensors", "0.safetensors", "entry.json"]
)
def test_a_flipped_bit_is_found_by_verify_and_never_read(
    store: Store, fake_model: octavo.Model, name: str
) -> None:
    entry = store.add(LONG, model=fake_model)
    assert store.verify().problems == ()
    (path,) = store.folder.rglob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert name == "entry.json" or name in " ".join(store.verify().problems)
    if name == "text.txt":
        with pytest.raises(StoreError, match="sha256"):
            store.text(entry.id)
    if name == "0.safetensors":
        with pytest.raises(ContextError, match="sha256"):
            store.context(entry.id)


def test_an_index_that_is_damaged_is_made_anew(store: Store) -> None:
    entry = store.add(LONG, model=None)
    before = store.index(entry.id).search("lamp oil", 3)
    (path,) = store.folder.rglob("passages.safetensors")
    path.write_bytes(b"nothing")
    assert store.index(entry.id).search("lamp oil", 3) == before


def test_a_damaged_table_is_made_anew_from_the_entries(
    store: Store, fake_model: octavo.Model
) -> None:
    entry = store.add(LONG, model=fake_model, name="tides")
    store.add(LONG, model=fake_model, name="log", tags=["a"])
    table = store.folder / "catalogue.sqlite"
    for left in store.folder.glob("catalogue.sqlite-*"):
        left.unlink()
    table.write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    with pytest.raises(StoreError, match="octavo store gc"):
        store.list()
    assert "table" in store.verify().problems[0]
    assert store.gc().was_remade
    (again,) = store.list()
    assert (again.id, set(again.names), again.tags) == (entry.id, {"tides", "log"}, ("a",))


def test_a_full_disk_leaves_the_store_as_it_was(
    store: Store, fake_model: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store.add(LONG, model=fake_model)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("octavo.files.os.replace", "octavo.files._fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(WriteError, match="free some space"):
                store.add(LONG + place, model=fake_model)
    with monkeypatch.context() as patch:
        patch.setattr(
            "octavo.store.catalogue.sqlite3.connect",
            lambda *_, **__: (_ for _ in ()).throw(sqlite3.OperationalError("disk is full")),
        )
        with pytest.raises((WriteError, StoreError), match="full"):
            store.add(LONG + "!", model=fake_model)
    assert [one.id for one in store.list()] == [kept.id]
    assert store.verify().problems == ()
    assert store.add(LONG + "!", model=fake_model).id in {one.id for one in store.list()}


def test_what_is_read_least_goes_first_when_the_store_is_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1e9]
    monkeypatch.setattr("octavo.store.store.time.time", lambda: clock[0])
    monkeypatch.setattr("octavo.store.folder.time.time", lambda: clock[0])
    ids = []
    for n in range(3):
        clock[0] += 100
        ids.append(store.add(f"{LONG} {n}", model=None).id)
    clock[0] += 100
    store.text(ids[0])
    size = store.entry(ids[0]).num_bytes
    store.limit(3 * size + size // 2)
    assert len(store.list()) == 3
    clock[0] += 100
    newest = Store(store.folder).add(f"{LONG} 3", model=None)
    assert {one.id for one in store.list()} == {ids[0], ids[2], newest.id}
    store.limit(1)
    assert store.list() == []
    with pytest.raises(StoreError, match="limit"):
        store.limit(0)


def test_gc_lists_what_a_kill_left_unlisted_and_strikes_what_it_left_behind(
    store: Store, fake_model: octavo.Model
) -> None:
    kept = store.add(LONG, model=fake_model, name="tides")
    gone = store.add(LONG + "!", model=fake_model)
    table = sqlite3.connect(store.folder / "catalogue.sqlite")
    with table:
        table.execute("DELETE FROM entries WHERE id = ?", (kept.id,))
    table.close()
    shutil.rmtree(store.folder / "entries" / gone.id[:2] / gone.id)
    assert store.verify().unfinished == 2
    with pytest.raises(StoreError):
        store.entry(gone.id)
    swept = store.gc()
    assert (swept.listed, swept.struck) == (1, 1)
    assert [one.names for one in store.list()] == [("tides",)]


def test_adding_finds_a_whole_folder_that_was_not_listed(
    store: Store, fake_model: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.add(LONG, model=fake_model)
    table = sqlite3.connect(store.folder / "catalogue.sqlite")
    with table:
        table.execute("DELETE FROM entries")
    table.close()
    folded = counted(fake_model, monkeypatch)
    assert store.add(LONG, model=fake_model).id == entry.id
    assert folded == []


# -- moving ----------------------------------------------------------------------------------------


def test_entries_move_in_one_file(store: Store, fake_model: octavo.Model, tmp_path: Path) -> None:
    entry = store.add(LONG, model=fake_model, name="tides", tags=["log"])
    store.add("Nothing of note. " * 9, model=None)
    store.export(["tides"], tmp_path / "out.zip")
    other = Store(tmp_path / "other")
    for _ in range(2):
        (found,) = other.import_(tmp_path / "out.zip")
        assert (found.id, found.names, found.tags) == (entry.id, ("tides",), ("log",))
    assert other.text("tides") == LONG
    assert torch.equal(other.context("tides").latents, store.context("tides").latents)
    assert other.verify().problems == ()
    assert list(other.folder.glob(".octavo-*")) == []


def test_a_file_that_is_no_export_is_refused_and_nothing_is_taken(
    store: Store, fake_model: octavo.Model, tmp_path: Path
) -> None:
    entry = store.add(LONG, model=fake_model)
    store.export([entry.id], tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    about = f"{entry.id}/entry.json"
    changes: dict[str, dict[str, bytes]] = {
        "escape": {**files, "../../evil": b"x"},
        "foreign": {**files, f"{entry.id}/run.py": b"x"},
        "damaged": {**files, f"{entry.id}/text.txt": b"another text"},
        "lacking": {name: data for name, data in files.items() if "text" not in name},
        "lying": {**files, about: files[about].replace(b'"ratio": 4', b'"ratio": 8')},
    }
    other = Store(tmp_path / "other")
    for name, content in changes.items():
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in content.items():
                archive.writestr(member, data)
        with pytest.raises(StoreError):
            other.import_(path)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(StoreError, match="export it again"):
        other.import_(tmp_path / "text.zip")
    assert other.list() == []
    assert list(other.folder.rglob("entry.json")) == []


# -- many at once ----------------------------------------------------------------------------------


def add_in_a_process(folder: str, worker: int) -> int:
    """Add the same texts as all, and one of one's own; return how many were folded here."""
    model = octavo.load(CHECKPOINT, engine="fake")
    folded = [0]
    compress = model.compress

    def count(*args: Any, **settings: Any) -> octavo.CompressedContext:
        folded[0] += 1
        return compress(*args, **settings)

    model.compress = count  # type: ignore[method-assign]
    store = Store(folder)
    for number in [*range(6), 100 + worker]:
        store.add(f"{TEXT} Day {number}.", model=model, name=f"day {number}", tags=[str(worker)])
    return folded[0]


def test_eight_processes_fold_every_text_once(tmp_path: Path, fake_model: octavo.Model) -> None:
    assert fake_model  # loaded before the fork, so that no process imports torch anew
    context = multiprocessing.get_context("fork")
    with context.Pool(8) as pool:
        counts = pool.starmap(add_in_a_process, [(str(tmp_path / "s"), n) for n in range(8)])
    assert sum(counts) == 6 + 8
    store = Store(tmp_path / "s")
    entries = store.list()
    assert len(entries) == 14
    shared = store.entry("day 3")
    assert set(shared.tags) == {str(worker) for worker in range(8)}
    verdict = store.verify()
    assert (verdict.problems, verdict.unfinished) == ((), 0)


def test_threads_share_a_store(store: Store, fake_model: octavo.Model) -> None:
    barrier = threading.Barrier(6)

    def use(number: int) -> str:
        barrier.wait()
        entry = store.add(f"{TEXT} Day {number % 3}.", model=fake_model)
        return store.text(entry.id)

    with ThreadPoolExecutor(6) as pool:
        texts = set(pool.map(use, range(6)))
    assert len(texts) == len(store.list()) == 3


def test_kills_while_adding_removing_and_sweeping_do_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_kills.main(str(tmp_path / "s"), "0", "12", "60")
    assert json.loads(capsys.readouterr().out)["kills"] == 12


@pytest.mark.slow
def test_a_thousand_kills_do_no_harm(tmp_path: Path) -> None:
    command = [sys.executable, store_kills.__file__, str(tmp_path / "s"), "1", "1000", "170"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] > 100
    assert found["unfinished"] > 0  # moments between two steps were hit
    assert found["read"] > 100


def test_a_document_is_read_by_its_suffix(store: Store, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Tides\n\nLow at four.\n", encoding="utf-8")
    entry = store.add(tmp_path / "notes.md", model=None)
    assert (entry.kind, entry.source) == ("markdown", str(tmp_path / "notes.md"))
    assert store.index(entry.id).search("tides", 1)[0].passage.heading == "Tides"
    with pytest.raises(InputError, match="no file"):
        store.add(tmp_path / "nothing.md", model=None)


def test_a_row_that_a_kill_left_behind_does_not_describe_what_is_added_anew(
    store: Store, fake_model: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = store.add(LONG, model=fake_model, tags=["old"])
    shutil.rmtree(store.folder / "entries" / gone.id[:2] / gone.id)
    with monkeypatch.context() as patch:  # killed between the rename and the row
        patch.setattr(
            store._catalogue, "put", lambda entry: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            store.add(LONG, model=fake_model, tags=["new"])
    again = store.add(LONG, model=fake_model)
    assert again.tags == ("new",)
    assert store.context(again.id).text == LONG
    assert store.verify().problems == ()
