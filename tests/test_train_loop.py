"""Training: where gradients go, what moves, what is scored, and that a resumed run is the same."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from reference import scored_losses
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import octavo.train.loop as loop_module
from octavo.assembly import assemble_parts
from octavo.checkpoint import Checkpoint, read
from octavo.errors import OctavoError, TrainingError
from octavo.files import WriteError
from octavo.nn import LCLM
from octavo.train.config import RunConfig, StageSection
from octavo.train.data import Document, Example, Examples, served_ratios
from octavo.train.loop import Stage, group_of, learning_rate, set_trainable
from octavo.train.loss import score
from octavo.train.stages import train

GROUPS = ("adapter", "encoder", "decoder", "memory_rows")
ADAPTER = {"steps": 4, "lr": {"adapter": 1e-2, "memory_rows": 1e-2}}
ENCODER = {"steps": 4, "lr": {"adapter": 1e-2, "encoder": 1e-2}}
DECODER = {"steps": 4, "lr": {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2}}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep tiny matrices on one thread: on a busy machine threads cost ten times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(folder: Path, **changes: Any) -> RunConfig:
    """Write texts to `folder` and return a recipe that trains the golden halves on them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text(TEXT * 8, encoding="utf-8")
    (folder / "held.txt").write_text(TEXT[::-1] * 4, encoding="utf-8")
    values: dict[str, Any] = {
        "model.encoder": str(CHECKPOINT / "encoder"),
        "model.decoder": str(CHECKPOINT / "decoder"),
        "model.compression_ratio": 4,
        "model.ratios": [2, 8],
        "model.encoder_window_size": 16,
        "data.train": ["a.txt"],
        "data.held_out": ["held.txt"],
        "data.span_tokens": [8, 20],
        "data.copy_tokens": [4, 8],
        "data.target_tokens": [4, 8],
        "batch_size": 4,
        "micro_batch_size": 2,
        "save_every": 2,
        "measure_every": 3,
        "measure_examples": 3,
        "output": "out",
        "precision": "fp32",
        "device": "cpu",
    }
    stages = changes.pop("stages", {"adapter": ADAPTER})
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    file = folder / "recipe.toml"
    file.write_text("", encoding="utf-8")
    weights = values.pop("data.weights", {})
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    overrides += [f"data.weights.{kind}={weight}" for kind, weight in weights.items()]
    for name, stage in stages.items():
        for key, value in stage.items():
            items = value.items() if isinstance(value, dict) else [("", value)]
            overrides += [f"stages.{name}.{key}.{k}".rstrip(".") + f"={v}" for k, v in items]
    return RunConfig.load(file, overrides)


def parts(config: RunConfig) -> Checkpoint:
    torch.manual_seed(config.seed)
    section = config.model
    lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
        section.encoder, section.decoder, section.model_config(), extension=section.extension()
    )
    return Checkpoint(lclm, decoder_tokenizer, encoder_tokenizer, "tiny", "")


def stream(checkpoint: Checkpoint, config: RunConfig, **weights: float) -> Examples:
    return Examples(
        [Document(TEXT * 8)],
        checkpoint.prompts(),
        config.data,
        ratios=served_ratios(checkpoint.lclm),
        weights=weights or config.data.weights,
        seed="test",
    )


def one_stage(
    tmp_path: Path, name: str, log: Callable[[dict[str, Any]], None], **changes: Any
) -> Stage:
    config = recipe(tmp_path, **changes)
    checkpoint = parts(config)
    folder = tmp_path / "stage"
    return Stage(name, checkpoint.lclm, stream(checkpoint, config), config, folder, log)


def weights_of(lclm: LCLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lclm.state_dict().items()}


def nothing(_: dict[str, Any]) -> None:
    """Log nowhere."""


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the log without what no two runs share."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    unshared = {"time", "seconds", "exported"}
    shared = [{k: v for k, v in row.items() if k not in unshared} for row in rows]
    return [row for row in shared if "resumed" not in row]


