"""Checkpoints: the published layout both ways, and every way it can be wrong."""

import contextlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT, WIRE
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import octavo
from octavo import CheckpointError, ConfigError, OctavoError, RatioError
from octavo.config import MEMORY_TOKENS, Extension, ModelConfig

PUBLISHED_KEYS = {
    "compression_ratio", "encoder_window_size", "pooling", "encoder_mask_type", "boundary_overlap",
    "adapter_type",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint to break."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_what_we_write_opens_without_octavo(model: octavo.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "out")
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "decoder")
    encoder = AutoModel.from_pretrained(tmp_path / "out" / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "decoder")
    AutoTokenizer.from_pretrained(tmp_path / "out" / "encoder")
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter.safetensors")
    assert adapter.keys() == {"norm.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    settings = json.loads((tmp_path / "out" / "model_config.json").read_text())
    assert settings.keys() == PUBLISHED_KEYS
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours = model.lclm.decoder(ids).logits
        torch.testing.assert_close(decoder(ids).logits, ours)
        torch.testing.assert_close(
            encoder(ids).last_hidden_state, model.lclm.encoder.body(ids).last_hidden_state
        )
    assert tokenizer.convert_tokens_to_ids(list(MEMORY_TOKENS)) == [387, 388, 389]
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.mark.parametrize("case", sorted(p.name for p in WIRE.iterdir()))
def test_a_checkpoint_survives_the_disk(case: str, tmp_path: Path) -> None:
    first = octavo.load(WIRE / case / "checkpoint", device="cpu")
    first.save(tmp_path / "out")
    again = octavo.load(tmp_path / "out", device="cpu")
    assert again.config == first.config
    assert torch.equal(again.compress(TEXT).latents, first.compress(TEXT).latents)
    answers = [m.generate("Who?", context=TEXT, max_new_tokens=6).text for m in (first, again)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("case", ["A_mean_causal_r4_w16", "I_untied_messages_r8_w32"])
def test_a_saved_folder_holds_in_its_root_what_a_server_looks_for(
    case: str, tmp_path: Path
) -> None:
    from octavo.nn import LCLMConfig
    from octavo.weights.layout import write

    source = WIRE / case / "checkpoint"
    made = octavo.load(source, device="cpu")
    write(made._checkpoint, tmp_path / "made", dtype=torch.bfloat16)
    config = LCLMConfig.from_pretrained(tmp_path / "made")
    assert config.architectures == ["LCLM"]
    assert config.model_config == made.config.to_dict()
    assert config.memory_token_ids == made.lclm.config.memory_token_ids
    assert config.encoder_pad_token_id == made.lclm.config.encoder_pad_token_id
    assert config.text_config.architectures == ["Qwen3ForCausalLM"]
    assert config.tie_word_embeddings == config.text_config.tie_word_embeddings
    assert config.dtype == config.text_config.dtype == torch.bfloat16
    assert str(WIRE) not in (tmp_path / "made" / "config.json").read_text()
    root = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert root.get_vocab() == made.prompts.decoder_tokenizer.get_vocab()
    assert root.chat_template == made.prompts.decoder_tokenizer.chat_template
    assert (tmp_path / "made" / "generation_config.json").is_file()
    assert octavo.load(tmp_path / "made", device="cpu").config == made.config


def test_the_tied_output_layer_stays_tied_and_the_untied_one_untied() -> None:
    for case, is_tied in (("A_mean_causal_r4_w16", True), ("I_untied_messages_r8_w32", False)):
        lclm = octavo.load(WIRE / case / "checkpoint", device="cpu").lclm
        same = lclm.get_output_embeddings().weight is lclm.get_input_embeddings().weight
        assert same == is_tied


def test_the_fingerprint_is_of_the_weights_and_not_of_their_precision(folder: Path) -> None:
    exact = octavo.load(folder, device="cpu")
    rounded = octavo.load(folder, device="cpu", dtype="bf16")
    assert exact.fingerprint == rounded.fingerprint
    path = folder / "adapter" / "adapter.safetensors"
    weights = load_file(path)
    weights["fc2.weight"][3, 5] += 0.5
    save_file(weights, path)
    assert octavo.load(folder, device="cpu").fingerprint != exact.fingerprint


def test_rotary_precision_is_a_named_option(folder: Path) -> None:
    def frequencies(part: Any) -> torch.Tensor:
        found: torch.Tensor = part.rotary_emb.inv_freq
        assert found.dtype == torch.float32
        return found

    def is_rounded(values: torch.Tensor) -> bool:
        return torch.equal(values, values.to(torch.bfloat16).float())

    for options, expected in (
        ({}, (False, False)),
        ({"dtype": "bf16"}, (True, False)),
        ({"dtype": "bf16", "rotary": "exact"}, (False, False)),
        ({"rotary": "bf16"}, (True, True)),
        ({"rotary": "bf16_encoder"}, (True, False)),
    ):
        lclm = octavo.load(folder, device="cpu", **options).lclm  # type: ignore[arg-type]
        body = lclm.encoder.body
        found = (is_rounded(frequencies(body)), is_rounded(frequencies(lclm.decoder.model)))
        assert found == expected


def test_legacy_keys_are_read_and_unknown_ones_ignored(folder: Path) -> None:
    legacy = {
        "chunk_size": 4, "batch_summary_tokens": 16, "pooling_token": "summary_mean",
        "embed_mask_type": "causal", "overlap_tokens": 0, "use_adapter_attention": False,
        "model_type": "LCLM", "schema_version": 1, "encoder_name": "x",
    }  # fmt: skip
    (folder / "model_config.json").write_text(json.dumps(legacy))
    assert octavo.load(folder, device="cpu").config == ModelConfig.read(CHECKPOINT)
    attended = ModelConfig.from_dict(
        {**legacy, "use_adapter_attention": True, "adapter_order": "attention_mlp"}
    )
    assert attended.adapter_type == "attn_mlp"


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def index(folder: Path, name: Any) -> None:
    (folder / "model.safetensors").rename(folder.parent.parent / "elsewhere.safetensors")
    names = dict.fromkeys(load_file(folder.parent.parent / "elsewhere.safetensors"), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


BREAKAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "no adapter file": (lambda f: (f / "adapter/adapter.safetensors").unlink(), CheckpointError,
                        "would be random"),
    "no adapter folder": (lambda f: shutil.rmtree(f / "adapter"), CheckpointError,
                          "lacks the folder"),
    "no settings": (lambda f: (f / "model_config.json").unlink(), CheckpointError, "is missing"),
    "settings no JSON": (lambda f: (f / "model_config.json").write_text("{"), CheckpointError,
                         "not readable JSON"),
    "no decoder tokenizer": (lambda f: (f / "decoder/tokenizer_config.json").unlink(),
                             CheckpointError, "decoder's own tokenizer"),
    "no encoder tokenizer": (lambda f: (f / "encoder/tokenizer_config.json").unlink(),
                             CheckpointError, "encoder's own tokenizer"),
    "no memory tokens": (lambda f: [shutil.rmtree(f / "decoder"),
                                    shutil.copytree(f / "encoder", f / "decoder")],
                         CheckpointError, "lacks the memory tokens"),
    "damaged adapter": (lambda f: (f / "adapter/adapter.safetensors").write_bytes(b"\0" * 50),
                        CheckpointError, "is damaged"),
    "no decoder weights": (lambda f: (f / "decoder/model.safetensors").unlink(), CheckpointError,
                           "cannot load"),
    "pickled decoder": (lambda f: (f / "decoder/model.safetensors").rename(
                        f / "decoder/pytorch_model.bin"), CheckpointError, "safetensors"),
    "missing key": (lambda f: edit(f / "model_config.json", pooling=None), ConfigError,
                    "lacks pooling"),
    "unknown pooling": (lambda f: edit(f / "model_config.json", pooling="max"), ConfigError,
                        "expected one of mean, concat, eos"),
    "ratio not dividing": (lambda f: edit(f / "model_config.json", compression_ratio=5), RatioError,
                           "does not divide"),
    "ratio zero": (lambda f: edit(f / "model_config.json", compression_ratio=0), RatioError,
                   "at least 1"),
    "wrong shapes": (lambda f: edit(f / "model_config.json", pooling="concat"), CheckpointError,
                     "has shape"),
    "other adapter": (lambda f: edit(f / "model_config.json", adapter_type="mlp_attn"),
                      CheckpointError, "lacks attention_layers"),
    "settings a pipe": (lambda f: pipe(f / "model_config.json"), CheckpointError, "not a file"),
    "weights a pipe": (lambda f: pipe(f / "decoder/model.safetensors"), CheckpointError,
                       "not a file"),
    "adapter a device": (lambda f: device(f / "adapter/adapter.safetensors"), CheckpointError,
                         "not a file"),
    "settings without end": (lambda f: (f / "model_config.json").write_text("[" * 10**5),
                             CheckpointError, "not readable JSON"),
    "a config without end": (lambda f: (f / "decoder/config.json").write_text('{"a":' * 10**5),
                             CheckpointError, "not readable JSON"),
    "a huge config": (lambda f: huge(f / "decoder/config.json"), CheckpointError, "too many"),
    "endless adapter": (lambda f: edit(f / "model_config.json", num_adapter_layers=10**9,
                                       adapter_type="mlp_attn"), CheckpointError, "at most"),
    "endless window": (lambda f: edit(f / "model_config.json", encoder_window_size=4 * 10**12),
                       CheckpointError, "at most"),
    "endless decoder": (lambda f: edit(f / "decoder/config.json", num_hidden_layers=10**9),
                        CheckpointError, "num_hidden_layers is 1000000000"),
    "wide encoder": (lambda f: edit(f / "encoder/config.json", intermediate_size=10**12),
                     CheckpointError, "intermediate_size"),
    "index elsewhere": (lambda f: index(f / "decoder", "../../elsewhere.safetensors"),
                        CheckpointError, "expected a file beside it"),
    "index at the root": (lambda f: index(f / "encoder", "/etc/passwd"), CheckpointError,
                          "expected a file beside it"),
    "index of numbers": (lambda f: index(f / "encoder", 5), CheckpointError, "beside it"),
    "a kernel of a hub": (lambda f: edit(f / "decoder/config.json",
                                         attn_implementation="someone/kernel"), CheckpointError,
                          "never run"),
    "odd ratios": (lambda f: (f / "octavo.json").write_text('{"ratios": 5}'), CheckpointError,
                   "cannot load"),
    "newer extension": (lambda f: (f / "octavo.json").write_text('{"wings": 2}'), ConfigError,
                        "upgrade"),
}  # fmt: skip


@pytest.mark.parametrize("breakage", sorted(BREAKAGES))
def test_a_broken_checkpoint_is_one_clear_error(folder: Path, breakage: str) -> None:
    break_it, kind, complaint = BREAKAGES[breakage]
    break_it(folder)
    with pytest.raises(kind, match=complaint):
        octavo.load(folder, device="cpu")


@pytest.mark.parametrize("where", ["tokenizer", "config"])
def test_code_in_a_checkpoint_is_never_run_nor_asked_about(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    code = f"""open({str(folder / "it-ran")!r}, "w")
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Qwen3Config
class Words(PreTrainedTokenizerFast): pass
class Net(Qwen3ForCausalLM): pass
class Settings(Qwen3Config): model_type = "net"
"""
    (folder / "decoder" / "net.py").write_text(code)
    if where == "config":
        names = {"AutoConfig": "net.Settings", "AutoModelForCausalLM": "net.Net"}
        edit(folder / "decoder/config.json", model_type="net", auto_map=names)
    else:
        names = {"AutoTokenizer": ["net.Words", "net.Words"]}
        edit(folder / "decoder/tokenizer_config.json", tokenizer_class="Words", auto_map=names)
    monkeypatch.setattr("builtins.input", lambda *said: "y")
    kept = contextlib.suppress(CheckpointError)  # transformers has such tokenizers by itself
    with kept if where == "tokenizer" else pytest.raises(CheckpointError, match="never run"):
        octavo.load(folder, device="cpu")
    assert not (folder / "it-ran").exists()
    assert "custom code" not in capfd.readouterr().out


@pytest.mark.parametrize("case", sorted(p.name for p in WIRE.iterdir()))
def test_one_fingerprint_stands_for_a_model_however_it_is_kept(case: str, tmp_path: Path) -> None:
    source = WIRE / case / "checkpoint"
    settings = ModelConfig.read(source).to_dict()
    made = octavo.assemble(source / "encoder", source / "decoder", device="cpu", **settings)
    context = made.compress(TEXT)
    made.save(tmp_path / "parts")
    context.save(tmp_path / "c.safetensors")
    again = octavo.load(tmp_path / "parts", device="cpu")
    assert torch.equal(again.load_context(tmp_path / "c.safetensors").latents, context.latents)
    again.save(tmp_path / "twice")
    made.lclm.save_pretrained(tmp_path / "whole")
    for kept in ("twice", "whole"):
        assert octavo.load(tmp_path / kept, device="cpu").fingerprint == made.fingerprint


def test_the_fingerprint_is_of_the_tokenizers_too(folder: Path) -> None:
    before = octavo.load(folder, device="cpu").fingerprint
    for half in ("encoder", "decoder"):
        path = folder / half / "tokenizer.json"
        values = json.loads(path.read_text())
        values["model"]["merges"].pop()
        path.write_text(json.dumps(values))
        changed = octavo.load(folder, device="cpu").fingerprint
        assert changed != before
        before = changed


def mutate(rng: random.Random, folder: Path) -> None:
    """Change one thing in one file: bytes, a value of its JSON, or its name."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".jinja"]
    path = rng.choice(files)
    kind = rng.random()
    if kind < 0.1:
        path.rename(path.with_name(rng.choice(["model.safetensors", "config.json", "x"])))
    elif path.suffix == ".json" and kind < 0.7:
        at = values = json.loads(path.read_text())
        while isinstance(at, dict | list) and at:
            place = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[place], dict | list) or rng.random() < 0.3:
                odd = [
                    None,
                    True,
                    -1,
                    0,
                    3,
                    10**9,
                    10**30,
                    0.5,
                    "x",
                    "(a*)*$",
                    "a/b",
                    [],
                    {},
                    [[1]],
                ]
                at[place] = rng.choice(odd)
                break
            at = at[place]
        path.write_text(json.dumps(values))
    else:
        raw = bytearray(path.read_bytes())
        at = rng.randrange(min(len(raw), rng.choice([16, 4000, len(raw)])))
        raw[at : at + rng.choice([0, 1, 8, 999])] = rng.randbytes(rng.choice([0, 1, 8]))
        path.write_bytes(raw)


def check_mutations(tmp_path: Path, count: int) -> None:
    read = 0
    for seed in range(count):
        folder = tmp_path / str(seed)
        shutil.copytree(CHECKPOINT, folder)
        mutate(random.Random(seed), folder)
        found = []
        for drawn in (0, 1):
            torch.manual_seed(drawn)
            try:
                model = octavo.load(folder, device="cpu")
                found.append({n: t.clone() for n, t in model.lclm.state_dict().items()})
            except OctavoError:
                break
        shutil.rmtree(folder)
        if found:
            read += 1
            first, second = found
            for name, tensor in first.items():  # nothing was drawn at random
                assert torch.equal(tensor.nan_to_num(), second[name].nan_to_num()), (seed, name)
    assert 0 < read < count


@pytest.mark.filterwarnings("ignore")
def test_an_altered_checkpoint_is_refused_or_read_as_it_is(tmp_path: Path) -> None:
    check_mutations(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_five_hundred_altered_checkpoints_are_refused_or_read_as_they_are(tmp_path: Path) -> None:
    check_mutations(tmp_path, 500)


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder: Path) -> None:
    decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder")
    decoder.resize_token_embeddings(388, mean_resizing=False)
    decoder.save_pretrained(folder / "decoder")
    with pytest.raises(CheckpointError, match="do not belong together"):
        octavo.load(folder, device="cpu")


def test_an_unknown_model_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give a checkpoint folder, a hub id"):
        octavo.load("no-such-model")
    with pytest.raises(CheckpointError, match="could not fetch"):
        octavo.load("nobody/nothing-at-all")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        octavo.load(tmp_path / "file")


def test_a_failed_write_leaves_the_old_checkpoint(
    model: octavo.Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("octavo.weights.layout.save_file", full)
    with pytest.raises(octavo.WriteError, match="No space left"):
        model.save(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_any_two_models_can_be_assembled(tmp_path: Path) -> None:
    decoder = CHECKPOINT / "encoder"  # a tokenizer without memory tokens
    made = octavo.assemble(
        AutoModelForCausalLM.from_pretrained(CHECKPOINT / "decoder"),
        AutoModelForCausalLM.from_config(AutoModel.from_pretrained(decoder).config),
        encoder_tokenizer=AutoTokenizer.from_pretrained(CHECKPOINT / "decoder"),
        decoder_tokenizer=AutoTokenizer.from_pretrained(decoder),
        encoder_layers=1,
        compression_ratio=8,
        ratios=[4, 16],
        encoder_window_size=32,
        device="cpu",
    )
    assert made.lclm.encoder.body.config.num_hidden_layers == 1
    table = made.lclm.get_input_embeddings().weight
    latents = made.compress(TEXT, ratio=4).latents
    assert 0.3 < latents.norm(dim=-1).mean() / table.norm(dim=-1).mean() < 3
    made.save(tmp_path / "made")
    again = octavo.load(tmp_path / "made", device="cpu")
    assert again.ratios == [4, 8, 16]
    assert again.extension == Extension(ratios=(4, 16), rotary="exact", name="assembled")
    torch.testing.assert_close(again.compress(TEXT, ratio=4).latents, latents)
    assert again.generate("Who?", context=TEXT, max_new_tokens=3).usage.ratio == 8


def test_the_sum_needs_a_shared_tokenizer() -> None:
    with pytest.raises(ConfigError, match="share a tokenizer"):
        octavo.assemble(
            str(CHECKPOINT / "encoder"), str(CHECKPOINT / "decoder"), residual="sum", device="cpu"
        )
    with pytest.raises(ConfigError, match="has 2 layers"):
        octavo.assemble(
            str(CHECKPOINT / "encoder"), str(CHECKPOINT / "decoder"), encoder_layers=9, device="cpu"
        )


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small model under random LoRA factors, and the checkpoint of it."""
    from octavo.weights.assembly import add_lora
    from octavo.weights.layout import Checkpoint, write

    halves = {part: str(CHECKPOINT / part) for part in ("encoder", "decoder")}
    made = octavo.assemble(
        halves["encoder"], halves["decoder"], compression_ratio=4, encoder_window_size=16,
        encoder_layers=1, device="cpu",
    )  # fmt: skip
    lclm = made.lclm
    add_lora(lclm, 2, 4, encoder_layers=1, **halves)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in lclm.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.1)
    prompts = made.prompts
    tokenizers = prompts.decoder_tokenizer, AutoTokenizer.from_pretrained(halves["encoder"])
    folder = tmp_path_factory.mktemp("lora") / "lora"
    write(Checkpoint(lclm, *tokenizers, "lora", "x"), folder)
    return made, folder


def test_a_lora_checkpoint_is_merged_for_answers_and_kept_apart_for_training(
    lora: tuple[Any, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    from octavo.weights.layout import read

    (made, folder), lclm = lora, lora[0].lclm
    weights = load_file(folder / "decoder" / "adapter_model.safetensors")
    assert sum(w.numel() for w in weights.values()) < 10_000  # factors and three rows, no base

    spans = [made.prompts.source(TEXT).ids]
    with torch.no_grad():
        wanted = lclm.encode(spans)[0]
        rows = lclm.get_input_embeddings()(torch.tensor([387, 388, 389]))
        for trainable in (False, True):
            again = read(folder, trainable=trainable).lclm
            assert hasattr(again.decoder, "peft_config") == trainable
            torch.testing.assert_close(again.encode(spans)[0], wanted, atol=1e-4, rtol=1e-4)
            found = again.get_input_embeddings()(torch.tensor([387, 388, 389]))
            torch.testing.assert_close(found, rows)

    # A stranger with peft alone gets the same decoder.
    base = AutoModelForCausalLM.from_pretrained(CHECKPOINT / "decoder")
    theirs: Any = PeftModel.from_pretrained(base, str(folder / "decoder"))
    ids = torch.tensor([[5, 387, 9]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, lclm.decoder(ids).logits)
    octavo.load(folder, device="cpu").save(tmp_path / "whole")
    whole = octavo.load(tmp_path / "whole", device="cpu")
    torch.testing.assert_close(whole.compress(TEXT).latents, wanted, atol=1e-4, rtol=1e-4)


@pytest.fixture
def factors(lora: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy of the LoRA checkpoint to break."""
    return Path(shutil.copytree(lora[1], tmp_path / "factors"))


def test_factors_written_by_a_newer_peft_load_where_its_new_features_are_off(
    factors: Path,
) -> None:
    edit(factors / "decoder" / "adapter_config.json", from_the_future=None, peft_version="99.0")
    assert octavo.load(factors, device="cpu").config.compression_ratio


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"from_the_future": {"rank": 3}}, "does not know from_the_future"),
        ({"target_modules": "(a+)+$"}, "target_modules is a pattern"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern is a pattern"),
        ({"alpha_pattern": {".*a*a*a*$": 4}}, "alpha_pattern is a pattern"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication cannot be read"),
        ({"peft_type": "IA3"}, "peft_type is not LORA"),
        ({"r": -1}, "`r` should be a positive integer"),
        ({"r": "many"}, "cannot put the LoRA factors"),
        ({"lora_alpha": "many"}, "cannot put the LoRA factors"),
    ],
)
def test_factors_of_another_kind_are_refused_by_name(
    factors: Path, changes: dict[str, Any], says: str
) -> None:
    edit(factors / "decoder" / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=re.escape(says)):
        octavo.load(factors, device="cpu")


def drop_tensor(file: Path, part_of_name: str) -> str:
    """Take the first tensor of that name out of a file, and return its name."""
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if part_of_name in name)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("half", ["decoder", "encoder"])
def test_a_half_that_lacks_a_tensor_is_refused_by_its_name(folder: Path, half: str) -> None:
    name = drop_tensor(folder / half / "model.safetensors", "q_proj")
    with pytest.raises(CheckpointError, match=re.escape(name.removeprefix("model."))):
        octavo.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("half", "part_of_name"),
    [("decoder", "lora_A"), ("encoder", "lora_B"), ("decoder", "embed_tokens")],
)
def test_factors_that_lack_a_tensor_are_refused_by_its_name(
    factors: Path, half: str, part_of_name: str
) -> None:
    name = drop_tensor(factors / half / "adapter_model.safetensors", part_of_name)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        octavo.load(factors, device="cpu")
