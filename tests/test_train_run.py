"""Whole runs: what is learned, measured, exported and gone on from, and what is refused."""

import dataclasses
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from safetensors.torch import load_file
from training import (
    ADAPTER,
    DECODER,
    ENCODER,
    GROUPS,
    interrupt_at,
    losses_of,
    measured_steps,
    one_stage,
    recipe,
    rows_of,
    tensors_of,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from octavo.errors import OctavoError, TrainingError
from octavo.nn import LCLM
from octavo.train import parallel
from octavo.train.loop import Interrupted
from octavo.train.run import Run
from octavo.train.signals import Stop
from octavo.train.stages import train
from octavo.weights import assembly
from octavo.weights.layout import read
from octavo.weights.selfcheck import check

# -- learning ------------------------------------------------------------------------------------


def test_loss_falls_and_reconstruction_beats_reading_nothing(tmp_path: Path) -> None:
    rates = {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2}
    config = recipe(
        tmp_path,
        stages={"decoder": {"steps": 30, "lr": rates, "warmup_steps": 3}},
        data__mixtures__main__weights={"reconstruction": 1.0},
        data__mixtures__main__copy_tokens=[4, 8],
        data__held_out=["a copy.txt"],
        data__held_out_examples=12,
        model__compression_ratio=2,
        model__ratios=[],
        measure_every=30,
        batch_rows=8,
        micro_batch_rows=8,
        save_every=30,
    )
    (tmp_path / "a copy.txt").write_text(TEXT * 7, encoding="utf-8")
    train(config, tmp_path)
    losses = losses_of(tmp_path / "out")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    measured = next(r["measured"] for r in rows_of(tmp_path / "out") if "measured" in r)
    measured = measured["reconstruction/2"]
    assert measured["latents"]["accuracy"][0] > measured["none"]["accuracy"][0]
    assert measured["gain"]["loss"][1] > 0  # the lower end of the interval


def test_held_out_numbers_come_with_intervals_for_every_kind_and_ratio(tmp_path: Path) -> None:
    train(recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 1}}), tmp_path)
    measured = next(r["measured"] for r in rows_of(tmp_path / "out") if "measured" in r)
    kinds = ("reconstruction", "interleaved", "needle")
    assert measured.keys() == {f"{kind}/{ratio}" for kind in kinds for ratio in (4, 8)}
    for numbers in measured.values():
        assert numbers["examples"] == 3
        for view in ("latents", "raw", "none", "shuffled", "gain"):
            for mean, low, high in (numbers[view]["loss"], numbers[view]["accuracy"]):
                assert low <= mean <= high