def interrupt_at(stage: str, step: int) -> Callable[[str, int, int, float], None]:
    def on_step(its_stage: str, its_step: int, steps: int, loss: float) -> None:
        if (its_stage, its_step) == (stage, step):
            raise KeyboardInterrupt

    return on_step


# -- what is scored and where gradients go -------------------------------------------------------


def test_only_text_outside_spans_is_scored_as_the_slow_twin_does(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    checkpoint = parts(config)
    examples = [stream(checkpoint, config)[index] for index in range(6)]
    scored = score(checkpoint.lclm, examples)
    for index, example in enumerate(examples):
        fast = scored.loss_P[scored.example_P == index].tolist()
        assert fast == pytest.approx(scored_losses(checkpoint.lclm, example), abs=1e-4)


def test_a_batch_of_many_spans_and_ratios_reaches_encoder_and_adapter(tmp_path: Path) -> None:
    config = recipe(tmp_path, data__max_pairs=3)
    checkpoint = parts(config)
    examples = [stream(checkpoint, config, interleaved=1.0)[index] for index in range(6)]
    assert len({example.ratio for example in examples}) > 1
    assert max(len(example.spans) for example in examples) > 1
    score(checkpoint.lclm, examples).loss_P.mean().backward()
    for part in (checkpoint.lclm.encoder, checkpoint.lclm.adapter, checkpoint.lclm.decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_latents_change_the_loss_and_the_other_views_do_not_read_them(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    checkpoint = parts(config)
    examples = [stream(checkpoint, config)[index] for index in range(3)]
    before = {view: score(checkpoint.lclm, examples, view).loss_P for view in ("raw", "none")}
    latents = score(checkpoint.lclm, examples).loss_P
    with torch.no_grad():
        checkpoint.lclm.adapter.fc2.weight.neg_()
    assert not torch.equal(score(checkpoint.lclm, examples).loss_P, latents)
    for view in ("raw", "none"):
        assert torch.equal(score(checkpoint.lclm, examples, view).loss_P, before[view])


def test_micro_batches_weighted_by_tokens_equal_one_batch(tmp_path: Path) -> None:
    steps = []
    for size in (1, 2, 4):
        rows: list[dict[str, Any]] = []
        stages = {"decoder": {"steps": 1, "lr": {"adapter": 0.1, "encoder": 0.1, "decoder": 0.1}}}
        stage = one_stage(tmp_path, "decoder", rows.append, micro_batch_size=size, stages=stages)
        stage.run()
        moments = {name: stage.optimizer.state[p]["exp_avg"] for name, p in stage._named().items()}
        steps.append((rows[0]["loss"], moments))
    for loss, moments in steps[1:]:
        assert loss == pytest.approx(steps[0][0], abs=1e-5)
        for name, moment in moments.items():
            torch.testing.assert_close(moment, steps[0][1][name], rtol=1e-3, atol=1e-6)


# -- groups, rates, schedule ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("adapter.attention_layers.0.decoder_layer.self_attn.q_proj.weight", "adapter"),
        ("adapter.fc1.weight", "adapter"),
        ("residual.weight_RD", "adapter"),
        ("encoder.body.layers.0.mlp.up_proj.weight", "encoder"),
        ("decoder.model.layers.0.mlp.up_proj.weight", "decoder"),
        ("decoder.base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default",
         "memory_rows"),
    ],
)  # fmt: skip
def test_a_parameter_belongs_to_the_part_it_lives_in(name: str, group: str) -> None:
    assert group_of(name) == group


def test_attention_layers_of_the_adapter_train_with_the_adapter(tmp_path: Path) -> None:
    checkpoint = parts(recipe(tmp_path, model__adapter_type="attn_mlp"))
    names = set_trainable(checkpoint.lclm, {"adapter": 1.0})["adapter"].keys()
    assert names == {f"adapter.{name}" for name, _ in checkpoint.lclm.adapter.named_parameters()}
    assert any("decoder_layer" in name for name in names)


def test_groups_have_one_order_whatever_the_recipe_says(tmp_path: Path) -> None:
    # The clipped norm is a sum over groups: another order would round differently after a resume.
    lclm = parts(recipe(tmp_path)).lclm
    for groups in (["decoder", "adapter", "encoder"], {"encoder", "decoder", "adapter"}):
        assert list(set_trainable(lclm, groups)) == ["adapter", "encoder", "decoder"]


@pytest.mark.parametrize("trained", [GROUPS[:1], (GROUPS[0], GROUPS[3]), GROUPS[:2], GROUPS[:3]])
def test_a_stage_moves_its_groups_and_nothing_else(tmp_path: Path, trained: Any) -> None:
    stages = {"encoder": {"steps": 2, "lr": dict.fromkeys(trained, 1e-2)}}
    stage = one_stage(tmp_path, "encoder", nothing, stages=stages)
    before = weights_of(stage.model)
    stage.run()
    rows = stage.model.config.memory_token_ids
    tied = {"decoder.model.embed_tokens.weight", "decoder.lm_head.weight"}
    for name, tensor in stage.model.state_dict().items():
        if "memory_rows" in trained and name in tied:
            others = torch.ones(len(tensor), dtype=torch.bool)
            others[rows] = False
            assert torch.equal(tensor[others], before[name][others])
            assert not torch.equal(tensor[rows[0]], before[name][rows[0]])
        elif group_of(name) in trained:
            assert not torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, before[name]), name


