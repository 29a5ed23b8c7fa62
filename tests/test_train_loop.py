"""Training: where gradients go, what moves and how fast, in which order rows are read, learning."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from reference import scored_losses
from safetensors.torch import load_file
from training import (
    ADAPTER,
    DECODER,
    ENCODER,
    GROUPS,
    assemble,
    losses_of,
    made_rows,
    moments_of,
    one_stage,
    recipe,
    rows_of,
    tensors_of,
    weights_of,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from octavo.checkpoint import read
from octavo.errors import TrainingError
from octavo.train import parallel
from octavo.train.config import StageSection
from octavo.train.groups import group_of, set_trainable
from octavo.train.loop import RowOrder, Stage, learning_rate
from octavo.train.rows import Row
from octavo.train.stages import train

ALL = {"adapter": 0.1, "encoder": 0.1, "decoder": 0.1}


# -- the loss of a step --------------------------------------------------------------------------


def test_a_steps_loss_is_the_mean_over_all_scored_tokens_as_the_slow_twin_has_it(
    tmp_path: Path,
) -> None:
    rows = made_rows(assemble(recipe(tmp_path)), 4)
    logged: list[dict[str, Any]] = []
    stage = one_stage(tmp_path, log=logged.append, rows=rows, batch_rows=4)
    with torch.no_grad():
        losses = [
            loss
            for row in rows
            for example in row.examples
            for loss in scored_losses(stage.model, example, row.ratio)
        ]
    stage.settings.steps = 1
    stage.run()
    assert logged[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert logged[0]["scored_tokens"] == len(losses)
    spans = [(span, row.ratio) for row in rows for e in row.examples for span in e.spans]
    assert logged[0]["source_tokens"] == sum(len(span) for span, _ in spans)
    assert logged[0]["latents"] == sum(math.ceil(len(span) / ratio) for span, ratio in spans)
    lengths = [e.length(row.ratio) for row in rows for e in row.examples]
    assert logged[0]["decoder_tokens"] == sum(lengths)


def test_micro_batches_weighted_by_tokens_equal_one_batch(tmp_path: Path) -> None:
    steps = []
    for size in (1, 2, 4):
        logged: list[dict[str, Any]] = []
        stages = {"decoder": {"steps": 1, "lr": ALL}}
        stage = one_stage(
            tmp_path, "decoder", logged.append, stages=stages, micro_batch_rows=size
        )
        stage.run()
        steps.append((logged[0]["loss"], moments_of(stage)))
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
    checkpoint = assemble(recipe(tmp_path, model__adapter_type="attn_mlp"))
    names = set_trainable(checkpoint.lclm, {"adapter": 1.0})["adapter"].keys()
    assert names == {f"adapter.{name}" for name, _ in checkpoint.lclm.adapter.named_parameters()}
    assert any("decoder_layer" in name for name in names)


def test_groups_have_one_order_whatever_the_recipe_says(tmp_path: Path) -> None:
    # The clipped norm is a sum over groups: another order would round differently after a resume.
    lclm = assemble(recipe(tmp_path)).lclm
    for groups in (["decoder", "adapter", "encoder"], {"encoder", "decoder", "adapter"}):
        assert list(set_trainable(lclm, groups)) == ["adapter", "encoder", "decoder"]


@pytest.mark.parametrize("trained", [GROUPS[:1], (GROUPS[0], GROUPS[3]), GROUPS[:2], GROUPS[:3]])
def test_a_stage_moves_its_groups_and_nothing_else(tmp_path: Path, trained: Any) -> None:
    stages = {"encoder": {"steps": 2, "lr": dict.fromkeys(trained, 1e-2)}}
    stage = one_stage(tmp_path, "encoder", stages=stages)
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
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_each_group_moves_at_its_own_rate(tmp_path: Path) -> None:
    rates = {"adapter": 1e-2, "encoder": 1e-3, "decoder": 1e-4}
    stage = one_stage(tmp_path, "decoder", stages={"decoder": {"steps": 1, "lr": rates}})
    before = weights_of(stage.model)
    stage.run()
    for name, parameter in stage.model.named_parameters():  # the first step of Adam is the rate
        moved = float((parameter.detach() - before[name]).abs().max())
        assert moved == pytest.approx(rates[group_of(name)], rel=0.05), name


def adamw_by_hand(
    start: torch.Tensor,
    grads: list[torch.Tensor],
    rates: list[float],
    betas: tuple[float, float],
    decay: float,
) -> torch.Tensor:
    """Follow arXiv 1711.05101, algorithm 2, one parameter at a time."""
    weight, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        weight = weight - rate * decay * weight
        first = betas[0] * first + (1 - betas[0]) * grad
        second = betas[1] * second + (1 - betas[1]) * grad**2
        debiased = (second / (1 - betas[1] ** step)).sqrt() + 1e-8
        weight = weight - rate * first / (1 - betas[0] ** step) / debiased
    return weight


def test_each_group_has_its_own_rate_betas_and_decay(tmp_path: Path) -> None:
    section = {
        "steps": 3,
        "warmup_steps": 2,
        "lr": {"adapter": 1e-2, "encoder": 1e-3, "decoder": 1e-4},
        "betas": {"adapter": [0.5, 0.6], "decoder": [0.0, 0.999]},
        "weight_decay": {"adapter": 0.3, "encoder": 0.1},
    }
    stage = one_stage(tmp_path, "decoder", stages={"decoder": section}, max_grad_norm=1e9)
    before, grads = weights_of(stage.model), dict[str, list[torch.Tensor]]()
    apply = stage.optimizer.step

    def step() -> None:
        for name, parameter in stage.named.items():
            assert parameter.grad is not None
            grads.setdefault(name, []).append(parameter.grad.clone())
        apply()

    stage.optimizer.step = step  # type: ignore[method-assign, assignment]
    stage.run()
    assert {group_of(name) for name in grads} == {"adapter", "encoder", "decoder"}
    for name, parameter in stage.named.items():
        group = group_of(name)
        peak = section["lr"][group]  # type: ignore[index]
        expected = adamw_by_hand(
            before[name],
            grads[name],
            [learning_rate(k, stage.settings, peak) for k in range(3)],
            {"adapter": (0.5, 0.6), "decoder": (0.0, 0.999)}.get(group, (0.9, 0.95)),
            {"adapter": 0.3, "encoder": 0.1}.get(group, 0.0),
        )
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_by_their_norm_over_all_groups(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    stages = {"decoder": {"steps": 1, "lr": ALL}}
    stage = one_stage(tmp_path, "decoder", logged.append, stages=stages, max_grad_norm=0.01)
    stage.run()
    assert logged[0]["grad_norm"] > 0.01
    first = [m for name, m in moments_of(stage).items() if name.startswith("exp_avg/")]
    norm = math.sqrt(sum(float((moment / 0.1).square().sum()) for moment in first))
    assert norm == pytest.approx(0.01, rel=1e-3)  # 0.1 is 1 - beta of the first moment


def test_the_schedule_is_the_one_computed_by_hand() -> None:
    # Ours: the rate of step k (from 0) is peak (k+1)/warm-up, then a half cosine over the rest that
    # starts at the peak and would reach the floor at step `total`.
    stage = StageSection(steps=12, warmup_steps=4, min_lr_ratio=0.1)
    by_hand = [0.25, 0.5, 0.75, 1, 1, 0.9657, 0.8682, 0.7222, 0.55, 0.3778, 0.2318, 0.1343]
    assert [learning_rate(k, stage, 1.0) for k in range(12)] == pytest.approx(by_hand, abs=1e-4)
    assert learning_rate(12, stage, 1.0) == pytest.approx(0.1)
    assert learning_rate(99, stage, 1.0) == pytest.approx(0.1)
    assert learning_rate(3, stage, 2e-4) == pytest.approx(2e-4)


# -- the order of rows ---------------------------------------------------------------------------


def test_every_row_is_read_once_an_epoch_and_in_another_order_in_the_next() -> None:
    order = RowOrder(50, "0/main")
    epochs = [[order[epoch * 50 + place] for place in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != list(range(50))
    again = RowOrder(50, "0/main")
    assert [again[index] for index in (149, 3, 70)] == [epochs[2][49], epochs[0][3], epochs[1][20]]
    assert [RowOrder(50, "1/main")[index] for index in range(50)] != epochs[0]


def read_in(stage: Stage) -> list[str]:
    """Run a stage and return the rows it reads, in order."""
    seen: list[str] = []
    batches = stage._batches

    def watched() -> Any:
        made = batches()
        seen.extend(row for batch in made for row in batch.row_ids)
        return made

    stage._batches = watched  # type: ignore[method-assign]
    stage.run()
    return seen


def test_a_stage_goes_on_in_a_mixture_where_the_one_before_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}
    row_of = Stage._row

    def watched(stage: Stage, index: int) -> Row:
        row = row_of(stage, index)
        seen.setdefault(stage.name, []).append(row.id)
        return row

    monkeypatch.setattr(Stage, "_row", watched)
    stages = {
        "adapter": {**ADAPTER, "steps": 3},
        "encoder": {**ENCODER, "steps": 2, "mixture": "other"},
        "decoder": {**DECODER, "steps": 2},
    }
    other = {"copy_tokens": [4, 8], "weights": {"reconstruction": 1.0}}
    config = recipe(tmp_path, stages=stages, data__mixtures__other=other, measure_every=99)
    train(config, tmp_path)
    assert {name: len(rows) for name, rows in seen.items()} == {
        "adapter": 12, "encoder": 8, "decoder": 8
    }  # fmt: skip
    main = seen["adapter"] + seen["decoder"]
    assert all(row.startswith("main/") for row in main)
    assert len(set(main)) == 20  # as many as were prepared: each is read once
    assert all(row.startswith("other/") for row in seen["encoder"])


def test_all_rows_of_a_step_are_read_once_however_they_are_batched(tmp_path: Path) -> None:
    by_two = read_in(one_stage(tmp_path, micro_batch_rows=2))
    assert by_two == read_in(one_stage(tmp_path, micro_batch_rows=4))
    assert len(set(by_two)) == 16


def test_a_row_whose_ratio_is_not_served_is_read_at_the_next_larger_one(tmp_path: Path) -> None:
    made = made_rows(assemble(recipe(tmp_path)), 8, ratios=(2, 3, 4, 6))
    stage = one_stage(tmp_path, rows=made)
    found = {row.id: row.ratio for row in (stage._row(index) for index in range(8))}
    assert [found[row.id] for row in made] == [2, 4, 4, 8] * 2
    stage.run()


# -- learning ------------------------------------------------------------------------------------


def test_loss_falls_and_reconstruction_beats_reading_nothing(tmp_path: Path) -> None:
    rates = {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2}
    config = recipe(
        tmp_path,
        stages={"decoder": {"steps": 30, "lr": rates, "warmup_steps": 3}},
        data__mixtures__main__weights={"reconstruction": 1.0},
        data__mixtures__main__copy_tokens=[4, 8],
        data__held_out=["a copy.txt"],
        data__held_out_examples=24,
        model__compression_ratio=2,
        model__ratios=[],
        measure_every=30,
        batch_rows=16,
        micro_batch_rows=16,
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
    kinds = ("reconstruction", "interleaved")
    assert measured.keys() == {f"{kind}/{ratio}" for kind in kinds for ratio in (2, 4, 8)}
    for numbers in measured.values():
        assert numbers["examples"] == 3
        for view in ("latents", "raw", "none", "shuffled", "gain"):
            for mean, low, high in (numbers[view]["loss"], numbers[view]["accuracy"]):
                assert low <= mean <= high


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
        count = {"encoder": 0, "decoder": 0}
        for name, layer in (
            ("encoder", stage.model.encoder.body.layers[0]),
            ("decoder", stage.model.get_decoder().layers[0]),
        ):
            layer.self_attn.register_forward_hook(
                lambda *_, name=name: count.update({name: count[name] + 1})
            )
        stage.run()
        assert count["decoder"] == passes
        assert count["encoder"] in (1, passes)  # frozen here: nothing to recompute for


@pytest.mark.slow
def test_compiled_layers_give_nearly_the_same_losses(tmp_path: Path) -> None:
    losses = []
    for name, flag in (("plain", False), ("compiled", True)):
        config = recipe(
            tmp_path / name, compile=flag, stages={"decoder": {**DECODER, "steps": 3}}
        )
        train(config, tmp_path / name)
        losses.append(losses_of(tmp_path / name / "out"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


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
