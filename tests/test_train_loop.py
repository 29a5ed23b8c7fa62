"""Training: where gradients go, what moves and how fast, in which order rows are read, learning."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import scored_losses
from training import (
    ADAPTER,
    DECODER,
    ENCODER,
    GROUPS,
    assemble,
    made_rows,
    moments_of,
    one_stage,
    recipe,
    weights_of,
)

from octavo.data.rows import Row, Rows
from octavo.errors import TrainingError
from octavo.nn import LCLM
from octavo.recipe import StageSection
from octavo.train.feed import RowOrder
from octavo.train.groups import group_of, set_trainable
from octavo.train.loop import Stage, learning_rate
from octavo.train.stages import train
from octavo.weights.layout import read

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
        stage = one_stage(tmp_path, "decoder", logged.append, stages=stages, micro_batch_rows=size)
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


@pytest.mark.slow
def test_memory_rows_alone_do_not_keep_a_later_stage_from_moving_all_rows(tmp_path: Path) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 1}, "decoder": {**DECODER, "steps": 1}}
    export = train(recipe(tmp_path, stages=stages), tmp_path)
    first = read(tmp_path / "out" / "adapter" / "export").lclm.get_input_embeddings().weight
    last = read(export).lclm.get_input_embeddings().weight
    assert (first != last).any(-1).float().mean() > 0.9


def test_a_decoder_trained_whole_has_no_memory_rows_of_its_own(tmp_path: Path) -> None:
    stages = {"decoder": {"steps": 1, "lr": {"decoder": 1e-3, "memory_rows": 1e-3}}}
    with pytest.raises(TrainingError, match=r"drop the lr of memory_rows"):
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
    held = StageSection(steps=12, warmup_steps=4, min_lr_ratio=0.1, hold=0.5)
    by_hand = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.8682, 0.55, 0.2318, 0.1]
    assert [learning_rate(k, held, 1.0) for k in range(13)] == pytest.approx(by_hand, abs=1e-4)
    timed = StageSection(steps=99, min_lr_ratio=0.1, hold=0.5, seconds=8.0)
    by_time = [learning_rate(0, timed, 1.0, seconds) for seconds in (0, 4, 6, 8)]
    assert by_time == pytest.approx([1, 1, 0.55, 0.1])


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


class Watched(list[Row]):
    """Rows that remember which of them were read, in order."""

    def __init__(self, rows: Iterable[Row]) -> None:
        super().__init__(rows)
        self.seen: list[str] = []

    def __getitem__(self, index: Any) -> Any:
        row = super().__getitem__(index)
        self.seen.append(row.id)
        return row


def forty(folder: Path) -> Watched:
    return Watched(made_rows(assemble(recipe(folder)), 40))


@pytest.mark.slow
def test_a_stage_goes_on_in_a_mixture_where_the_one_before_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}
    read: list[str] = []
    row_of = Rows.__getitem__

    def watched(rows: Rows, index: int) -> Row:
        row: Row = row_of(rows, index)
        read.append(row.id)
        return row

    def on_step(stage: str, *_: object) -> None:
        seen.setdefault(stage, []).extend(read)
        read.clear()

    monkeypatch.setattr(Rows, "__getitem__", watched)
    stages = {
        "adapter": {**ADAPTER, "steps": 3},
        "encoder": {**ENCODER, "steps": 2, "mixture": "other"},
        "decoder": {**DECODER, "steps": 2},
    }
    other = {"copy_tokens": [4, 8], "weights": {"reconstruction": 1.0}}
    config = recipe(tmp_path, stages=stages, data__mixtures__other=other, measure_every=99)
    train(config, tmp_path, on_step=on_step)
    assert {name: len(rows) for name, rows in seen.items()} == {
        "adapter": 12, "encoder": 8, "decoder": 8
    }  # fmt: skip
    main = seen["adapter"] + seen["decoder"]
    assert all(row.startswith("main/") for row in main)
    assert len(set(main)) == 20  # as many as were prepared: each is read once
    assert all(row.startswith("other/") for row in seen["encoder"])


def test_all_rows_of_a_step_are_read_once_however_they_are_batched(tmp_path: Path) -> None:
    by_two, by_four = forty(tmp_path), forty(tmp_path)
    one_stage(tmp_path, rows=by_two, micro_batch_rows=2).run()
    one_stage(tmp_path, rows=by_four, micro_batch_rows=4).run()
    assert by_two.seen == by_four.seen
    assert len(set(by_two.seen)) == 16


@pytest.mark.slow
def test_a_row_whose_ratio_is_not_served_is_read_at_the_next_larger_one(tmp_path: Path) -> None:
    for packed, served in ((2, 2), (3, 4), (4, 4), (6, 8)):
        logged: list[dict[str, Any]] = []
        made = made_rows(assemble(recipe(tmp_path)), 4, ratios=(packed,))
        stages = {"adapter": {**ADAPTER, "steps": 1}}
        one_stage(tmp_path, log=logged.append, rows=made, model__ratios=[2, 8], stages=stages).run()
        spans = [span for row in made for example in row.examples for span in example.spans]
        assert logged[0]["latents"] == sum(math.ceil(len(span) / served) for span in spans)


# -- broken steps --------------------------------------------------------------------------------


def break_steps(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, broken: set[int], rows: tuple[int, ...]
) -> None:
    """Make the loss of some rows of a step's micro-batches not a number."""
    score = LCLM.score

    def broken_score(model: LCLM, *args: Any, **kwargs: Any) -> Any:
        scores = score(model, *args, **kwargs)
        if stage.step not in broken:
            return scores
        factor = torch.ones_like(scores.loss_P)
        for row in rows:
            factor[scores.row_P == row] = float("nan")
        return scores._replace(loss_P=scores.loss_P * factor)

    monkeypatch.setattr(LCLM, "score", broken_score)