def test_memory_rows_alone_do_not_keep_a_later_stage_from_moving_all_rows(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 1}, "decoder": {**DECODER, "steps": 1}}
    export = train(recipe(tmp_path, stages=stages), tmp_path)
    first = read(tmp_path / "out" / "adapter" / "export").lclm.get_input_embeddings().weight
    last = read(export).lclm.get_input_embeddings().weight
    assert (first != last).any(-1).float().mean() > 0.9


def test_a_decoder_trained_whole_has_no_memory_rows_of_its_own(tmp_path: Path) -> None:
    stages = {"decoder": {"steps": 1, "lr": {"decoder": 1e-3, "memory_rows": 1e-3}}}
    with pytest.raises(TrainingError, match="drop the lr of memory_rows"):
        train(recipe(tmp_path, stages=stages), tmp_path)
    assert not (tmp_path / "out").exists()


def test_each_group_moves_at_its_own_rate(tmp_path: Path) -> None:
    rates = {"adapter": 1e-2, "encoder": 1e-3, "decoder": 1e-4}
    stage = one_stage(tmp_path, "decoder", nothing, stages={"decoder": {"steps": 1, "lr": rates}})
    before = weights_of(stage.model)
    stage.run()
    for name, parameter in stage.model.named_parameters():  # the first step of Adam is the rate
        moved = float((parameter.detach() - before[name]).abs().max())
        assert moved == pytest.approx(rates[group_of(name)], rel=0.05), name


def test_the_schedule_is_the_one_computed_by_hand() -> None:
    # Ours: the rate of step k (from 0) is peak (k+1)/warm-up, then a half cosine over the rest that
    # starts at the peak and would reach the floor at step `total`.
    stage = StageSection(steps=12, warmup_steps=4, min_lr_ratio=0.1)
    by_hand = [0.25, 0.5, 0.75, 1, 1, 0.9657, 0.8682, 0.7222, 0.55, 0.3778, 0.2318, 0.1343]
    assert [learning_rate(k, stage, 1.0) for k in range(12)] == pytest.approx(by_hand, abs=1e-4)
    assert learning_rate(12, stage, 1.0) == pytest.approx(0.1)
    assert learning_rate(99, stage, 1.0) == pytest.approx(0.1)
    assert learning_rate(3, stage, 2e-4) == pytest.approx(2e-4)


# -- learning ------------------------------------------------------------------------------------


