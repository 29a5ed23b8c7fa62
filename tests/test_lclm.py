"""LCLM as a stranger meets it: a causal LM for transformers, PEFT and Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import octavo
from octavo.errors import PromptError
from octavo.nn import LCLM
from octavo.nn.splice import splice


@pytest.fixture
def fresh() -> octavo.Model:
    """A model of its own, to train."""
    return octavo.load(CHECKPOINT, device="cpu")


def inputs(model: octavo.Model) -> dict[str, torch.Tensor]:
    """Return one prompt with two spans as tensors, scored after the last span."""
    parts = [
        {"type": "memory", "text": TEXT},
        {"type": "text", "text": " and "},
        {"type": "memory", "text": TEXT[:70]},
        {"type": "text", "text": "\n\nWho signed?"},
    ]
    encoded = model.prompts.encode_messages([{"role": "user", "content": parts}])
    spans = [torch.tensor(span.source_ids) for span in encoded.spans]
    labels = torch.tensor([encoded.input_ids]).clone()
    labels[:, : encoded.prefix_length] = -100
    return {
        "input_ids": torch.tensor([encoded.input_ids]),
        "attention_mask": torch.ones(1, len(encoded.input_ids), dtype=torch.long),
        "labels": labels,
        "memory_ids": torch.nn.utils.rnn.pad_sequence(spans, batch_first=True),
        "memory_lengths": torch.tensor([len(span) for span in spans]),
    }


def test_loss_and_logits_are_those_of_the_decoder_reading_latents(model: octavo.Model) -> None:
    batch = inputs(model)
    lengths = batch["memory_lengths"].tolist()
    with torch.no_grad():
        output = model.lclm(**batch)
        spans = [row[:n] for row, n in zip(batch["memory_ids"], lengths, strict=True)]
        embeds = model.lclm.get_input_embeddings()(batch["input_ids"])
        slots = (batch["input_ids"][0] == model.prompts.slot_id).nonzero()[:, 0]
        for slot, latent in zip(slots, torch.cat(model.lclm.encode(spans)), strict=True):
            embeds[0, slot] = latent
        logits = model.lclm.decoder(inputs_embeds=embeds).logits
    torch.testing.assert_close(output.logits, logits, atol=1e-4, rtol=1e-4)
    scored = batch["labels"][0, 1:] != -100
    loss = torch.nn.functional.cross_entropy(logits[0, :-1][scored], batch["labels"][0, 1:][scored])
    torch.testing.assert_close(output.loss, loss, atol=1e-4, rtol=1e-4)


def test_every_part_gets_a_gradient(fresh: octavo.Model) -> None:
    fresh.lclm.train()
    fresh.lclm(**inputs(fresh)).loss.backward()
    for part in (fresh.lclm.encoder, fresh.lclm.adapter, fresh.lclm.decoder):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in grads) > 0


def test_each_span_may_have_its_own_ratio(model: octavo.Model) -> None:
    made = octavo.assemble(
        str(CHECKPOINT / "encoder"), str(CHECKPOINT / "decoder"), compression_ratio=4, ratios=[8],
        encoder_window_size=16, device="cpu",
    ).lclm  # fmt: skip
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        mixed = made.span_latents(ids, torch.tensor([20, 10]), torch.tensor([4, 8]))
        apart = [made.encode([ids[0]], 4)[0], made.encode([ids[1, :10]], 8)[0]]
    torch.testing.assert_close(mixed, torch.cat(apart), atol=1e-5, rtol=1e-5)


def test_generate_takes_spans_and_batches(model: octavo.Model) -> None:
    batch = inputs(model)
    batch.pop("labels")
    sampled = model.lclm.generate(**batch, max_new_tokens=5, do_sample=False)
    assert sampled.shape[1] - batch["input_ids"].shape[1] <= 5
    latents = model.lclm.span_latents(batch["memory_ids"], batch["memory_lengths"], None)
    again = model.lclm.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], latents=latents,
        max_new_tokens=5, do_sample=False,
    )  # fmt: skip
    assert torch.equal(sampled, again)


def test_slots_and_latents_must_match(model: octavo.Model) -> None:
    batch = inputs(model)
    with pytest.raises(PromptError, match="memory slots but"):
        model.lclm(input_ids=batch["input_ids"], latents=torch.zeros(1, 64))
    with pytest.raises(PromptError, match="neither was given"):
        model.lclm()


def test_splicing_equals_the_plain_loop() -> None:
    embeds_BTD, is_slot_BT = torch.randn(2, 5, 3), torch.rand(2, 5) > 0.5
    latents_SD = torch.randn(int(is_slot_BT.sum()), 3)
    expected, rows = embeds_BTD.clone(), iter(latents_SD)
    for b in range(2):
        for t in range(5):
            if is_slot_BT[b, t]:
                expected[b, t] = next(rows)
    assert torch.equal(splice(embeds_BTD, is_slot_BT, latents_SD), expected)


def test_it_saves_and_loads_as_transformers_models_do(model: octavo.Model, tmp_path: Path) -> None:
    model.lclm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, LCLM)
    batch = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model.lclm(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize("rotary", ["exact", "bf16"])
def test_what_transformers_saved_opens_as_a_whole_model(
    model: octavo.Model, tmp_path: Path, rotary: Any
) -> None:
    given = octavo.load(CHECKPOINT, device="cpu", rotary=rotary)
    given.lclm.save_pretrained(tmp_path)
    again = octavo.load(tmp_path, device="cpu")
    book = again.compress(TEXT)
    torch.testing.assert_close(book.latents, given.compress(TEXT).latents)
    question = "Who signed?"
    assert (
        again.generate(question, book).text == given.generate(question, given.compress(TEXT)).text
    )
    exact = octavo.load(tmp_path, device="cpu", rotary="exact")
    torch.testing.assert_close(exact.compress(TEXT).latents, model.compress(TEXT).latents)
    assert all(parameter.requires_grad for parameter in again.lclm.parameters())
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["adapter.fc2.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(octavo.CheckpointError, match="lacks the tensor adapter"):
        octavo.load(tmp_path, device="cpu")
    (tmp_path / "encoder" / "tokenizer_config.json").unlink()
    with pytest.raises(octavo.CheckpointError, match="encoder has no tokenizer_config"):
        octavo.load(tmp_path, device="cpu")


def test_a_plain_trainer_trains_it(fresh: octavo.Model, tmp_path: Path) -> None:
    row = inputs(fresh)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, learning_rate=1e-3, per_device_train_batch_size=1,
        report_to=[], use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=fresh.lclm,
        args=arguments,
        train_dataset=[row] * 8,
        data_collator=lambda rows: rows[0],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] * 0.8


def test_peft_adapts_it_and_the_base_stays_frozen(fresh: octavo.Model) -> None:
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(
        fresh.lclm, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    batch, losses = inputs(fresh), []
    for _ in range(6):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moving = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert moving
    assert all("lora_" in name for name in moving)
    batch.pop("labels")
    assert adapted.generate(**batch, max_new_tokens=2).shape[0] == 1
