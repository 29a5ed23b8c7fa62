"""Read and write checkpoints in the published layout, and find them by path, hub id or name.

    model_config.json            the published settings (config.py)
    decoder/                     a Hugging Face causal LM with its tokenizer and the memory tokens
    encoder/                     a headless Hugging Face model with its own tokenizer
    adapter/adapter.safetensors  the adapter
    octavo.json                  optional, ours: what the published format has no place for

Either half may instead hold LoRA factors of peft on a base model. Nothing is ever unpickled, and
what is missing or does not fit is an error, never a random weight.
"""

import hashlib
import json
import warnings
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from octavo.assembly import build, first_layers, load_base, quiet
from octavo.base import Progress
from octavo.config import (
    EXTENSION_FILE,
    MEMORY_TOKENS,
    MODEL_CONFIG_FILE,
    Extension,
    ModelConfig,
    Rotary,
    read_json,
)
from octavo.errors import CheckpointError, ConfigError
from octavo.files import new_folder
from octavo.nn import LCLM
from octavo.prompt import PromptEncoder

ASSETS = Path(__file__).parent / "assets"
DEFAULT_NAME = "smol"
LORA_FILE = "adapter_model.safetensors"
PARTS = ("decoder", "encoder", "adapter")

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with the two tokenizers that belong to it."""

    lclm: LCLM
    decoder_tokenizer: Any
    encoder_tokenizer: Any
    name: str
    fingerprint: str
    """Identifies the weights that make and read latents: a context names it."""

    def prompts(self) -> PromptEncoder:
        """Return the encoder of prompts for this model."""
        return PromptEncoder(self.decoder_tokenizer, self.encoder_tokenizer, self.lclm.settings)


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a name; a typo is an error, not some other precision."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def resolve(name_or_path: str | Path | None, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: a shipped name, a local folder, or a hub id.

    Raises `CheckpointError` when there is none. A hub id is downloaded to the hub's own cache.
    """
    name = str(name_or_path or DEFAULT_NAME)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if (ASSETS / name).is_dir() and "/" not in name:
        return ASSETS / name
    shipped = ", ".join(sorted(found.name for found in ASSETS.glob("*/")))
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the checkpoint's folder")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"no model {name!r}: give a checkpoint folder, a hub id like "
            f"latent-context/0.6b-4b-LCLM-16x, or a shipped name ({shipped})"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.pkl"]
            )
        )
    except Exception as error:  # the hub client raises many kinds; all mean "not to be had"
        raise CheckpointError(
            f"could not fetch {name!r} from the hub ({type(error).__name__}: "
            f"{_first_line(error)}); check the name and the network, or give a local folder"
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
    """
    precision = parse_dtype(dtype)
    config, extension = ModelConfig.read(folder), Extension.read(folder)
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise CheckpointError(
            f"{folder} lacks the folder {missing[0]}/; fetch the whole checkpoint"
        )
    adapter_file = folder / "adapter" / "adapter.safetensors"
    if not adapter_file.is_file():
        raise CheckpointError(f"{adapter_file} is missing; without it the model would be random")
    decoder_tokenizer, encoder_tokenizer = read_tokenizers(folder, extension, base, progress)
    options = {"dtype": precision, **({"attn_implementation": attention} if attention else {})}
    load = _Loader(base, progress, options)
    decoder = load.half(folder / "decoder", AutoModelForCausalLM, vocabulary=len(decoder_tokenizer))
    encoder = load.half(folder / "encoder", AutoModel, num_layers=extension.encoder_layers)
    lclm = build(encoder, decoder, encoder_tokenizer, decoder_tokenizer, config, extension)
    # Only now: transformers cannot tie the weights of a model that peft has wrapped.
    lclm.decoder = load.with_lora(lclm.decoder, folder / "decoder", trainable)
    lclm.encoder.body = load.with_lora(lclm.encoder.body, folder / "encoder", trainable)
    _load_adapter(lclm, folder)
    lclm.adapter.to(precision)
    if rotary is None:
        is_published = not (folder / EXTENSION_FILE).is_file()
        rounds = is_published and precision is torch.bfloat16
        rotary = extension.rotary or ("bf16_encoder" if rounds else "exact")
    lclm.round_rotary(rotary)
    lclm.eval()
    name = extension.name or folder.resolve().name
    fingerprint = fingerprint_of(folder, config, extension)
    return Checkpoint(lclm, decoder_tokenizer, encoder_tokenizer, name, fingerprint)


def read_tokenizers(
    folder: Path, extension: Extension, base: Path | None = None, progress: Progress | None = None
) -> tuple[Any, Any]:
    """Return the decoder's and the encoder's tokenizer; the latter may be that of a pinned base."""
    decoder_tokenizer = _tokenizer(folder / "decoder", "decoder")
    if (folder / "encoder" / "tokenizer_config.json").is_file() or extension.base is None:
        return decoder_tokenizer, _tokenizer(folder / "encoder", "encoder")
    named = load_base(extension.base, base, progress)
    return decoder_tokenizer, AutoTokenizer.from_pretrained(named)


def fingerprint_of(folder: Path, config: ModelConfig, extension: Extension) -> str:
    """Identify a checkpoint by its settings and its weight files, whatever they are loaded as.

    Reads at most a megabyte of each file: its header, and evenly spaced pieces of its data.
    """
    settings = [sorted(config.to_dict().items()), sorted(extension.to_dict().items())]
    digest = hashlib.sha256(repr(settings).encode())
    for file in sorted(folder.rglob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(1 << 16))
            step = max(1 << 12, size // 240)
            for place in range(0, size, step):
                data.seek(place)
                digest.update(data.read(1 << 12))
    return digest.hexdigest()[:16]


def fingerprint_of_weights(lclm: LCLM) -> str:
    """Identify a model that has no files yet by evenly spaced values of every tensor."""
    digest = hashlib.sha256(repr(sorted(lclm.settings.to_dict().items())).encode())
    for name, tensor in sorted(lclm.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 256)][:256].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def write(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder, complete or not at all.

    Halves under LoRA are written as peft writes them, whole halves as transformers does; `dtype`
    casts what is written, without touching the model.
    """
    lclm = checkpoint.lclm
    extension = lclm.extension
    if not hasattr(lclm.decoder, "peft_config"):  # whole weights stand on no base
        extension = replace(extension, base=None, encoder_layers=None)
    with new_folder(folder) as temporary:
        for part, module in (("decoder", lclm.decoder), ("encoder", lclm.encoder.body)):
            _write_half(module, temporary / part, dtype)
        checkpoint.decoder_tokenizer.save_pretrained(temporary / "decoder")
        if extension.base is None:
            checkpoint.encoder_tokenizer.save_pretrained(temporary / "encoder")
        (temporary / "adapter").mkdir()
        save_file(
            _cast(lclm.adapter.state_dict(), dtype), temporary / "adapter/adapter.safetensors"
        )
        if lclm.residual is not None:
            residual = _cast(lclm.residual.state_dict(), dtype)
            save_file(residual, temporary / "adapter" / "residual.safetensors")
        _write_json(temporary / MODEL_CONFIG_FILE, lclm.settings.to_dict())
        if values := extension.to_dict():
            _write_json(temporary / EXTENSION_FILE, {"format_version": 1, **values})


def _tokenizer(folder: Path, whose: str) -> Any:
    """Load a tokenizer from the checkpoint itself, never from a hub by guess."""
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer_config.json; copy the {whose}'s own tokenizer files there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: cannot read the {whose}'s tokenizer ({_first_line(error)})"
        ) from error
    if whose == "decoder":
        known = tokenizer.get_vocab()
        if missing := [token for token in MEMORY_TOKENS if token not in known]:
            raise CheckpointError(
                f"{folder}: the tokenizer lacks the memory tokens {', '.join(missing)}; "
                "use the tokenizer that was saved with this checkpoint"
            )
    return tokenizer


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads the decoder or the encoder: whole weights, or LoRA factors on their base."""

    base: Path | None
    progress: Progress | None
    options: dict[str, Any]

    def half(
        self, folder: Path, kind: Any, *, vocabulary: int = 0, num_layers: int | None = None
    ) -> PreTrainedModel:
        """Load one half without its LoRA factors, and check that its tokenizer fits."""
        source, options, is_lora = str(folder), self.options, (folder / LORA_FILE).is_file()
        if is_lora:
            named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
            if not named:
                raise CheckpointError(f"{folder}/adapter_config.json names no base model")
            source = load_base(str(named), self.base, self.progress)
            options = {**options, "dtype": torch.float32}  # merged in fp32, then rounded once
        if num_layers is not None and is_lora:
            kind = AutoModelForCausalLM  # the first layers are taken from a whole model
        try:
            with quiet():
                loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
                    source, use_safetensors=True, output_loading_info=True, **options
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot load {source} ({type(error).__name__}: {_first_line(error)}); "
                "is it complete, and in safetensors?"
            ) from error
        model, found = loaded
        # A pooler is drawn anew where a checkpoint has none; nothing here reads it.
        missing = {name for name in found["missing_keys"] if "pooler." not in name}
        _check_none_is_missing(source, missing)
        if num_layers is not None and is_lora:
            model = first_layers(model.base_model, num_layers)
        rows = model.get_input_embeddings().weight.shape[0]
        if is_lora and rows < vocabulary:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
            head = model.get_output_embeddings().weight.data  # untied: no random rows
            head[rows:] = head[:rows].mean(0)
        elif rows < vocabulary:
            raise CheckpointError(
                f"{folder}: the tokenizer has {vocabulary} tokens but the embedding only {rows} "
                "rows; the two do not belong together"
            )
        return model

    def with_lora(self, model: PreTrainedModel, folder: Path, trainable: bool) -> Any:
        """Put a half's LoRA factors on it, if it has any; merged unless they are to be trained."""
        if not (folder / LORA_FILE).is_file():
            return model
        from peft import PeftModel, get_peft_model_state_dict

        file = folder / LORA_FILE
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing tensors, which is an error below
                adapted = PeftModel.from_pretrained(
                    model, str(folder), config=_lora_config(folder), is_trainable=trainable
                )
            wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
            _check_none_is_missing(file, wanted - _tensor_names(file))
            whole = adapted if trainable else adapted.merge_and_unload()
        except CheckpointError:
            raise
        except Exception as error:  # peft's own errors are of every kind
            raise CheckpointError(
                f"cannot put the LoRA factors of {folder} on their base "
                f"({type(error).__name__}: {_first_line(error)}); do they belong to it?"
            ) from error
        for parameter in whole.parameters():  # not `.to()`: it would round the rotary buffers too
            parameter.data = parameter.data.to(self.options["dtype"])
        return whole


