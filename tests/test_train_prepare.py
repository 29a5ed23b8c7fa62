"""Preparing rows: the same bytes however they are made, interrupted work kept, clear refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CHECKPOINT, TEXT
from transformers import AutoTokenizer

from octavo.config import ModelConfig
from octavo.data import packing
from octavo.data.packing import ShardMaker
from octavo.data.prepare import check_manifest, open_prompts, prepare
from octavo.data.rows import Rows, read_held_out
from octavo.data.sources import read_libraries
from octavo.errors import TrainingError
from octavo.files import WriteError
from octavo.prompt import PromptEncoder
from octavo.recipe import RunConfig
from octavo.weights.assembly import load_tokenizers

KILLED = """
import os, pathlib, sys
from octavo.files import write_file
write_file(pathlib.Path(sys.argv[1]), lambda temporary: os._exit(9))
"""
RECIPE = """
batch_rows = 4
micro_batch_rows = 4
model.encoder = "ENCODER"
model.decoder = "DECODER"
model.compression_ratio = 4
model.ratios = [2, 8]
model.encoder_window_size = 16
[data]
train = ["a.txt"]
held_out = ["held.txt", "held.jsonl"]
row_tokens = 256
rows_per_shard = 8
held_out_examples = 3
[data.mixtures.main]
copy_tokens = [8, 32]
document_tokens = [64, 128]
min_segment_tokens = 16
context_tokens = [32, 128]
[data.mixtures.main.weights]
reconstruction = 2
interleaved = 1
[stages.adapter]
steps = 5
lr = { adapter = 1e-3 }
"""


@pytest.fixture(scope="module")
def prompts() -> PromptEncoder:
    tokenizers = load_tokenizers(str(CHECKPOINT / "encoder"), str(CHECKPOINT / "decoder"))
    return PromptEncoder(*tokenizers, ModelConfig.read(CHECKPOINT))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with texts and a recipe."""
    (tmp_path / "a.txt").write_text(TEXT * 30, encoding="utf-8")
    (tmp_path / "held.txt").write_text(TEXT[::-1] * 10, encoding="utf-8")
    record = {"context": TEXT[-70:], "question": "How much oil?", "answers": ["A cellar full."]}
    (tmp_path / "held.jsonl").write_text(json.dumps(record), encoding="utf-8")
    text = RECIPE.replace("ENCODER", str(CHECKPOINT / "encoder"))
    text = text.replace("DECODER", str(CHECKPOINT / "decoder"))
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    return tmp_path


def recipe(root: Path, *overrides: str) -> RunConfig:
    return RunConfig.load(root / "recipe.toml", overrides)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_rows_are_what_the_recipe_asks_for(root: Path, prompts: PromptEncoder) -> None:
    config = recipe(root, "data.mixtures.main.ratios={ 4 = 3, 8 = 1 }")
    seen: list[tuple[str, int, int]] = []
    manifest = prepare(config, root, root / "out", prompts, on_rows=lambda *rows: seen.append(rows))
    rows = Rows(root / "out", "main")
    assert seen == [("main", 8, 20), ("main", 16, 20), ("main", 20, 20)]
    assert len(rows) == manifest["mixtures"]["main"]["rows"] == 20
    assert {row.ratio for row in rows} == {4, 8}
    examples = [(row.ratio, example) for row in rows for example in row.examples]
    assert {e.kind for _, e in examples} == {"reconstruction", "interleaved"}
    assert {e.origin.partition(":")[0] for _, e in examples} == {"train"}
    assert all(sum(e.length(row.ratio) for e in row.examples) <= 256 for row in rows)
    summary = manifest["mixtures"]["main"]
    positions = sum(example.length(ratio) for ratio, example in examples)
    assert sum(counts["positions"] for counts in summary["by_kind"].values()) == positions
    assert summary["by_source"]["train"]["positions"] == positions
    assert summary["efficiency"] == positions / (20 * 256) > 0.85
    rows.verify()


def test_the_same_recipe_makes_the_same_bytes_and_another_seed_others(
    root: Path, prompts: PromptEncoder
) -> None:
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        prepare(recipe(root, f"seed={seed}"), root, root / out, prompts)
    one, two, three = (contents(root / name) for name in ("one", "two", "three"))
    assert one == two
    assert one["main/00000.safetensors"] != three["main/00000.safetensors"]
    assert one["main/00000.safetensors"] != one["main/00001.safetensors"]


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(root: Path, prompts: PromptEncoder) -> None:
    prepare(recipe(root), root, root / "one", prompts)
    prepare(recipe(root), root, root / "two", prompts, processes=2)
    assert contents(root / "one") == contents(root / "two")


