"""Read and write checkpoints in the published layout, and find them by path, hub id or name.

    model_config.json            the published settings (config.py)
    decoder/                     a Hugging Face causal LM with its tokenizer and the memory tokens
    encoder/                     a headless Hugging Face model with its own tokenizer
    adapter/adapter.safetensors  the adapter
    octavo.json                  optional, ours: what the published format has no place for
    config.json, tokenizer       optional, ours: what a server looks for in the root (whole halves)

`LCLM.save_pretrained`, and so Trainer, writes both halves and the adapter to one model.safetensors
beside config.json instead; that is read too.

Either half may instead hold LoRA factors of peft on a base model. Nothing is ever unpickled, and
what is missing or does not fit is an error, never a random weight.
"""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from octavo.config import (
    EXTENSION_FILE,
    MEMORY_TOKENS,
    MODEL_CONFIG_FILE,
    Extension,
    ModelConfig,
    Rotary,
    read_json,
)
from octavo.errors import CheckpointError, OctavoError
from octavo.files import WriteError, new_folder
from octavo.machine import parse_dtype
from octavo.nn import LCLM, LCLMConfig
from octavo.progress import Progress
from octavo.prompt import PromptEncoder
from octavo.weights.assembly import UNTRUSTED, build, load_base
from octavo.weights.fingerprint import fingerprint_of
from octavo.weights.guard import check_files
from octavo.weights.halves import HalfLoader, cast, first_line, write_half
from octavo.weights.selfcheck import check_once

ASSETS = Path(__file__).parent.parent / "assets"
DEFAULT_NAME = "smol"
PARTS = ("decoder", "encoder", "adapter")
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with the two tokenizers that belong to it."""

    lclm: LCLM
    decoder_tokenizer: Any
    encoder_tokenizer: Any
    name: str
    fingerprint: str
    """Identifies the weights that make and read latents: a context names it."""

    def __post_init__(self) -> None:
        """Let `LCLM.save_pretrained` write the whole checkpoint too."""
        self.lclm.write_beside = self._write_beside

    def _write_beside(self, folder: Path) -> None:
        """Write what stands beside the weights that transformers saved as a whole."""
        rotary = self.lclm.config.extension.get("rotary")
        whole = replace(self.lclm.extension, rotary=rotary, base=None, encoder_layers=None)
        self.write_texts(folder, whole)

    def write_texts(self, folder: Path, extension: Extension) -> None:
        """Write tokenizers and settings; the encoder's tokenizer may be that of a pinned base."""
        self.decoder_tokenizer.save_pretrained(folder / "decoder")
        if extension.base is None:
            self.encoder_tokenizer.save_pretrained(folder / "encoder")
        _write_json(folder / MODEL_CONFIG_FILE, self.lclm.settings.to_dict())
        if values := extension.to_dict():
            _write_json(folder / EXTENSION_FILE, {"format_version": 1, **values})

    def write_root(self, folder: Path, extension: Extension, dtype: torch.dtype | None) -> None:
        """Write what `vllm serve` looks for: one config of both halves, the decoder's tokenizer."""
        config = copy.deepcopy(self.lclm.config)
        config.architectures = [LCLM.__name__]
        config.extension = extension.to_dict()
        values = config.to_diff_dict()
        # vLLM asks the outer config what the decoder does.
        values["tie_word_embeddings"] = config.text_config.tie_word_embeddings
        values["dtype"] = str(dtype or self.lclm.dtype).removeprefix("torch.")
        for half in ("text_config", "encoder_config"):
            values[half]["dtype"] = values["dtype"]
            values[half].pop("_name_or_path", None)  # a folder of this machine
        _write_json(folder / "config.json", values)
        self.decoder_tokenizer.save_pretrained(folder)
        if (defaults := folder / "decoder" / GENERATION_FILE).is_file():
            shutil.copy(defaults, folder)

    def prompts(self) -> PromptEncoder:
        """Return the encoder of prompts for this model."""
        return PromptEncoder(self.decoder_tokenizer, self.encoder_tokenizer, self.lclm.settings)


