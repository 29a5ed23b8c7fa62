"""Windows, pooling, masks and adapters against twins that do one thing at a time."""

import itertools
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT
from reference_encoder import encode_span
from transformers import AutoModel, AutoModelForCausalLM

import octavo
from octavo.config import Extension, ModelConfig
from octavo.errors import PromptError
from octavo.nn import LCLM, LCLMConfig
from octavo.nn.encoder import plan_windows
from octavo.nn.pooling import pool_concat, pool_mean

LENGTHS = [1, 3, 4, 15, 16, 17, 32, 40, 70]


def build(attention: str = "sdpa", **settings: Any) -> LCLM:
    """Make a random-adapter model out of the golden halves."""
    torch.manual_seed(1)
    config = ModelConfig(**{"compression_ratio": 4, "encoder_window_size": 16, **settings})
    encoder = AutoModel.from_pretrained(CHECKPOINT / "encoder", attn_implementation=attention)
    decoder = AutoModelForCausalLM.from_pretrained(
        CHECKPOINT / "decoder", attn_implementation=attention
    )
    lclm_config = LCLMConfig(
        text_config=decoder.config.to_dict(),
        encoder_config=encoder.config.to_dict(),
        model_config=config.to_dict(),
        memory_token_ids=[387, 388, 389],
        encoder_pad_token_id=340,
    )
    return LCLM(lclm_config, encoder=encoder, decoder=decoder).eval()