@pytest.mark.slow
def test_an_error_in_another_process_is_the_same_error(root: Path, prompts: PromptEncoder) -> None:
    out = root / "out"
    prepare(recipe(root), root, out, prompts)
    (out / "manifest.json").unlink()
    for number in (0, 2):
        shard = out / "main" / f"{number:05d}.safetensors"
        shard.unlink()
        shard.mkdir()  # where no file can be put
    with pytest.raises(WriteError, match="it is a folder"):
        prepare(recipe(root), root, out, prompts, processes=2)


def test_a_finished_folder_is_left_as_it_is(root: Path, prompts: PromptEncoder) -> None:
    first = prepare(recipe(root), root, root / "out", prompts)
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")}
    assert prepare(recipe(root), root, root / "out", prompts) == first
    assert {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")} == before


def test_what_is_missing_is_made_again_and_the_rest_kept(
    root: Path, prompts: PromptEncoder
) -> None:
    out = root / "out"
    prepare(recipe(root), root, out, prompts)
    before, kept = contents(out), (out / "main/00001.safetensors").stat().st_mtime_ns
    (out / "manifest.json").unlink()
    (out / "main" / "00000.safetensors").unlink()
    cut = out / "main" / "00002.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    prepare(recipe(root), root, out, prompts)
    assert contents(out) == before
    assert (out / "main/00001.safetensors").stat().st_mtime_ns == kept


def test_an_interruption_leaves_no_half_shard_and_the_work_goes_on(
    root: Path, prompts: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(recipe(root), root, root / "whole", prompts)
    build, built = packing.BUILDERS["reconstruction"], []

    def interrupted(*given: Any) -> Any:
        built.append(given)
        if len(list((root / "out" / "main").glob("*.safetensors"))) == 1 and len(built) % 7 == 0:
            raise KeyboardInterrupt
        return build(*given)

    monkeypatch.setitem(packing.BUILDERS, "reconstruction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(root), root, root / "out", prompts)
    left = contents(root / "out")
    whole = contents(root / "whole")
    assert sorted(left) == ["held_out.safetensors", "main/00000.safetensors", "plan.json"]
    assert all(whole[name] == data for name, data in left.items())
    with pytest.raises(TrainingError, match="holds no finished rows"):
        Rows(root / "out", "main")
    subprocess.run([sys.executable, "-c", KILLED, root / "out/main/00001.safetensors"])
    assert len(contents(root / "out")) > len(left)
    monkeypatch.undo()
    prepare(recipe(root), root, root / "out", prompts)
    assert contents(root / "out") == whole


def test_a_worker_that_is_told_to_stop_stops(root: Path, prompts: PromptEncoder) -> None:
    config = recipe(root)
    (root / "out" / "main").mkdir(parents=True)
    maker = ShardMaker(config, read_libraries(config, root)[0], prompts, root / "out", "plan")
    maker.is_stopped = lambda: True
    with pytest.raises(KeyboardInterrupt):
        maker.make("main", 0)
    assert contents(root / "out") == {}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("data.row_tokens=512", "data.row_tokens is 512"),
        ("data.mixtures.main.copy_tokens=[8, 16]", "data.mixtures.main.copy_tokens is"),
        ("data.mixtures.main.caps.interleaved=9", "data.mixtures.main.caps"),
        ("seed=3", "seed is 3"),
        ("stages.adapter.steps=6", "rows.main is 24"),
        ("model.ratios=[2]", "ratios is"),
    ],
)
def test_a_folder_of_another_recipe_is_refused_by_key(
    root: Path, prompts: PromptEncoder, change: str, key: str
) -> None:
    prepare(recipe(root), root, root / "out", prompts)
    before = contents(root / "out")
    with pytest.raises(TrainingError) as refusal:
        prepare(recipe(root, change), root, root / "out", prompts)
    assert str(refusal.value).startswith(key)
    assert "choose another folder" in str(refusal.value)
    assert contents(root / "out") == before


def test_other_texts_are_refused_and_moved_ones_are_not(root: Path, prompts: PromptEncoder) -> None:
    first = prepare(recipe(root), root, root / "out", prompts)
    (root / "moved").mkdir()
    for name in ("a.txt", "held.txt", "held.jsonl"):
        shutil.move(root / name, root / "moved" / name)
    moved = recipe(root, "data.root=moved")
    assert prepare(moved, root, root / "out", prompts) == first
    (root / "moved" / "a.txt").write_text(TEXT * 31, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"^texts is"):
        prepare(moved, root, root / "out", prompts)


def test_a_plan_that_nothing_came_of_binds_nobody(
    root: Path, prompts: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MAX_ATTEMPTS", 20)
    with pytest.raises(TrainingError, match="made no reconstruction example"):
        prepare(
            recipe(root, "data.mixtures.main.copy_tokens=[90000, 99000]"),
            root,
            root / "out",
            prompts,
        )
    prepare(recipe(root), root, root / "out", prompts)
    assert len(Rows(root / "out", "main")) == 20


def test_a_damaged_plan_is_refused(root: Path, prompts: PromptEncoder) -> None:
    prepare(recipe(root), root, root / "out", prompts)
    (root / "out" / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"plan.json is damaged .* choose another folder"):
        prepare(recipe(root), root, root / "out", prompts)


@pytest.mark.parametrize("per_shard", [8, 20])
def test_a_cap_holds_over_all_shards(root: Path, prompts: PromptEncoder, per_shard: int) -> None:
    config = recipe(
        root, "data.mixtures.main.caps.interleaved=5", f"data.rows_per_shard={per_shard}"
    )
    summary = prepare(config, root, root / "out", prompts)["mixtures"]["main"]
    # The last few examples of a shard may find no room.
    assert 3 <= summary["by_kind"]["interleaved"]["examples"] <= 5
    assert summary["rows"] == 20


def test_caps_on_every_kind_make_fewer_rows_and_the_manifest_says_so(
    root: Path, prompts: PromptEncoder
) -> None:
    config = recipe(root, "data.mixtures.main.caps={ reconstruction = 7, interleaved = 5 }")
    summary = prepare(config, root, root / "out", prompts)["mixtures"]["main"]
    assert (summary["wanted_rows"], len(Rows(root / "out", "main"))) == (20, summary["rows"])
    assert summary["rows"] < 12
    counts = {kind: summary["by_kind"][kind]["examples"] for kind in summary["by_kind"]}
    assert counts == {"reconstruction": 7, "interleaved": 5}


def test_mixtures_of_stages_without_steps_are_not_prepared(
    root: Path, prompts: PromptEncoder
) -> None:
    stages = ("stages.sft.steps=2", "stages.sft.lr.adapter=1e-3", "stages.sft.mixture=other")
    mixtures = ("data.mixtures.other.copy_tokens=[4, 8]", "data.mixtures.unused.max_questions=1")
    weights = ("data.mixtures.other.weights.reconstruction=1.0",)
    manifest = prepare(recipe(root, *stages, *mixtures, *weights), root, root / "out", prompts)
    assert {name: summary["rows"] for name, summary in manifest["mixtures"].items()} == {
        "main": 20,
        "other": 8,
    }
    assert set(manifest["mixtures"]["other"]["by_kind"]) == {"reconstruction"}


def test_held_out_examples_are_of_held_out_texts_and_fit_a_row(
    root: Path, prompts: PromptEncoder
) -> None:
    manifest = prepare(recipe(root), root, root / "out", prompts)
    found = read_held_out(root / "out")
    assert set(found) == {"reconstruction", "interleaved", "needle", "qa"}
    assert len(found["reconstruction"]) == 3
    counts = {kind: len(examples) for kind, examples in found.items()}
    assert manifest["held_out"]["examples"] == counts
    for examples in found.values():
        assert len({(tuple(e.ids), str(e.spans)) for e in examples}) == len(examples)
        for example in examples:
            assert not example.origin.startswith("train")
            assert len(example.raw_spans) == len(example.spans) > 0
            assert example.length(2) <= 256


def test_runs_of_different_seeds_train_on_other_rows_and_measure_on_the_same_examples(
    root: Path, prompts: PromptEncoder
) -> None:
    def made(seed: int) -> tuple[list[Any], list[list[int]]]:
        out = root / f"seed-{seed}"
        prepare(recipe(root, f"seed={seed}"), root, out, prompts)
        kinds = read_held_out(out).values()
        measured = [(example.ids, example.spans) for kind in kinds for example in kind]
        rows = Rows(out, "main")
        return measured, [list(example.ids) for row in rows for example in row.examples]

    (measured, rows), (others, other_rows) = made(1), made(2)
    assert measured == others
    assert rows != other_rows


def test_no_held_out_example_is_measured_twice(root: Path, prompts: PromptEncoder) -> None:
    config = recipe(root, "data.held_out_examples=60")
    summary = prepare(config, root, root / "out", prompts)["held_out"]["examples"]
    assert summary["reconstruction"] == 60
    assert 0 < summary["qa"] < 60  # one record: there are not so many ways to ask about it


def test_held_out_texts_that_make_no_example_are_refused(
    root: Path, prompts: PromptEncoder
) -> None:
    (root / "held.txt").write_text("Too short.", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"held-out texts: none of 1 documents .*data.held_out"):
        prepare(recipe(root, "data.held_out=held.txt"), root, root / "out", prompts)


def test_a_kind_without_texts_is_refused(root: Path, prompts: PromptEncoder) -> None:
    with pytest.raises(TrainingError, match="asks for qa"):
        prepare(recipe(root, "data.mixtures.main.weights.qa=1.0"), root, root / "out", prompts)


def test_rows_too_short_for_every_example_are_refused(root: Path, prompts: PromptEncoder) -> None:
    with pytest.raises(TrainingError, match=r"longer than a row.*data.row_tokens is 24"):
        prepare(
            recipe(root, "data.row_tokens=24", "data.mixtures.main.copy_tokens=[32, 40]"),
            root,
            root / "out",
            prompts,
        )


def test_a_disk_too_small_is_refused_before_the_first_shard(
    root: Path, prompts: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000))
    with pytest.raises(TrainingError, match=r"the rows need about .* GB at .*make room"):
        prepare(recipe(root), root, root / "out", prompts)
    assert not list((root / "out").glob("*/*.safetensors"))


def test_a_file_in_the_place_of_the_folder_is_refused(root: Path, prompts: PromptEncoder) -> None:
    with pytest.raises(TrainingError, match=r"cannot make the folder .*choose another one"):
        prepare(recipe(root), root, root / "a.txt", prompts)


@pytest.fixture
def manifest(root: Path, prompts: PromptEncoder) -> dict[str, Any]:
    return prepare(recipe(root), root, root / "out", prompts)


def test_rows_serve_a_recipe_that_may_read_them(
    root: Path, prompts: PromptEncoder, manifest: dict[str, Any]
) -> None:
    check_manifest(manifest, recipe(root), prompts)
    check_manifest(
        manifest, recipe(root, "data.row_tokens=300", "model.ratios=[2, 8, 16]"), prompts
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("data.row_tokens=255", r"data.row_tokens is 255, but the rows have up to 256"),
        ("model.ratios=[2]", r"ratio 8 among others, at which they are too long"),
        ("stages.adapter.mixture=other", "no prepared rows of the mixture 'other'"),
    ],
)
def test_rows_that_a_recipe_cannot_read_are_refused(
    root: Path, prompts: PromptEncoder, manifest: dict[str, Any], change: str, complaint: str
) -> None:
    config = recipe(root, change, "data.mixtures.other.max_questions=1")
    with pytest.raises(TrainingError, match=complaint):
        check_manifest(manifest, config, prompts)