def resolve(name_or_path: str | Path | None, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: a shipped name, a local folder, or a hub id.

    Nothing is the model that octavo ships, whatever folders stand around. Raises `CheckpointError`
    when there is none. A hub id is downloaded to the hub's own cache.
    """
    if not name_or_path:
        return ASSETS / DEFAULT_NAME
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    shipped = sorted(found.parent.name for found in ASSETS.glob(f"*/{MODEL_CONFIG_FILE}"))
    if name in shipped:
        return ASSETS / name
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the checkpoint's folder")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"no model {name!r}: give a checkpoint folder, a hub id like "
            f"latent-context/0.6b-4b-LCLM-16x, or a shipped name ({', '.join(shipped)})"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.pkl", "*.py"]
            )
        )
    except Exception as error:  # the hub client raises many kinds; all mean "not available"
        raise CheckpointError(
            f"could not fetch {name!r} from the hub ({type(error).__name__}: "
            f"{first_line(error)}); check the name and the network, or give a local folder"
        ) from error


def read(
    folder: Path,
    *,
    dtype: str | torch.dtype = torch.float32,
    rotary: Rotary | None = None,
    trainable: bool = False,
    base: Path | None = None,
    progress: Progress | None = None,
    attention: str | None = None,
) -> Checkpoint:
    """Load a checkpoint folder in the given precision.

    `rotary` picks the rotary precision (`nn/rotary.py`). By default 16-bit published checkpoints
    get a rounded encoder and an exact decoder, as their authors' vLLM evaluation ran them, and fp32
    or our own checkpoints none. With `trainable`, LoRA factors stay apart instead of being merged.
    Raises `CheckpointError` for whatever is wrong with the folder; nothing in it is ever run.
    """
    precision = parse_dtype(dtype)
    try:
        for part in (folder, *(folder / part for part in PARTS)):
            check_files(part)
        return _read(folder, precision, rotary, trainable, base, progress, attention)
    except OctavoError:
        raise
    except Exception as error:  # a checkpoint may hold anything, and libraries raise anything
        raise CheckpointError(
            f"cannot load {folder} ({type(error).__name__}: {first_line(error)}); fetch it again"
        ) from error


def _read(
    folder: Path,
    precision: torch.dtype,
    rotary: Rotary | None,
    trainable: bool,
    base: Path | None,
    progress: Progress | None,
    attention: str | None,
) -> Checkpoint:
    config, extension = ModelConfig.read(folder), Extension.read(folder)
    if rotary is None:
        is_published = not (folder / EXTENSION_FILE).is_file()
        rounds = is_published and precision is torch.bfloat16
        rotary = extension.rotary or ("bf16_encoder" if rounds else "exact")
    is_whole = (folder / "config.json").is_file() and not (folder / "adapter").is_dir()
    if not is_whole and (missing := [part for part in PARTS if not (folder / part).is_dir()]):
        raise CheckpointError(
            f"{folder} lacks the folder {missing[0]}/; fetch the whole checkpoint"
        )
    decoder_tokenizer, encoder_tokenizer = read_tokenizers(folder, extension, base, progress)
    options: dict[str, Any] = {"dtype": precision}
    if attention:
        options["attn_implementation"] = attention
    load = HalfLoader(base, progress, options)
    if is_whole:
        options["config"] = LCLMConfig.from_pretrained(folder)
        options["config"].extension["rotary"] = rotary
        lclm: Any = load.half(folder, AutoModelForCausalLM, vocabulary=len(decoder_tokenizer))
    else:
        encoder = load.half(folder / "encoder", AutoModel, num_layers=extension.encoder_layers)
        decoder = load.half(
            folder / "decoder",
            AutoModelForCausalLM,
            vocabulary=len(decoder_tokenizer),
            new_ids=decoder_tokenizer.convert_tokens_to_ids(list(MEMORY_TOKENS)),
        )
        lclm = build(encoder, decoder, encoder_tokenizer, decoder_tokenizer, config, extension)
        # Only now: transformers cannot tie the weights of a model that peft has wrapped.
        lclm.decoder = load.with_lora(lclm.decoder, folder / "decoder", trainable)
        lclm.encoder.body = load.with_lora(lclm.encoder.body, folder / "encoder", trainable)
        load_adapter(lclm, folder)
        lclm.adapter.to(precision)
    lclm.round_rotary(rotary)
    lclm.eval()
    name = extension.name or folder.resolve().name
    tokenizers = decoder_tokenizer, encoder_tokenizer
    fingerprint = identify(folder, tokenizers)
    if folder.parent != ASSETS:  # what octavo ships is known
        check_once(lclm, tokenizers, fingerprint)
    return Checkpoint(lclm, *tokenizers, name, fingerprint)


def identify(folder: Path, tokenizers: Sequence[Any] = ()) -> str:
    """Return the fingerprint of a checkpoint folder: of its settings, weights and tokenizers.

    The encoder's tokenizer need not be there where it is that of a pinned base.
    """
    own = [part for part in PARTS[:2] if (folder / part / "tokenizer_config.json").is_file()]
    tokenizers = tokenizers or [_tokenizer(folder / part, part) for part in own]
    settings = ModelConfig.read(folder), Extension.read(folder)
    return fingerprint_of(folder, *settings, tokenizers[: len(own)])


def read_tokenizers(
    folder: Path, extension: Extension, base: Path | None = None, progress: Progress | None = None
) -> tuple[Any, Any]:
    """Return the decoder's and the encoder's tokenizer; the latter may be that of a pinned base."""
    decoder_tokenizer = _tokenizer(folder / "decoder", "decoder")
    if (folder / "encoder" / "tokenizer_config.json").is_file() or extension.base is None:
        return decoder_tokenizer, _tokenizer(folder / "encoder", "encoder")
    named = load_base(extension.base, base, progress)
    return decoder_tokenizer, AutoTokenizer.from_pretrained(named, **UNTRUSTED)


def write(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder, complete or not at all.

    Halves under LoRA are written as peft writes them, whole halves as transformers does; `dtype`
    casts what is written, without touching the model. Raises `WriteError` for a folder that holds
    something else than a checkpoint.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL_CONFIG_FILE).is_file():
        raise WriteError(f"cannot write {folder}: it holds no checkpoint; choose an empty folder")
    lclm = checkpoint.lclm
    extension = lclm.extension
    if not hasattr(lclm.decoder, "peft_config"):  # whole weights stand on no base
        extension = replace(extension, base=None, encoder_layers=None)
    with new_folder(folder) as temporary:
        for part, module in (("decoder", lclm.decoder), ("encoder", lclm.encoder.body)):
            write_half(module, temporary / part, dtype)
        checkpoint.write_texts(temporary, extension)
        if extension.base is None:
            checkpoint.write_root(temporary, extension, dtype)
        (temporary / "adapter").mkdir()
        save_file(cast(lclm.adapter.state_dict(), dtype), temporary / "adapter/adapter.safetensors")
        if lclm.residual is not None:
            residual = cast(lclm.residual.state_dict(), dtype)
            save_file(residual, temporary / "adapter" / "residual.safetensors")


def _tokenizer(folder: Path, whose: str) -> Any:
    """Load a tokenizer from the checkpoint itself, never from a hub by guess."""
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer_config.json; copy the {whose}'s own tokenizer files there"
        )
    try:
        tokenizer = open_tokenizer(folder)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: cannot read the {whose}'s tokenizer ({first_line(error)})"
        ) from error
    if whose == "decoder":
        known = tokenizer.get_vocab()
        if missing := [token for token in MEMORY_TOKENS if token not in known]:
            raise CheckpointError(
                f"{folder}: the tokenizer lacks the memory tokens {', '.join(missing)}; "
                "use the tokenizer that was saved with this checkpoint"
            )
    return tokenizer


def open_tokenizer(folder: Path) -> Any:
    """Open the tokenizer of a half as it was written.

    A tokenizer of no class of its own is its file. `AutoTokenizer` would guess a class from the
    model beside it, and Qwen2's, for one, splits words its own way.
    """
    said = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    is_plain = said in ("TokenizersBackend", "PreTrainedTokenizerFast")
    kind = PreTrainedTokenizerFast if is_plain else AutoTokenizer
    return kind.from_pretrained(folder, **UNTRUSTED)


def load_adapter(lclm: Any, folder: Path) -> None:
    """Fill what is called `adapter`, and `residual` if any, of an LCLM or a part of one.

    Any tensor that is missing, unknown or misshapen is refused.
    """
    path = folder / "adapter" / "adapter.safetensors"
    _fill(lclm.adapter, path)
    if lclm.residual is not None:
        _fill(lclm.residual, path.with_name("residual.safetensors"))


def _fill(module: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; without it the model would be random: fetch the whole checkpoint"
        )
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
    expected = module.state_dict()
    if missing := sorted(expected.keys() - given.keys()):
        raise CheckpointError(f"{path} lacks {missing[0]} (and {len(missing) - 1} more tensors)")
    if unknown := sorted(given.keys() - expected.keys()):
        raise CheckpointError(
            f"{path} holds {unknown[0]}, which this adapter_type has no place for; "
            "does model_config.json belong to it?"
        )
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(expected[name].shape)} from the encoder, the decoder and model_config.json"
            )
    module.load_state_dict(given, strict=True)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