def test_loss_falls_and_reconstruction_beats_reading_nothing(tmp_path: Path) -> None:
    rates = {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2}
    stages = {"decoder": {"steps": 30, "lr": rates, "warmup_steps": 3}}
    config = recipe(
        tmp_path,
        stages=stages,
        data__weights={"reconstruction": 1.0},
        data__held_out=["a copy.txt"],
        model__compression_ratio=2,
        model__ratios=[],
        measure_every=30,
        measure_examples=24,
        batch_size=16,
        micro_batch_size=16,
        save_every=30,
    )
    (tmp_path / "a copy.txt").write_text(TEXT * 7, encoding="utf-8")
    train(config, tmp_path)
    rows = rows_of(tmp_path / "out")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    measured = next(row["measured"] for row in rows if "measured" in row)["reconstruction/2"]
    assert measured["latents"]["accuracy"][0] > measured["none"]["accuracy"][0]
    assert measured["gain"]["loss"][1] > 0  # the lower end of the interval


def test_held_out_numbers_come_with_intervals_for_every_kind_and_ratio(tmp_path: Path) -> None:
    train(recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 1}}), tmp_path)
    measured = next(r["measured"] for r in rows_of(tmp_path / "out") if "measured" in r)
    kinds = ("reconstruction", "interleaved")
    assert measured.keys() == {f"{kind}/{ratio}" for kind in kinds for ratio in (2, 4, 8)}
    for name, numbers in measured.items():
        views = {"latents", "none"} | ({"raw"} if "interleaved" in name else set())
        assert numbers.keys() == views | {"gain", "examples"}
        for view in (*views, "gain"):
            for mean, low, high in (numbers[view]["loss"], numbers[view]["accuracy"]):
                assert low <= mean <= high


def test_bf16_autocast_trains_on_a_cpu(tmp_path: Path) -> None:
    stages = {"decoder": {**DECODER, "steps": 2}}
    export = train(recipe(tmp_path, precision="bf16", stages=stages), tmp_path)
    losses = [row["loss"] for row in rows_of(tmp_path / "out") if "loss" in row]
    assert all(math.isfinite(loss) for loss in losses)
    assert load_file(export / "decoder" / "model.safetensors")["model.norm.weight"].dtype is (
        torch.float32
    )