def test_a_step_that_is_not_finite_is_skipped_and_logged_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    rows = forty(tmp_path)
    stage = one_stage(tmp_path, log=logged.append, rows=rows, save_every=99, log_every=99)
    break_steps(monkeypatch, stage, {1}, (1,))
    stage.run()
    assert [row["step"] for row in logged if "skipped" in row] == [2]  # whatever log_every says
    assert logged[0]["loss"] is None
    assert logged[0]["rows"] == [rows.seen[5], rows.seen[7]]  # the second of each pair of step 2
    assert all("NaN" not in json.dumps(row) for row in logged)
    assert all(torch.isfinite(parameter).all() for parameter in stage.model.parameters())
    steps = {float(stage.optimizer.state[p]["step"]) for p in stage.named.values()}
    assert steps == {3.0}


def test_a_gradient_that_is_not_finite_is_skipped_too_and_names_all_rows_of_its_step(
    tmp_path: Path,
) -> None:
    logged: list[dict[str, Any]] = []
    rows = forty(tmp_path)
    stage = one_stage(tmp_path, log=logged.append, rows=rows)
    weight = stage.model.adapter.fc1.weight
    weight.register_hook(lambda grad: grad * float("inf") if stage.step == 1 else grad)
    stage.run()
    assert [row["step"] for row in logged if "skipped" in row] == [2]
    assert logged[1]["rows"] == rows.seen[4:8]
    assert logged[1]["grad_norm"] is None
    assert all(torch.isfinite(parameter).all() for parameter in stage.model.parameters())


def test_ten_broken_steps_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    stages = {"adapter": {**ADAPTER, "steps": 30}}
    stage = one_stage(tmp_path, log=logged.append, stages=stages)
    break_steps(monkeypatch, stage, {0, *range(2, 30)}, (0,))
    with pytest.raises(TrainingError, match=r"10 steps in a row.*step 12, rows made/0:\d+"):
        stage.run()
    assert stage.step == 12
    assert sum("skipped" in row for row in logged) == 11


def test_skipped_steps_are_counted_across_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"adapter": {**ADAPTER, "steps": 30}}
    stage = one_stage(tmp_path, stages=stages)
    break_steps(monkeypatch, stage, set(range(1, 30)), (0,))
    stage.settings.steps = 6
    stage.run()
    monkeypatch.undo()
    again = one_stage(tmp_path, stages=stages)
    assert again.resume()
    steps = {float(again.optimizer.state[p]["step"]) for p in again.named.values()}
    assert (again.step, again.skipped, steps) == (6, 5, {1.0})
    break_steps(monkeypatch, again, set(range(30)), (0,))
    with pytest.raises(TrainingError, match="10 steps in a row"):
        again.run()
    assert again.step == 11