def test_rows_of_another_tokenizer_are_refused(
    root: Path, prompts: PromptEncoder, manifest: dict[str, Any]
) -> None:
    decoder, encoder = load_tokenizers(str(CHECKPOINT / "encoder"), str(CHECKPOINT / "decoder"))
    decoder.add_tokens(["<|another|>"], special_tokens=True)
    other = PromptEncoder(decoder, encoder, prompts.config)
    with pytest.raises(TrainingError, match="another tokenizer than that of the decoder"):
        check_manifest(manifest, recipe(root), other)


def test_a_tokenizer_that_was_saved_and_read_again_is_the_same(
    root: Path, prompts: PromptEncoder, manifest: dict[str, Any]
) -> None:
    halves = load_tokenizers(str(CHECKPOINT / "encoder"), str(CHECKPOINT / "decoder"))
    read = []
    for name, tokenizer in zip(("decoder", "encoder"), halves, strict=True):
        tokenizer(["one", "another text"], padding=True)  # which leaves its mark on a tokenizer
        tokenizer.save_pretrained(root / name)
        read.append(AutoTokenizer.from_pretrained(root / name))
    check_manifest(manifest, recipe(root), PromptEncoder(*read, prompts.config))


def test_the_tokenizers_of_a_recipe_are_read_without_weights(
    root: Path, manifest: dict[str, Any]
) -> None:
    for half in ("encoder", "decoder"):
        shutil.copytree(CHECKPOINT / half, root / half)
        (root / half / "model.safetensors").unlink()
    config = recipe(root, "model.encoder=encoder", "model.decoder=decoder")
    check_manifest(manifest, config, open_prompts(config, root))
    started = recipe(root, f"model.start={CHECKPOINT}")
    check_manifest(manifest, started, open_prompts(started, root))
