"""LCLM keeps the promises of a transformers model, beyond those that `scripts/hf-suites` tests.

B is 3 prompts of 12 tokens, three of them slots, each with a span of 12 source tokens at ratio 4.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

from octavo.errors import PromptError
from octavo.nn import LCLM, LCLMConfig
from octavo.nn.cache import KEYWORD, output_cache

HALF: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 37, "max_position_embeddings": 512,
    "pad_token_id": 1, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SLOT = 0
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
Inputs = dict[str, Any]


def made(adapter: str = "mlp", extension: dict[str, Any] | None = None) -> LCLM:
    """Return a model whose weights are large enough for every input to change what it says."""
    lclm = LCLM(
        LCLMConfig(
            text_config=dict(HALF), encoder_config=dict(HALF), extension=extension,
            model_config={
                "compression_ratio": 4, "encoder_window_size": 16, "adapter_type": adapter,
            },
            memory_token_ids=[96, 97, SLOT],
        )
    )  # fmt: skip
    for parameter in lclm.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return lclm.eval()


@pytest.fixture
def lclm() -> LCLM:
    return made()


@pytest.fixture
def batch() -> Inputs:
    ids = torch.randint(2, 96, (3, 12))
    ids[:, 2:5] = SLOT
    spans = torch.randint(2, 96, (3, 12))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "memory_ids": spans}


def example(batch: Inputs, index: int) -> Inputs:
    return {name: tensor[index : index + 1] for name, tensor in batch.items()}


# -- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 4},
        {"prefill_chunk_size": 100},
    ],
    ids=str,
)
def test_an_answer_does_not_depend_on_how_the_prompt_is_read(
    lclm: LCLM, batch: Inputs, options: dict[str, Any]
) -> None:
    import transformers

    if "prefill_chunk_size" in options and transformers.__version__ < "5.1":
        pytest.skip("no model can be prefilled in chunks there")
    expected = lclm.generate(**batch, **GREEDY)
    other = lclm.generate(**{**batch, "memory_ids": batch["memory_ids"].flip(0)}, **GREEDY)
    assert not torch.equal(expected, other)
    assert torch.equal(lclm.generate(**batch, **GREEDY, **options), expected)


def test_beams_and_several_answers_read_their_own_spans(lclm: LCLM, batch: Inputs) -> None:
    beams: dict[str, Any] = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    together = lclm.generate(**batch, **beams)
    apart = [lclm.generate(**example(batch, index), **beams) for index in range(3)]
    assert torch.equal(together, torch.cat(apart))
    sampled = lclm.generate(
        **batch, max_new_tokens=6, do_sample=True, top_k=1, num_return_sequences=2
    )
    assert torch.equal(sampled, lclm.generate(**batch, **GREEDY).repeat_interleave(2, 0))


def test_a_model_may_draft_for_itself(lclm: LCLM, batch: Inputs) -> None:
    one = example(batch, 0)
    drafted = lclm.generate(**one, **GREEDY, assistant_model=copy.deepcopy(lclm))
    assert torch.equal(drafted, lclm.generate(**one, **GREEDY))


def test_a_prompt_may_be_given_as_embeddings(lclm: LCLM, batch: Inputs) -> None:
    answers = lclm.generate(**batch, **GREEDY)[:, 12:]
    embeds = lclm.get_input_embeddings()(batch["input_ids"])
    given = {**batch, "input_ids": None, "inputs_embeds": embeds}
    assert torch.equal(lclm.generate(**given, **GREEDY), answers)
    with torch.no_grad():
        torch.testing.assert_close(lclm(**given).logits, lclm(**batch).logits)
    with pytest.raises(PromptError, match="3 memory slots but 9 latents"):
        lclm.generate(**{**given, "inputs_embeds": embeds[:1]}, **GREEDY)


@pytest.mark.parametrize("given", ["all", "all tokens, new spans", "new tokens, new spans"])
def test_new_spans_are_read_behind_a_returned_cache(lclm: LCLM, batch: Inputs, given: str) -> None:
    import transformers

    if given == "new tokens, new spans" and transformers.__version__ < "5.1":
        pytest.skip("no model took new tokens alone there")
    first = lclm.generate(**batch, **GREEDY, return_dict_in_generate=True)
    _, cache = output_cache(first)
    new = torch.randint(2, 96, (3, 7))
    new[:, 1:3] = SLOT
    ids, new_spans = torch.cat([first.sequences, new], 1), torch.randint(2, 96, (3, 8))
    mask = torch.ones_like(ids)
    pairs = zip(batch["memory_ids"], new_spans, strict=True)
    latents = torch.cat([latent for pair in pairs for latent in lclm.encode(pair)])
    expected = lclm.generate(input_ids=ids, latents=latents, attention_mask=mask, **GREEDY)
    read = ids[:, cache.get_seq_length() :] if given.startswith("new") else ids
    spans = {"latents": latents} if given == "all" else {"memory_ids": new_spans}
    answers = lclm.generate(
        input_ids=read, attention_mask=mask, **spans, **{KEYWORD: cache}, **GREEDY
    )
    assert torch.equal(answers[:, -6:], expected[:, -6:])


@pytest.mark.slow
def test_a_model_compiles_and_exports_whole(lclm: LCLM, batch: Inputs) -> None:
    with torch.no_grad():
        expected = lclm(**batch).logits
        compiled = torch.compile(lclm, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**batch).logits, expected)
        inputs = {**batch, "use_cache": False}
        exported = torch.export.export(lclm, (), inputs, strict=False).module()
        torch.testing.assert_close(exported(**inputs).logits, expected)


# -- saving, loading, placing --------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["mlp", "attn_mlp", "mlp_attn"])
def test_a_reloaded_model_is_the_same(adapter: str, batch: Inputs, tmp_path: Path) -> None:
    lclm = made(adapter, {"residual": "sum"})
    lclm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is LCLM
    body = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = lclm(**batch, output_hidden_states=True)
        torch.testing.assert_close(again(**batch).logits, expected.logits)
        hidden = body(**batch).last_hidden_state
    torch.testing.assert_close(hidden, expected.hidden_states[-1])


def test_tensors_that_a_checkpoint_lacks_are_initialised_and_named(tmp_path: Path) -> None:
    made("attn_mlp", {"residual": "sum"}).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    kept = {n: t for n, t in tensors.items() if not n.startswith(("adapter.", "residual."))}
    save_file(kept, file, metadata={"format": "pt"})
    again, report = LCLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == tensors.keys() - kept.keys()
    fresh = made("attn_mlp", {"residual": "sum"}).residual
    assert again.residual is not None
    assert fresh is not None
    torch.testing.assert_close(again.residual.weight_RD, fresh.weight_RD / 6)
    for parameter in again.adapter.parameters():
        assert parameter.abs().max() <= 1


@pytest.mark.parametrize("rotary", ["bf16_encoder", "bf16"])
def test_rounded_frequencies_stay_rounded(rotary: Any, batch: Inputs, tmp_path: Path) -> None:
    lclm = made("attn_mlp")
    with torch.no_grad():
        exact = lclm(**batch).logits
        lclm.round_rotary(rotary)
        rounded = lclm(**batch).logits
        lclm.save_pretrained(tmp_path)
        again = LCLM.from_pretrained(tmp_path)(**batch).logits
    assert not torch.allclose(exact, rounded, atol=1e-5)
    torch.testing.assert_close(again, rounded)


def test_another_attention_reaches_the_adapter_too(batch: Inputs) -> None:
    lclm = made("attn_mlp")
    with torch.no_grad():
        expected = lclm(**batch).logits
        lclm.set_attn_implementation("eager")
        torch.testing.assert_close(lclm(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    kinds = {m.config._attn_implementation for m in lclm.modules() if hasattr(m, "q_proj")}
    assert kinds == {"eager"}


class Int8Linear(nn.Module):
    """What quantising libraries put in place of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.abs().max()) / 127
        weight = (linear.weight.data / self.scale).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_a_quantised_adapter_reads_ordinary_numbers(lclm: LCLM, batch: Inputs) -> None:
    with torch.no_grad():
        expected = torch.cat(lclm.encode(list(batch["memory_ids"])))
        lclm.adapter.fc1 = Int8Linear(lclm.adapter.fc1)  # type: ignore[assignment]
        lclm.adapter.fc2 = Int8Linear(lclm.adapter.fc2)  # type: ignore[assignment]
        latents = torch.cat(lclm.encode(list(batch["memory_ids"])))
    assert nn.functional.cosine_similarity(latents, expected).min() > 0.99