# -- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, rank: int) -> None:
    decoder = {**DECODER, "lr": {**DECODER["lr"], "memory_rows": 1e-2}} if rank else DECODER
    stages = {"adapter": ADAPTER, "decoder": {**decoder, "steps": 5}}
    whole = recipe(tmp_path / "whole", lora__rank=rank, stages=stages)
    train(whole, tmp_path / "whole")
    broken = recipe(tmp_path / "broken", lora__rank=rank, stages=stages)
    for place in (("adapter", 3), ("decoder", 1), ("decoder", 4)):
        with pytest.raises(KeyboardInterrupt):
            train(broken, tmp_path / "broken", resume=True, on_step=interrupt_at(*place))
    train(broken, tmp_path / "broken", resume=True)
    outs = [tmp_path / name / "out" for name in ("whole", "broken")]
    assert rows_of(outs[0]) == rows_of(outs[1])
    # The uninterrupted run saved last at step 4; so did the other, again, after its last break.
    files = sorted(p.relative_to(outs[0]) for p in outs[0].rglob("*.safetensors"))
    assert files == sorted(p.relative_to(outs[1]) for p in outs[1].rglob("*.safetensors"))
    assert any("optimizer" in file.name for file in files)
    for file in files:
        ours, theirs = load_file(outs[0] / file), load_file(outs[1] / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file


def test_rows_of_steps_after_the_checkpoint_are_not_logged_twice(tmp_path: Path) -> None:
    config = recipe(tmp_path, save_every=2, stages={"adapter": {**ADAPTER, "steps": 6}})

    def die(stage: str, step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise RuntimeError("as if killed: nothing is saved")

    with pytest.raises(RuntimeError):
        train(config, tmp_path, on_step=die)
    with (tmp_path / "out" / "log.jsonl").open("a") as file:
        file.write('{"stage": "adapter", "st')  # and in the middle of a line
    train(config, tmp_path, resume=True)
    steps = [row["step"] for row in rows_of(tmp_path / "out") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_real_ctrl_c_in_a_step_saves_a_whole_checkpoint(tmp_path: Path) -> None:
    stage = one_stage(tmp_path, "adapter", nothing)
    applied = stage.optimizer.step
    stage.optimizer.step = lambda: (signal.raise_signal(signal.SIGINT), applied())  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert stage.step == 1  # the step that was begun was taken, and then saved
    saved = [path.name for path in (tmp_path / "stage").iterdir()]
    assert saved == ["checkpoint-00000001"]
    again = one_stage(tmp_path, "adapter", nothing)
    assert again.resume()
    assert again.step == 1
    for name, parameter in stage._named().items():
        assert torch.equal(parameter, again._named()[name])


def test_ctrl_c_during_a_measurement_does_not_lose_it(tmp_path: Path) -> None:
    config = recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 3}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("octavo.train.stages.measure", lambda *_, **__: signal.raise_signal(2))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    train(config, tmp_path, resume=True)
    assert [row["step"] for row in rows_of(tmp_path / "out") if "measured" in row] == [3]


@pytest.mark.parametrize("fails_at", ["weights.safetensors", "optimizer.safetensors"])
def test_a_full_disk_while_saving_leaves_the_last_checkpoint(
    tmp_path: Path, fails_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = one_stage(tmp_path, "adapter", nothing)
    stage.save()
    save_file = loop_module.save_file

    def full(tensors: Any, path: Path) -> None:
        if path.name == fails_at:
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(loop_module, "save_file", full)
    with pytest.raises(WriteError, match="No space left"):
        stage.run()
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["checkpoint-00000000"]
    again = one_stage(tmp_path, "adapter", nothing)
    assert again.resume()
    assert again.step == 0


def test_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    stage = one_stage(tmp_path, "adapter", nothing)
    (stage.save() / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="is damaged"):
        stage.resume()


def test_a_finished_run_resumes_to_its_model_without_a_step(tmp_path: Path) -> None:
    config = recipe(tmp_path, stages={"adapter": {**ADAPTER, "steps": 1}})
    export = train(config, tmp_path)
    before = (tmp_path / "out" / "log.jsonl").read_text()
    assert train(config, tmp_path, resume=True) == export
    assert (tmp_path / "out" / "log.jsonl").read_text() == before


def test_a_run_is_not_overwritten_and_not_resumed_by_another_recipe(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 2}, "decoder": {**DECODER, "steps": 1}}
    with pytest.raises(KeyboardInterrupt):
        train(recipe(tmp_path, stages=stages), tmp_path, on_step=interrupt_at("adapter", 1))
    with pytest.raises(TrainingError, match="already holds a run; add --resume"):
        train(recipe(tmp_path, stages=stages), tmp_path)
    with pytest.raises(TrainingError, match=r"seed is 3, but the run in .* began with 0"):
        train(recipe(tmp_path, stages=stages, seed=3), tmp_path, resume=True)
    other = {**stages, "adapter": {**ADAPTER, "steps": 9}}
    with pytest.raises(TrainingError, match=r"stages\.adapter\.steps is 9"):
        train(recipe(tmp_path, stages=other), tmp_path, resume=True)
    config = recipe(tmp_path, stages=stages)
    (tmp_path / "a.txt").write_text(TEXT * 9, encoding="utf-8")
    with pytest.raises(TrainingError, match="texts are not those"):
        train(config, tmp_path, resume=True)
    later = {**stages, "decoder": {**DECODER, "steps": 2}}  # has not begun: may change
    config = recipe(tmp_path, stages=later, save_every=1)
    assert train(config, tmp_path, resume=True).parent.name == "decoder"


# -- broken steps --------------------------------------------------------------------------------


def break_steps(monkeypatch: pytest.MonkeyPatch, broken: set[int], stage: Stage) -> None:
    def broken_score(model: LCLM, examples: list[Example]) -> Any:
        scored = score(model, examples)
        if stage.step in broken:
            scored.loss_P.mul_(float("nan"))
        return scored

    monkeypatch.setattr(loop_module, "score", broken_score)


def test_a_step_that_is_not_finite_is_skipped_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = []
    stage = one_stage(tmp_path, "adapter", rows.append, save_every=99)
    break_steps(monkeypatch, {1}, stage)
    stage.run()
    assert [row["step"] for row in rows if "skipped" in row] == [2]
    assert rows[1]["loss"] is None
    assert all("NaN" not in json.dumps(row) for row in rows)
    assert all(torch.isfinite(parameter).all() for parameter in stage.model.parameters())
    steps = {float(stage.optimizer.state[p]["step"]) for p in stage._named().values()}
    assert steps == {3.0}


def test_ten_broken_steps_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = []
    stages = {"adapter": {**ADAPTER, "steps": 30}}
    stage = one_stage(tmp_path, "adapter", rows.append, stages=stages)
    break_steps(monkeypatch, {0, *range(2, 30)}, stage)
    with pytest.raises(TrainingError, match="10 steps in a row"):
        stage.run()
    assert stage.step == 12
    assert sum("skipped" in row for row in rows) == 11


# -- exports -------------------------------------------------------------------------------------


def test_every_stage_exports_a_checkpoint_that_strangers_open(tmp_path: Path) -> None:
    stages = {"adapter": ADAPTER, "encoder": ENCODER, "decoder": DECODER, "sft": DECODER}
    stages = {name: {**stage, "steps": 1} for name, stage in stages.items()}
    train(recipe(tmp_path, stages=stages, model__encoder_layers=1), tmp_path)
    for name in stages:
        export = tmp_path / "out" / name / "export"
        lclm = read(export).lclm
        assert lclm.extension.ratios == (2, 8)
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


# -- what cannot work stops before the first step ------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__train": ["absent.txt"]}, "no file matches 'absent.txt'"),
        ({"data__train": ["short.txt"]}, "none of 1 documents is prose"),
        ({"data__held_out": ["short.txt"]}, "held-out texts: none of 1 documents is prose"),
        ({"data__held_out": ["a.txt"]}, "held-out texts are trained on too"),
        ({"data__train": ["empty.txt"]}, "holds no text"),
        ({"data__span_tokens": [1500, 1600]}, "documents in a row were too short"),
        ({"data__span_tokens": [8, 9000]}, "decoder has 4096 positions"),
        ({"model__encoder_window_size": 8192}, "encoder has 4096 positions"),
        ({"data__weights": {"copying": 1.0}}, "names 'copying'"),
        ({"data__weights": {"interleaved": 1.0, "qa": 1e-9}}, "no record has question"),
        ({"model__encoder": "nowhere/at all"}, "cannot load nowhere/at all"),
        ({"model__encoder_layers": 9}, "the model has 2 layers"),
        ({"model__residual": "sum"}, "share a tokenizer"),
        ({"device": "nonsense"}, "device 'nonsense' is not to be had"),
        ({"output": "a.txt/out"}, "cannot make the folder"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    steps: list[Any] = []
    with pytest.raises(OctavoError, match=says):
        train(recipe(tmp_path, **changes), tmp_path, on_step=lambda *step: steps.append(step))
    assert steps == []
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_disk_too_small_is_noticed_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(TrainingError, match="make room or choose another output"):
        train(recipe(tmp_path), tmp_path)


def test_a_model_folder_may_be_relative_to_where_the_run_starts(tmp_path: Path) -> None:
    (tmp_path / "half").symlink_to(CHECKPOINT / "encoder")
    config = recipe(tmp_path, model__encoder="half", stages={"adapter": {**ADAPTER, "steps": 1}})
    assert read(train(config, tmp_path)).lclm.encoder.body.config.hidden_size == 48