def spans(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 340, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("pooling", "mask", "overlap", "adapter"),
    [
        ("mean", "causal", 0, "mlp"),
        ("mean", "bidirectional", 0, "mlp"),
        ("mean", "bidirectional", 5, "attn_mlp"),
        ("concat", "causal", 3, "mlp"),
        ("concat", "bidirectional", 4, "mlp_attn"),
        ("eos", "causal", 0, "mlp_attn"),
        ("eos", "bidirectional", 0, "mlp"),
        ("eos", "bidirectional", 4, "mlp"),
        ("mean", "causal", 0, "attn_mlp"),
    ],
)
def test_latents_equal_those_of_one_window_at_a_time(
    attention: str, pooling: str, mask: str, overlap: int, adapter: str
) -> None:
    model = build(
        attention,
        pooling=pooling,
        encoder_mask_type=mask,
        boundary_overlap=overlap,
        adapter_type=adapter,
        num_adapter_layers=2,
    )
    batch = spans(LENGTHS)
    with torch.no_grad():
        pooled = model.encoder(batch)
        latents = model.encode(batch)
        for ids, own_pooled, own_latents in zip(batch, pooled, latents, strict=True):
            wanted_pooled, wanted_latents = encode_span(model, ids, 4)
            torch.testing.assert_close(own_pooled, wanted_pooled, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(own_latents, wanted_latents, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_a_mask_type_decides_whether_a_token_sees_what_follows(mask: str) -> None:
    model = build(encoder_mask_type=mask)
    (ids,) = spans([16])
    changed = [*ids[:-1], (ids[-1] + 1) % 340]
    with torch.no_grad():
        first = (model.encode([ids])[0][0] - model.encode([changed])[0][0]).abs().max()
    assert (first > 1e-4) == (mask == "bidirectional")


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_latents_do_not_depend_on_neighbours_batch_size_or_order(mask: str) -> None:
    model = build(encoder_mask_type=mask)
    batch = spans([5, 64, 1, 33, 16, 48])
    with torch.no_grad():
        alone = [model.encode([ids])[0] for ids in batch]
        for size, order in itertools.product((1, 40, 10_000), (1, -1)):
            model.encoder.encode_batch_tokens = size
            together = model.encode(batch[::order])[::order]
            for one, other in zip(alone, together, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_windows_cover_a_span_once_and_margins_follow_the_mask() -> None:
    causal = ModelConfig(compression_ratio=4, encoder_window_size=16, boundary_overlap=4)
    both = ModelConfig(
        compression_ratio=4, encoder_window_size=16, boundary_overlap=4,
        encoder_mask_type="bidirectional",
    )  # fmt: skip
    shapes = [
        [(w.left, w.stop - w.start, w.right) for w in plan_windows(40, c)] for c in (causal, both)
    ]
    assert shapes[0] == [(0, 16, 0), (4, 16, 0), (4, 8, 0)]  # wire-format §2.6, example 4
    assert shapes[1] == [(0, 16, 4), (4, 16, 4), (4, 8, 0)]


@pytest.mark.parametrize("length", [1, 4, 5, 37])
def test_pooling_equals_the_plain_loop(length: int) -> None:
    hidden_BLE = torch.randn(2, length, 8)
    for own, row in zip(pool_mean(hidden_BLE, 4), hidden_BLE, strict=True):
        torch.testing.assert_close(own, torch.stack([b.mean(0) for b in row.split(4)]))
    for own, row in zip(pool_concat(hidden_BLE, 4), hidden_BLE, strict=True):
        padded = [torch.cat([b, torch.zeros(4 - len(b), 8)]).flatten() for b in row.split(4)]
        torch.testing.assert_close(own, torch.stack(padded))


def test_an_empty_span_is_refused() -> None:
    with pytest.raises(PromptError, match="span 1 is empty"):
        build().encode([[1, 2], []])


def test_peak_memory_is_bounded_by_the_batch_not_by_the_text() -> None:
    model = build()
    rows: list[tuple[int, ...]] = []
    handle = model.encoder.body.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    model.encoder.encode_batch_tokens = 64
    with torch.no_grad():
        model.encode(spans([1000]))
    handle.remove()
    assert rows
    assert max(n * length for n, length in rows) <= 64


def test_the_order_preserving_sum_equals_the_plain_loop() -> None:
    torch.manual_seed(0)
    from octavo.nn.residual import BlockSum

    layer, embeds_LD = BlockSum(8, 16), torch.randn(10, 8)
    for ratio in (4, 8, 16):
        expected = []
        for start in range(0, 10, ratio):
            block = embeds_LD[start : start + ratio]
            summed = sum(layer.weight_RD[j] * row for j, row in enumerate(block))
            expected.append(summed / ratio**0.5)
        torch.testing.assert_close(layer(embeds_LD, ratio), torch.stack(expected))


def test_latents_made_in_pieces_equal_those_made_at_once_for_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from octavo.nn import adapter, residual
    from octavo.nn.residual import BlockSum

    model = build()
    model.residual = BlockSum(model.decoder.config.hidden_size, 4)
    whole = model.encode(spans([37, 5]), 4)
    monkeypatch.setattr(residual, "SUMMED_TOKENS", 9)
    monkeypatch.setattr(adapter, "LIFTED_AT_ONCE", 3)
    with torch.no_grad():
        pieces = model.encode(spans([37, 5]), 4)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other)


def test_an_unknown_attention_adapter_setting_is_refused() -> None:
    with pytest.raises(octavo.ConfigError, match="attn_mlp"):
        ModelConfig(compression_ratio=4, pooling="concat", adapter_type="attn_mlp")
    assert Extension().to_dict() == {}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("pooling", "mask", "overlap"),
    [
        ("mean", "causal", 0), ("mean", "bidirectional", 5), ("eos", "causal", 3),
        ("eos", "bidirectional", 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("one_pass", [False, True])
def test_spans_of_different_ratios_are_read_together_as_if_apart(
    attention: str, pooling: str, mask: str, overlap: int, one_pass: bool
) -> None:
    model = build(attention, pooling=pooling, encoder_mask_type=mask, boundary_overlap=overlap)
    batch, ratios = spans(LENGTHS), [2, 4, 8] * 3
    passes: list[int] = []
    with torch.no_grad():
        mixed = model.encoder(batch, ratios, passes.append, one_pass=one_pass)
        for ids, ratio, pooled in zip(batch, ratios, mixed, strict=True):
            wanted, _ = encode_span(model, ids, ratio)
            torch.testing.assert_close(pooled, wanted, atol=2e-5, rtol=1e-4)
    assert sum(passes) == sum(LENGTHS)
    assert (len(passes) == 1) == one_pass


def test_ratios_must_be_one_for_all_spans_or_one_for_each() -> None:
    with pytest.raises(PromptError, match="3 ratios were given for 2 spans"):
        build().encoder([[1, 2], [3]], [4, 4, 4])