def _check_none_is_missing(place: Path | str, missing: AbstractSet[str]) -> None:
    """Refuse weights that lack tensors: transformers and peft would draw them at random."""
    if missing:
        first, *others = sorted(missing)
        more = f" and {len(others)} more" if others else ""
        raise CheckpointError(
            f"{place} lacks the tensor {first}{more}, which would be random; fetch the whole "
            "checkpoint, and do not rename tensors"
        )


def _tensor_names(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return set(tensors.keys())


def _lora_config(folder: Path) -> Any:
    """Read what peft needs to know of a half's factors, whichever peft has written it.

    Fields that this peft does not know are dropped where they are switched off, and refused where
    they are not: the model would be another. Modules are named one by one, for a pattern from a
    checkpoint could keep a regular expression busy for ever.
    """
    from peft import LoraConfig

    path = folder / "adapter_config.json"
    values = read_json(path)
    if values.pop("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{path}: peft_type is not LORA, the only one that can be read")
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        if isinstance(values.get(key), str):
            raise CheckpointError(
                f"{path}: {key} is a pattern, expected a list of module names; write it out"
            )
    known = {field.name for field in fields(LoraConfig)}
    for key in sorted(values.keys() - known):
        if values.pop(key) and key != "peft_version":
            raise CheckpointError(
                f"{path}: this peft does not know {key}, which the factors were trained with; "
                "upgrade peft"
            )
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no LoRA config ({_first_line(error)})") from error


def _load_adapter(lclm: LCLM, folder: Path) -> None:
    """Fill the adapter from its file, refusing any tensor that is missing, unknown or misshapen."""
    path = folder / "adapter" / "adapter.safetensors"
    _fill(lclm.adapter, path)
    if lclm.residual is not None:
        _fill(lclm.residual, path.with_name("residual.safetensors"))


def _fill(module: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; fetch the whole checkpoint")
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


def _write_half(module: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Save one half as its own library saves it."""
    if hasattr(module, "peft_config"):
        module.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a model card template full of blanks
        file = folder / LORA_FILE
    else:
        with quiet():
            module.save_pretrained(str(folder))
        file = folder / "model.safetensors"
    if dtype is not None and file.is_file():
        save_file(_cast(load_file(file), dtype), file, metadata={"format": "pt"})


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no further message"])[0][:200]
