"""Load and write the decoder or the encoder: whole weights, or LoRA factors of peft on their base.

Either is checked to be complete: transformers and peft draw what is missing at random.
"""

import re
import warnings
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from octavo.config import read_json
from octavo.errors import CheckpointError
from octavo.nn.body import headless
from octavo.progress import Progress
from octavo.weights import lora
from octavo.weights.assembly import UNTRUSTED, first_layers, load_base, make_room, quiet
from octavo.weights.guard import check_files

_PATTERNS = ("rank_pattern", "alpha_pattern")
LORA_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class HalfLoader:
    """Loads the decoder or the encoder: whole weights, or LoRA factors on their base."""

    base: Path | None
    progress: Progress | None
    options: dict[str, Any]
    whole: dict[str, PreTrainedModel] = field(default_factory=dict)
    """Bases whose first layers became an encoder: the decoder's half need not read them again."""

    def half(
        self,
        folder: Path,
        kind: Any,
        *,
        vocabulary: int = 0,
        new_ids: Sequence[int] = (),
        num_layers: int | None = None,
    ) -> PreTrainedModel:
        """Load one half without its LoRA factors, and check that its tokenizer fits.

        Rows of `new_ids`, if the base lacks these tokens, start as they did when it was assembled.
        """
        source, options, is_lora = str(folder), self.options, (folder / LORA_FILE).is_file()
        if is_lora:
            named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
            if not named:
                raise CheckpointError(f"{folder}/adapter_config.json names no base model")
            source = load_base(str(named), self.base, self.progress)
            check_files(Path(source))
            options = {**options, "dtype": torch.float32}  # merged in fp32, then rounded once
        if num_layers is not None and is_lora:
            model = self.whole[source] = self._load(source, AutoModelForCausalLM, options)
            model = first_layers(headless(model), num_layers)
        else:
            model = self.whole.pop(source, None) or self._load(source, kind, options)
        rows = model.get_input_embeddings().weight.shape[0]
        if is_lora and new_ids:
            if min(new_ids) < rows:  # spare rows, unless the base has these tokens itself
                known = AutoTokenizer.from_pretrained(source, **UNTRUSTED).get_vocab().values()
                new_ids = sorted(set(new_ids) - set(known))
            make_room(model, vocabulary, new_ids)
        elif rows < vocabulary:
            raise CheckpointError(
                f"{folder}: the tokenizer has {vocabulary} tokens but the embedding only {rows} "
                "rows; the two do not belong together"
            )
        return model

    def _load(self, source: str, kind: Any, options: dict[str, Any]) -> PreTrainedModel:
        """Let transformers load a model, and refuse one that lacks tensors."""
        try:
            with quiet():
                loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
                    source, use_safetensors=True, output_loading_info=True, **UNTRUSTED, **options
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot load {source} ({type(error).__name__}: {first_line(error)}); "
                "is it complete, and in safetensors?"
            ) from error
        # A pooler is drawn anew where a checkpoint has none; nothing here reads it.
        missing = {name for name in loaded[1]["missing_keys"] if "pooler." not in name}
        _check_none_is_missing(source, missing)
        return loaded[0]

    def with_lora(self, model: PreTrainedModel, folder: Path, trainable: bool) -> Any:
        """Put a half's LoRA factors on it, if it has any; merged unless they are to be trained."""
        if not (folder / LORA_FILE).is_file():
            return model
        file, values = folder / LORA_FILE, read_json(folder / "adapter_config.json")
        try:
            if not trainable and lora.merge(model, values, load_file(file)):
                return self._rounded(model)
            from peft import PeftModel, get_peft_model_state_dict

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing tensors, which is an error below
                adapted = PeftModel.from_pretrained(
                    model, str(folder), config=_lora_config(folder), is_trainable=trainable
                )
            wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
            _check_none_is_missing(file, wanted - _tensor_names(file))
            # Unfrozen again: merged weights are as trainable as any.
            whole = adapted if trainable else adapted.merge_and_unload().requires_grad_(True)
        except CheckpointError:
            raise
        except Exception as error:  # peft's own errors are of every kind
            raise CheckpointError(
                f"cannot put the LoRA factors of {folder} on their base "
                f"({type(error).__name__}: {first_line(error)}); do they belong to it?"
            ) from error
        return self._rounded(whole)

    def _rounded(self, whole: Any) -> Any:
        """Return merged weights in the precision that was asked for."""
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
    for key in ("target_modules", "exclude_modules", "layers_pattern", *_PATTERNS):
        given = values.get(key)
        names = given if key in _PATTERNS and isinstance(given, dict) else ()
        if isinstance(given, str) or any(map(_may_hang, names)):
            raise CheckpointError(
                f"{path}: {key} is a pattern, expected module names; write them out"
            )
    if values.get("layer_replication"):
        raise CheckpointError(f"{path}: layer_replication cannot be read; write the layers out")
    known = {one.name for one in fields(LoraConfig)}
    for key in sorted(values.keys() - known):
        if values.pop(key) and key != "peft_version":
            raise CheckpointError(
                f"{path}: this peft does not know {key}, which the factors were trained with; "
                "upgrade peft"
            )
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no LoRA config ({first_line(error)})") from error


def write_half(module: Any, folder: Path, dtype: torch.dtype | None) -> None:
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
        save_file(cast(load_file(file), dtype), file, metadata={"format": "pt"})


def _may_hang(pattern: str) -> bool:
    """Whether matching a name could take endless steps; peft itself writes `.*` for experts."""
    return len(re.findall(r"[*+{]", pattern)) > 2 or bool(re.search(r"\)[*+{?]", pattern))


def cast(state: dict[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return tensors on the CPU, in another precision if one is given."""
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, which must not ask for trust."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which is never run"
    return (str(error).strip().splitlines() or ["no further message"])[0][:200]
