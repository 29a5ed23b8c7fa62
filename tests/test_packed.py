"""Packed rows: each example is scored as if alone, and gradients reach all that read it."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT
from reference import scored_losses
from transformers import AutoModel, AutoModelForCausalLM

from octavo.config import ModelConfig
from octavo.data.examples import Example
from octavo.data.rows import Row
from octavo.nn import LCLM, LCLMConfig
from octavo.nn import score as scoring
from octavo.nn.score import Scores
from octavo.train.batch import MicroBatch, collate

WINDOW = 16


def build(residual: str = "none", **settings: Any) -> LCLM:
    """Make a model of the golden halves, with windows shorter than the spans below."""
    torch.manual_seed(1)
    ratios = [] if settings.get("pooling") == "concat" else [8]
    config = ModelConfig(**{"compression_ratio": 4, "encoder_window_size": WINDOW, **settings})
    encoder = AutoModel.from_pretrained(CHECKPOINT / "encoder")
    decoder = AutoModelForCausalLM.from_pretrained(CHECKPOINT / "decoder")
    lclm_config = LCLMConfig(
        text_config=decoder.config.to_dict(),
        encoder_config=encoder.config.to_dict(),
        model_config=config.to_dict(),
        extension={"ratios": ratios, "residual": residual},
        memory_token_ids=[387, 388, 389],
        encoder_pad_token_id=340,
    )
    made: LCLM = LCLM(lclm_config, encoder=encoder, decoder=decoder).eval()
    return made


@pytest.fixture(scope="module")
def lclm() -> LCLM:
    return build()


def example(lclm: LCLM, seed: int, span_lengths: tuple[int, ...], text: int = 5) -> Example:
    """Make up an example: some words, then each span followed by scored words."""
    draw = random.Random(seed)
    start, end, slot = lclm.config.memory_token_ids
    ids = [draw.randrange(300) for _ in range(3)]
    is_scored = [False, True, True]
    spans = []
    for length in span_lengths:
        ids += [start, slot, end, *(draw.randrange(300) for _ in range(text))]
        is_scored += [False] * 3 + [True] * text
        spans.append([draw.randrange(300) for _ in range(length)])
    return Example("interleaved", ids, is_scored, spans, f"test:{seed}")


def rows(lclm: LCLM) -> list[Row]:
    """Return rows of mixed ratios: several spans, spans over several windows, none, and padding."""
    return [
        Row("r/0:0", 4, [example(lclm, 1, (5, 41)), example(lclm, 2, ()), example(lclm, 3, (16,))]),
        Row("r/0:1", 8, [example(lclm, 4, (37,)), example(lclm, 5, (1, 2, 9))]),
        Row("r/0:2", 4, [example(lclm, 6, (3,), text=2)]),
    ]


def batch_of(lclm: LCLM, packed: list[Row], row_tokens: int = 64) -> MicroBatch:
    return collate(packed, row_tokens=row_tokens, slot_id=lclm.memory_token_id)


def score(lclm: LCLM, packed: list[Row], row_tokens: int = 64) -> Scores:
    return lclm.score(**batch_of(lclm, packed, row_tokens).inputs(torch.device("cpu")))


def alone(lclm: LCLM, packed: list[Row]) -> list[float]:
    with torch.no_grad():
        return [
            loss
            for row in packed
            for e in row.examples
            for loss in scored_losses(lclm, e, row.ratio)
        ]


@pytest.fixture(params=["sdpa", "eager"])
def attention(request: pytest.FixtureRequest, lclm: LCLM) -> Iterator[str]:
    for body in (lclm.encoder.body, lclm.decoder):
        body.set_attn_implementation(request.param)
    yield request.param
    for body in (lclm.encoder.body, lclm.decoder):
        body.set_attn_implementation("sdpa")


def test_packed_examples_are_scored_as_if_alone(lclm: LCLM, attention: str) -> None:
    packed = rows(lclm)
    with torch.no_grad():
        scores = score(lclm, packed)
    config: Any = lclm.get_decoder().config
    assert config._attn_implementation == attention
    assert scores.loss_P.tolist() == pytest.approx(alone(lclm, packed), abs=2e-5)
    counts = [sum(sum(e.is_scored) for e in row.examples) for row in packed]
    assert scores.row_P.bincount().tolist() == counts


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_mask_type": "bidirectional", "boundary_overlap": 4},
        {"pooling": "eos"},
        {"pooling": "concat"},
        {"adapter_type": "mlp_attn"},
        {"residual": "sum"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_architecture_scores_packed_rows(settings: dict[str, Any]) -> None:
    made = build(**settings)
    packed = [row for row in rows(made) if row.ratio in (4, *made.extension.ratios)]
    with torch.no_grad():
        losses = score(made, packed).loss_P.tolist()
    assert losses == pytest.approx(alone(made, packed), abs=5e-5)


def test_packing_order_and_padding_do_not_matter(lclm: LCLM) -> None:
    packed = rows(lclm)[:1]
    turned = [Row("r/0:0", 4, packed[0].examples[::-1])]
    with torch.no_grad():
        one, other = score(lclm, packed).loss_P, score(lclm, turned, 100).loss_P
    counts = [sum(e.is_scored) for e in packed[0].examples]
    again = torch.cat(list(other.split(counts[::-1]))[::-1])
    torch.testing.assert_close(one, again, atol=2e-5, rtol=1e-5)


def test_the_first_token_of_an_example_is_no_target_of_the_one_before(lclm: LCLM) -> None:
    packed = [Row("r/0:0", 4, [example(lclm, 1, ()), example(lclm, 2, ())])]
    batch = batch_of(lclm, packed)
    with torch.no_grad():
        scores = lclm.score(**batch.inputs(torch.device("cpu")))
    assert len(scores.loss_P) == batch.num_scored == 4  # two of three tokens, twice


def test_changing_an_example_changes_nothing_in_its_neighbours(lclm: LCLM, attention: str) -> None:
    packed = rows(lclm)
    changed = rows(lclm)
    changed[0].examples[1] = example(lclm, 77, ())  # as long, with other words
    changed[1].examples[0] = example(lclm, 78, (37,))
    with torch.no_grad():
        before, after = score(lclm, packed).loss_P, score(lclm, changed).loss_P
    counts = [sum(e.is_scored) for row in packed for e in row.examples]
    for index, (one, other) in enumerate(
        zip(before.split(counts), after.split(counts), strict=True)
    ):
        if index in (1, 3):
            assert not torch.allclose(one, other, atol=1e-3)
        else:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_no_gradient_flows_between_the_examples_of_a_row(lclm: LCLM, attention: str) -> None:
    batch = batch_of(lclm, rows(lclm)[:2])
    inputs = batch.inputs(torch.device("cpu"))
    embeds_BTD = torch.randn(2, 64, lclm.decoder.config.hidden_size, requires_grad=True)
    hidden_BTD = lclm._decode_packed(embeds_BTD, inputs["position_ids_BT"])
    first = int((inputs["position_ids_BT"][1] == 0).nonzero()[1])  # where the second example starts
    hidden_BTD[1, first + 2].sum().backward()
    assert embeds_BTD.grad is not None
    reached = embeds_BTD.grad.abs().sum(-1).nonzero().tolist()
    assert reached == [[1, first], [1, first + 1], [1, first + 2]]


def test_gradients_reach_every_parameter_of_encoder_and_adapter() -> None:
    made = build(residual="sum").train()
    score(made, rows(made)).loss_P.mean().backward()
    halves = {"encoder": made.encoder, "adapter": made.adapter, "residual": made.residual}
    for half, module in halves.items():
        assert module is not None
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{half}.{name} has no gradient"
            assert float(parameter.grad.abs().sum()) > 0, f"{half}.{name} has a gradient of zero"


def test_every_span_of_a_packed_row_is_read(lclm: LCLM) -> None:
    packed = rows(lclm)
    with torch.no_grad():
        before = score(lclm, packed).loss_P
        for row in packed:
            for one in row.examples:
                for span in one.spans:
                    span[-1] = (span[-1] + 1) % 300
                    assert not torch.equal(score(lclm, packed).loss_P, before)
                    span[-1] = (span[-1] - 1) % 300
        assert torch.equal(score(lclm, packed).loss_P, before)


@pytest.mark.parametrize("settings", [{"residual": "sum"}, {"pooling": "eos"}, {}], ids=str)
def test_a_batch_without_spans_gives_zero_gradients_not_missing_ones(
    settings: dict[str, Any],
) -> None:
    made = build(**settings).train()
    packed = [Row("r/0:0", 4, [example(made, 1, ()), example(made, 2, ())])]
    scores = score(made, packed)
    scores.loss_P.mean().backward()
    assert scores.loss_P.tolist() == pytest.approx(alone(made.eval(), packed), abs=2e-5)
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("decoder."):
            assert not parameter.grad.any(), name


def test_a_batch_with_nothing_scored_still_gives_every_gradient() -> None:
    made = build().train()
    one = example(made, 1, (9,))
    silent = Example(one.kind, one.ids, [False] * len(one.ids), one.spans, one.origin)
    scores = score(made, [Row("r/0:0", 4, [silent])])
    assert scores.loss_P.shape == (0,)
    scores.loss_P.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_the_encoder_runs_exactly_once_whatever_the_spans(lclm: LCLM) -> None:
    shapes: list[torch.Size] = []
    handle = lclm.encoder.body.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    try:
        with torch.no_grad():
            score(lclm, rows(lclm))
            score(lclm, [Row("r/0:0", 4, [example(lclm, 1, ())])])
    finally:
        handle.remove()
    # 12 windows of 16 tokens and less share two rows of 64.
    assert shapes == [(2, 64), (1, 64)]


def test_scoring_in_chunks_changes_neither_values_nor_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = build().train()
    packed = rows(made)
    found = []
    for chunk in (4096, 7):
        monkeypatch.setattr(scoring, "SCORE_CHUNK", chunk)
        made.zero_grad()
        scores = score(made, packed)
        scores.loss_P.mean().backward()
        found.append([scores.loss_P, scores.is_hit_P, *(p.grad for p in made.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_output_layer_sees_scored_positions_only_and_a_chunk_at_a_time(
    lclm: LCLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SCORE_CHUNK", 7)
    sizes: list[int] = []
    head = lclm.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        scores = score(lclm, rows(lclm))
    finally:
        handle.remove()
    assert max(sizes) <= 7
    assert sum(sizes) == len(scores.loss_P)


# transformers 5.23 renames the method; older ones have this name only.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_gradient_checkpointing_keeps_examples_apart() -> None:
    made = build().train()
    packed = rows(made)
    found = []
    for is_on in (False, True):
        for body in (made.encoder.body, made.decoder):
            if is_on:
                body.gradient_checkpointing_enable({"use_reentrant": False})
        made.zero_grad()
        scores = score(made, packed)
        scores.loss_P.mean().backward()
        found.append([scores.loss_P, *(p.grad for p in made.parameters())])
    assert made.get_decoder().gradient_checkpointing
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("is_autocast", [False, True], ids=["fp32", "bf16"])
def test_lora_over_a_frozen_base_scores_packed_rows(is_autocast: bool) -> None:
    made = build(residual="sum")
    add_lora(made, 2)
    packed = rows(made)
    wanted = alone(made.eval(), packed)
    made.train()
    for name, parameter in made.named_parameters():
        is_trained = (
            "lora_" in name or name.startswith(("adapter", "residual")) or "trainable" in name
        )
        parameter.requires_grad_(is_trained)
        if is_autocast and not is_trained:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        scores = score(made, packed)
    assert scores.loss_P.dtype == torch.float32
    assert scores.loss_P.tolist() == pytest.approx(wanted, abs=0.4 if is_autocast else 2e-5)
    assert float(scores.loss_P.detach().mean()) == pytest.approx(
        sum(wanted) / len(wanted), abs=0.05
    )
    scores.loss_P.mean().backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    factors = [p for n, p in made.named_parameters() if "lora_B" in n]
    assert factors
    assert all(p.grad is not None and p.grad.any() for p in factors)


def add_lora(made: LCLM, rank: int) -> None:
    """Put factors on both halves, as a run does."""
    from octavo.weights.assembly import add_lora

    add_lora(made, rank, 2 * rank, encoder="an-encoder", decoder="a-decoder")


def test_forward_reads_a_packed_row_as_score_does(lclm: LCLM) -> None:
    batch = batch_of(lclm, rows(lclm))
    inputs = {
        name[: name.rindex("_")]: tensor
        for name, tensor in batch.inputs(torch.device("cpu")).items()
    }
    with torch.no_grad():
        loss = lclm(**inputs, use_cache=False).loss
        torch.testing.assert_close(
            loss, score(lclm, rows(lclm)).loss_P.mean(), atol=1e-5, rtol=1e-5
        )


def test_without_positions_rows_are_single_examples_padded_on_the_right(lclm: LCLM) -> None:
    packed = [Row("r/0:0", 4, [e]) for row in rows(lclm) for e in row.examples]
    inputs = batch_of(lclm, packed).inputs(torch.device("cpu"))
    del inputs["position_ids_BT"]
    with torch.no_grad():
        scores = lclm.score(**inputs)
    assert scores.loss_P.tolist() == pytest.approx(alone(lclm, packed), abs=2e-5)


def test_flash_attention_gets_one_row_whose_positions_restart(
    lclm: LCLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = rows(lclm)
    with torch.no_grad():
        wanted = score(lclm, packed).loss_P
    body = lclm.get_decoder()
    seen: list[tuple[int, ...]] = []

    def as_flash(*, inputs_embeds: Any, position_ids: Any, use_cache: bool) -> Any:
        # Flash attention itself needs a GPU; what it is given is checked here.
        seen.append((*inputs_embeds.shape[:2], *position_ids.shape))
        monkeypatch.undo()
        return body(inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=use_cache)

    as_flash.config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()  # type: ignore[attr-defined]
    monkeypatch.setattr(lclm, "get_decoder", lambda: as_flash)
    with torch.no_grad():
        torch.testing.assert_close(score(lclm, packed).loss_P, wanted, atol=2e-5, rtol=1e-5)
    assert seen == [(1, 3 * 64, 1, 3 * 64)]


def test_score_works_through_a_sharding_hook(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    made = build().train()
    packed = rows(made)
    score(made, packed).loss_P.mean().backward()
    wanted = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        for layer in (*made.encoder.body.layers, *made.get_decoder().layers):
            fully_shard(layer)
        fully_shard(made)
        register_fsdp_forward_method(made, "score")
        score(made, packed).loss_P.mean().backward()
        for name, parameter in made.named_parameters():
            gradient: Any = parameter.grad
            torch.testing.assert_close(gradient.full_tensor(), wanted[name], atol=1e-6, rtol=1e-5)
    finally:
        dist.destroy_process_group()