def test_a_half_may_lie_on_disk(lclm: LCLM, batch: Inputs, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    with torch.no_grad():
        expected = lclm(**batch).logits
        accelerate.disk_offload(lclm.encoder, str(tmp_path), execution_device=torch.device("cpu"))
        torch.testing.assert_close(lclm(**batch).logits, expected)


# -- training by others --------------------------------------------------------------------------


def test_the_base_model_reads_spans_and_holds_no_weights_of_its_own(
    lclm: LCLM, batch: Inputs
) -> None:
    with torch.no_grad():
        hidden = lclm.base_model(**batch, use_cache=False).last_hidden_state
        logits = lclm.get_output_embeddings()(hidden)
        torch.testing.assert_close(logits, lclm(**batch).logits)
    assert not list(lclm.base_model.parameters())
    twin = copy.deepcopy(lclm)
    twin.adapter.fc2.bias.data += 1
    with torch.no_grad():
        moved = twin.base_model(**batch, use_cache=False).last_hidden_state
        same = lclm.base_model(**batch, use_cache=False).last_hidden_state
    assert not torch.allclose(moved, hidden)
    torch.testing.assert_close(same, hidden)


def test_noise_on_embeddings_suits_the_order_preserving_sum(batch: Inputs, tmp_path: Path) -> None:
    row = {**{name: tensor[0] for name, tensor in batch.items()}, "labels": batch["input_ids"][0]}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, neftune_noise_alpha=5.0,
    )  # fmt: skip
    lclm = made("mlp", {"residual": "sum"})
    done = Trainer(model=lclm, args=arguments, train_dataset=[row] * 4).train()
    assert 0 < done.training_loss < 100


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # peft's own
def test_prompt_tuning_is_not_blind(lclm: LCLM, batch: Inputs) -> None:
    peft = pytest.importorskip("peft")
    for kind in (peft.PromptTuningConfig, peft.PrefixTuningConfig):
        adapted = peft.get_peft_model(
            copy.deepcopy(lclm), kind(num_virtual_tokens=4, task_type="CAUSAL_LM")
        ).eval()
        other = {**batch, "memory_ids": batch["memory_ids"].flip(0)}
        with torch.no_grad():
            assert not torch.allclose(adapted(**batch).logits, adapted(**other).logits)
        one, two = (adapted.generate(**inputs, **GREEDY) for inputs in (batch, other))
        assert not torch.equal(one, two)
