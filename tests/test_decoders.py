"""Every kind of decoder is right, or refuses by name what it cannot do; none is silently wrong."""

from pathlib import Path

import decoders
import pytest
import torch
from transformers import CONFIG_MAPPING

import octavo
from octavo.errors import ConfigError

# An older transformers compiles parts of ModernBERT as a newer torch would rather not have it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

DEFAULT = ["llama, untied", "gemma2", "gpt-oss"]
"""Untied rows; scaled and capped logits; sinks. All the others are slow."""
OK = {"ok"}


def check(kind: str) -> dict[str, str]:
    found = decoders.what_holds(kind)
    wrong = {name: said for name, said in found.items() if said.startswith(("WRONG", "RAW"))}
    assert wrong == {}
    return found


@pytest.mark.parametrize("kind", DEFAULT)
def test_a_decoder_is_right_or_refused_by_name(kind: str) -> None:
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in decoders.KINDS if kind not in DEFAULT])
def test_every_other_decoder_is_right_or_refused_by_name(kind: str) -> None:
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama, tied", "gemma3", "qwen3.5", "falcon-h1"])
def test_what_long_context_runs_on_answers_in_every_way(kind: str) -> None:
    found = check(kind)
    assert {found[name] for name in ("assemble", "answer", "generate", "batch", "train")} == OK


@pytest.mark.slow
def test_the_table_of_decoders_in_the_docs_is_up_to_date() -> None:
    import runpy

    script = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "write-decoder-docs"))
    assert script["DOCS"].read_text(encoding="utf-8") == script["render"]()


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "eurobert"])
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_an_encoder_that_sees_both_ways_says_so_or_reads_windows_alone(
    name: str, mask: str
) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    encoder = decoders.bidirectional(name)
    if mask == "causal":
        with pytest.raises(ConfigError, match="encoder_mask_type='bidirectional'"):
            decoders.assemble("llama, tied", encoder, encoder_mask_type=mask)
        return
    try:
        model = decoders.assemble("llama, tied", encoder, encoder_mask_type=mask)
    except ConfigError as error:  # ModernBERT's in transformers 5.0
        if "or a newer transformers" not in str(error):
            raise
        return
    ids = model.prompts.source(decoders.TEXT[:200]).ids
    window = model.lclm.settings.encoder_window_size
    with torch.no_grad():
        together = model.lclm.encode([ids])[0]
        alone = torch.cat([model.lclm.encode([w])[0] for w in torch.tensor(ids).split(window)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_window_longer_than_the_encoder_s_positions_is_refused() -> None:
    encoder = decoders.body("gpt2", n_positions=32)
    with pytest.raises(ConfigError, match="32"):
        decoders.assemble("llama, tied", encoder, encoder_window_size=64)


@pytest.mark.parametrize("adapter", ["attn_mlp", "mlp_attn"])
@pytest.mark.parametrize("kind", ["llama, tied", "phi", "qwen3"])
def test_an_attention_adapter_takes_layers_like_llama_s(kind: str, adapter: str) -> None:
    model = decoders.assemble(kind, decoders.body(kind), adapter_type=adapter)
    assert model.compress(decoders.TEXT[:60]).num_latents > 1


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "gpt-neox", "falcon, rotary", "qwen3-next"])
def test_an_attention_adapter_of_other_layers_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ConfigError, match="adapter_type='mlp'"):
        decoders.assemble(kind, adapter_type="mlp_attn")


def test_one_model_can_be_both_halves() -> None:
    words, both = decoders.tokenizer(), decoders.decoder("llama, tied")
    model = octavo.assemble(
        both,
        both,
        encoder_tokenizer=words,
        decoder_tokenizer=words,
        compression_ratio=4,
        encoder_window_size=16,
        device="cpu",
    )
    latents = model.compress(decoders.TEXT[:100]).latents
    with torch.no_grad():
        model.lclm.get_input_embeddings().weight.zero_()
    assert torch.equal(
        model.lclm.encode([model.prompts.source(decoders.TEXT[:100]).ids])[0], latents
    )


def test_model_objects_take_the_dtype_that_is_asked_for() -> None:
    model = decoders.assemble("llama, tied", dtype="bfloat16")
    assert {p.dtype for p in model.lclm.parameters()} == {torch.bfloat16}


def test_an_encoder_with_fewer_rows_than_its_tokenizer_has_ids_is_refused() -> None:
    with pytest.raises(ConfigError, match="its embedding 280 rows"):
        decoders.assemble("llama, tied", decoders.body(vocab_size=280))


def test_what_a_check_found_is_kept_by_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.weights import selfcheck

    decoders.assemble("modernbert-decoder").save(tmp_path / "model")
    first = octavo.load(tmp_path / "model", device="cpu")
    assert "scoring" in first.lclm.config.closed
    monkeypatch.setattr(selfcheck, "check", lambda *_: pytest.fail("checked twice"))
    again = octavo.load(tmp_path / "model", device="cpu")
    assert again.lclm.config.closed == first.lclm.config.closed