@pytest.mark.slow
def test_bf16_autocast_trains_on_a_cpu(tmp_path: Path) -> None:
    stages = {"encoder": {**ENCODER, "steps": 2}, "decoder": {**DECODER, "steps": 2}}
    export = train(recipe(tmp_path, precision="bf16", stages=stages), tmp_path)
    assert all(math.isfinite(loss) for loss in losses_of(tmp_path / "out"))
    exported = load_file(export / "decoder" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}
    # What the first stage left frozen, and computed with in bf16, is exported as it was given.
    frozen = load_file(tmp_path / "out/encoder/export/decoder/model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(CHECKPOINT / "decoder").state_dict()
    rows = len(base["model.embed_tokens.weight"]) - 3  # all but the memory tokens'
    for name, tensor in frozen.items():
        assert torch.equal(tensor[:rows], base[name][:rows]), name


# -- faster, smaller, the same -------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_halves_are_checked_once_in_a_run_and_made_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    checked: list[LCLM] = []

    def check_and_close(lclm: LCLM, tokenizers: Any, **options: Any) -> None:
        check(lclm, tokenizers, **options)
        lclm.close("beams", "a finding")
        checked.append(lclm)

    monkeypatch.setattr(assembly, "check", check_and_close)
    run = Run(
        recipe(tmp_path, lora__rank=rank), tmp_path, torch.device("cpu"), Stop(), lambda *_: None
    )
    first, second = run.assemble().lclm, run.assemble().lclm
    assert len(checked) == 1
    assert second.config.closed == first.config.closed == {"beams": "a finding"}
    own = second.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in first.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_activation_checkpointing_gives_the_same_losses_and_weights(
    tmp_path: Path, rank: int
) -> None:
    stages = {"decoder": {**DECODER, "steps": 3}}
    outs = []
    for name, flag in (("plain", False), ("recomputed", True)):
        folder = tmp_path / name
        config = recipe(
            folder, stages=stages, activation_checkpointing=flag, lora__rank=rank, save_every=3
        )
        train(config, folder)
        outs.append(folder / "out")
    assert losses_of(outs[0]) == pytest.approx(losses_of(outs[1]), abs=1e-5)
    ours, theirs = (tensors_of(out) for out in outs)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


def test_activation_checkpointing_really_recomputes_layers(tmp_path: Path) -> None:
    for flag, passes in ((False, 1), (True, 2)):
        stage = one_stage(tmp_path, batch_rows=2, stages={"adapter": {**ADAPTER, "steps": 1}})
        parallel.prepare(
            stage.model, attention="eager", compile=False, checkpointing=flag, bf16=False
        )
        calls: list[str] = []
        for name, layer in (
            ("encoder", stage.model.encoder.body.layers[0]),
            ("decoder", stage.model.get_decoder().layers[0]),
        ):
            layer.self_attn.register_forward_hook(lambda *_, n=name, to=calls: to.append(n))
        stage.run()
        assert calls.count("decoder") == passes
        assert calls.count("encoder") in (1, passes)  # frozen: nothing to recompute for


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
def test_compiled_layers_give_nearly_the_same_losses(tmp_path: Path) -> None:
    losses = []
    for name, flag in (("plain", False), ("compiled", True)):
        config = recipe(tmp_path / name, compile=flag, stages={"decoder": {**DECODER, "steps": 3}})
        train(config, tmp_path / name)
        losses.append(losses_of(tmp_path / name / "out"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


# -- exports -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_stage_exports_a_checkpoint_that_strangers_open(tmp_path: Path) -> None:
    stages = {"adapter": ADAPTER, "encoder": ENCODER, "decoder": DECODER, "sft": DECODER}
    stages = {name: {**stage, "steps": 1} for name, stage in stages.items()}
    train(recipe(tmp_path, stages=stages, model__encoder_layers=1), tmp_path)
    for name in stages:
        export = tmp_path / "out" / name / "export"
        lclm = read(export).lclm
        assert lclm.extension.ratios == (8,)
        decoder = AutoModelForCausalLM.from_pretrained(export / "decoder")
        encoder = AutoModel.from_pretrained(export / "encoder")
        assert torch.equal(decoder.lm_head.weight, lclm.get_output_embeddings().weight)
        assert torch.equal(encoder.norm.weight, lclm.encoder.body.norm.weight)
        assert len(encoder.layers) == len(lclm.encoder.body.layers) == 1
        assert "<|memory|>" in AutoTokenizer.from_pretrained(export / "decoder").get_vocab()
        assert AutoTokenizer.from_pretrained(export / "encoder")("x")["input_ids"]
        assert load_file(export / "adapter" / "adapter.safetensors").keys() == (
            lclm.adapter.state_dict().keys()
        )


@pytest.mark.slow
def test_low_rank_training_leaves_the_base_alone_and_exports_factors(tmp_path: Path) -> None:
    rates = dict.fromkeys(GROUPS, 1e-2)
    config = recipe(
        tmp_path, lora__rank=2, model__encoder_layers=1, stages={"sft": {"steps": 2, "lr": rates}}
    )
    export = train(config, tmp_path)
    assert not (export / "decoder" / "model.safetensors").exists()
    apart = read(export, trainable=True).lclm
    base = AutoModelForCausalLM.from_pretrained(CHECKPOINT / "decoder").state_dict()
    for name, tensor in apart.decoder.get_base_model().state_dict().items():
        name = name.replace("base_layer.", "").replace("token_adapter.", "")
        if name in base:
            assert torch.equal(tensor, base[name]), name
    assert any(p.abs().max() > 0 for n, p in apart.named_parameters() if "lora_B" in n)
    checkpoint = read(export)
    assert len(checkpoint.lclm.encoder.body.layers) == 1
    rows = apart.config.memory_token_ids
    merged = checkpoint.lclm.get_input_embeddings().weight[rows]
    assert not torch.equal(merged, base["model.embed_tokens.weight"][rows])


# -- going on from a checkpoint ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_training_goes_on_from_an_exported_model(tmp_path: Path, rank: int) -> None:
    rates = {**DECODER["lr"], **({"memory_rows": 1e-2} if rank else {})}
    stages = {"decoder": {"steps": 2, "lr": rates}}
    first = train(recipe(tmp_path, stages=stages, lora__rank=rank), tmp_path)
    start = {"model__start": str(first), "output": "next", "model__ratios": [2, 8]}
    frozen = {"decoder": {"steps": 1, "lr": dict.fromkeys(rates, 0.0)}}
    still = train(recipe(tmp_path, stages=frozen, **start), tmp_path)
    ours, theirs = read(first).lclm.state_dict(), read(still).lclm.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read(still).lclm.extension.ratios == (2, 8)  # one was added
    start["output"] = "third"
    moved = train(recipe(tmp_path, stages=stages, **start), tmp_path)
    theirs = read(moved).lclm.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours if "encoder" in name)
    is_apart = (moved / "decoder" / "adapter_model.safetensors").exists()
    assert is_apart is ((first / "decoder" / "adapter_model.safetensors").exists())


def test_what_a_run_goes_on_from_is_measured_before_its_first_step(tmp_path: Path) -> None:
    last = {"decoder": {**DECODER, "steps": 2}}
    first = train(recipe(tmp_path, stages=last, measure_every=2), tmp_path)
    stages = {"adapter": {**ADAPTER, "steps": 2}, **last}
    more = {"model__start": str(first), "output": "next", "seed": 5, "measure_every": 2}
    config = recipe(tmp_path, stages=stages, **more)
    with pytest.raises(Interrupted):
        train(config, tmp_path, on_step=interrupt_at("adapter", 1))
    train(config, tmp_path, resume=True)
    assert measured_steps(tmp_path / "out") == [2]
    assert measured_steps(tmp_path / "next") == [0, 2, 2]
    (at_end,) = (row["measured"] for row in rows_of(tmp_path / "out") if "measured" in row)
    at_start = next(row["measured"] for row in rows_of(tmp_path / "next") if "measured" in row)
    assert at_start == at_end


def test_a_checkpoint_is_not_gone_on_from_under_other_settings(tmp_path: Path) -> None:
    start = {"model__start": str(CHECKPOINT), "output": "next"}
    for changes, says in (
        ({"model__compression_ratio": 2}, "model.compression_ratio is 2, but .* has 4"),
        ({"model__encoder_window_size": 32}, "model.encoder_window_size is 32, but .* has 16"),
        ({"lora__rank": 2}, "drop lora.rank"),
        ({"model__start": str(tmp_path / "absent")}, "absent"),
    ):
        with pytest.raises(OctavoError, match=says):
            train(recipe(tmp_path, **{**start, **changes}), tmp_path)
        assert not (tmp_path / "next" / "rows").exists()  # refused before the long work


# -- what cannot work stops before the first step ------------------------------------------------

MAIN = "data__mixtures__main__"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__train": ["absent.txt"]}, "no file matches 'absent.txt'"),
        ({"data__train": ["short.txt"]}, "none of 1 documents is prose"),
        ({"data__held_out": ["short.txt"]}, "held-out texts: none of 1 documents"),
        ({"data__held_out": ["a.txt"]}, "held-out texts are trained on too"),
        ({"data__train": ["empty.txt"]}, "holds no text"),
        ({"data__train": ["bad.jsonl"]}, r"bad\.jsonl, line 2, is not JSON"),
        (
            {f"{MAIN}copy_tokens": [300, 400], f"{MAIN}weights": {"reconstruction": 1}},
            "longer than a row",
        ),
        ({"data__row_tokens": 5000}, "decoder has 4096 positions"),
        ({"model__encoder_window_size": 8192}, "encoder has 4,096"),
        ({f"{MAIN}weights": {"copying": 1.0}}, "names the kind 'copying'"),
        ({f"{MAIN}weights": {"interleaved": 1.0, "qa": 1e-9}}, "asks for qa, but none of"),
        ({"model__encoder": "nowhere/at all"}, "cannot load nowhere/at all"),
        ({"model__encoder_layers": 9}, "the model has 2 layers"),
        ({"model__residual": "sum"}, "share a tokenizer"),
        ({"device": "nonsense"}, "device 'nonsense' is not available"),
        ({"output": "a.txt/out"}, "cannot make the folder"),
        ({"data__rows": "nowhere"}, "holds no finished rows"),
        ({"data__rows": "a.txt"}, "a.txt"),
        (
            {"stages": {"adapter": ADAPTER, "sft": {**DECODER, "mixture": "sfd"}}},
            "no mixture 'sfd'",
        ),
        ({"stages": {"sft": {"steps": 1, "lr": {"memory_rows": 1, "decoder": 1}}}}, "memory_rows"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.data.packing.MAX_TOO_LONG", 50)
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    steps: list[Any] = []
    with pytest.raises(OctavoError, match=says):
        train(recipe(tmp_path, **changes), tmp_path, on_step=lambda *step: steps.append(step))
    assert steps == []
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_disk_too_small_is_noticed_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(TrainingError, match="make room or choose another output"):
        train(recipe(tmp_path), tmp_path)
    assert not (tmp_path / "out" / "rows").exists()


@pytest.mark.slow
def test_rows_prepared_for_another_tokenizer_are_refused(tmp_path: Path) -> None:
    one = {"adapter": {**ADAPTER, "steps": 1}}
    train(recipe(tmp_path, stages=one), tmp_path)
    folder = tmp_path / "out" / "rows"
    manifest = json.loads((folder / "manifest.json").read_text())
    shared = recipe(tmp_path, stages=one, data__rows="out/rows", output="next")
    assert read(train(shared, tmp_path)).lclm.extension.ratios == (8,)
    assert not (tmp_path / "next" / "rows").exists()
    for changes, says in (
        ({"model__ratios": []}, "packed for ratio 8"),
        ({"data__row_tokens": 64}, "data.row_tokens is 64"),
    ):
        config = recipe(tmp_path, stages=one, data__rows="out/rows", output="third", **changes)
        with pytest.raises(TrainingError, match=says):
            train(config, tmp_path)
    manifest["tokenizers"]["encoder"] = "other"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match="another tokenizer than that of the encoder"):
        train(dataclasses.replace(shared, output="fourth"), tmp_path)


def test_a_model_folder_may_be_relative_to_where_the_run_starts(tmp_path: Path) -> None:
    (tmp_path / "half").symlink_to(CHECKPOINT / "encoder")
    config = recipe(tmp_path, model__encoder="half", stages={"adapter": {**ADAPTER, "steps": 1}})
    assert read(train(config, tmp_path)).lclm.encoder.body.config.hidden_size == 48


def test_a_runs_folder_says_what_it_ran_with(tmp_path: Path) -> None:
    config = recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 1}})
    train(config, tmp_path)
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["recipe"] == json.loads(json.dumps(config.to_dict()))
    assert about["versions"]["torch"] == version("torch")
    assert about["ranks"] == 1
    assert about["rows"]["main"] >= 4


def test_the_log_tells_the_share_of_a_given_peak(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    stages = {"decoder": {**DECODER, "steps": 1}}
    stage = one_stage(tmp_path, "decoder", logged.append, stages=stages, peak_tflops=1e-5)
    stage.run()
    lclm, row = stage.model, logged[0]
    table = lclm.get_output_embeddings().weight.numel()

    def matrices(module: torch.nn.Module, without: int) -> int:
        return sum(p.numel() for p in module.parameters() if p.dim() > 1) - without

    read_by_encoder = lclm.encoder.body.embed_tokens.weight.numel()
    flops = 6 * (
        row["source_tokens"] * matrices(lclm.encoder, read_by_encoder)
        + row["latents"] * matrices(lclm.adapter, 0)
        + row["decoder_tokens"] * matrices(lclm.get_decoder(), table)
        + row["scored_tokens"] * table
    )
    assert row["mfu"] == pytest.approx(flops / row["seconds"] / 1e7, rel=0.05)
    assert row["mfu"] > 0
