"""Merge plain LoRA factors into their base without peft, whose wrapping takes longer than loading.

    weight + (B @ A) * alpha / r        the sum that peft's own merge computes, in the same order
    embedding[trained rows] = delta     peft's trainable tokens replace rows

Any other feature of peft is left to peft (`halves.py`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PREFIX = "base_model.model."
_PLAIN = {"fan_in_fan_out": False, "bias": "none", "init_lora_weights": True}
_NAMED = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "trainable_token_indices", "task_type"),
    *("inference_mode", "peft_type", "base_model_name_or_path", "peft_version", "megatron_core"),
    *("qalora_group_size", "runtime_config", "revision", "auto_mapping"),
}
"""What a plain config sets, or what changes nothing; all else must be off."""


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Return whether the values of adapter_config.json ask for factors and trained rows alone."""
    rest = {name: value for name, value in config.items() if name not in _NAMED}
    is_off = all(value == _PLAIN[n] if n in _PLAIN else not value for n, value in rest.items())
    is_lora = config.get("peft_type") == "LORA" and isinstance(config.get("target_modules"), list)
    scale = config.get("r"), config.get("lora_alpha")
    return is_off and is_lora and all(isinstance(n, int | float) and n > 0 for n in scale)


@torch.no_grad()
def merge(model: nn.Module, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Merge factors into a model in place; return False, with nothing done, where peft must do it.

    `config` holds the values of adapter_config.json.

    Every tensor of `state` has to find its place, as a linear layer or as rows of the embedding.
    """
    if not _is_plain(config):
        return False
    factors: list[tuple[Tensor, Tensor, Tensor]] = []
    seen = set()
    for name, tensor in state.items():
        path, _, kind = name.removeprefix(_PREFIX).partition(".lora_")
        if kind == "A.weight":
            layer, other = _find(model, path), f"{_PREFIX}{path}.lora_B.weight"
            if type(layer) is not nn.Linear or other not in state:
                return False
            if (len(state[other]), tensor.shape[1]) != layer.weight.shape:
                return False
            factors.append((layer.weight, state[other], tensor))
            seen |= {name, other}
    rows = _trained_rows(model, config, state)
    if rows is None or seen | rows.keys() != state.keys():
        return False
    scale = config["lora_alpha"] / config["r"]
    for weight, b, a in factors:
        weight += (b.float() @ a.float()) * scale
    for embedding, places, values in rows.values():
        embedding[places] = values.to(embedding.dtype)
    return True


def _trained_rows(
    model: Any, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, list[int], Tensor]] | None:
    """Return the embedding's trained rows by the name of their tensor; None for any other kind."""
    given = config.get("trainable_token_indices")
    found = {name: t for name, t in state.items() if name.endswith(".trainable_tokens_delta")}
    if not given:
        return None if found else {}
    embedding: Any = model.get_input_embeddings()
    head = model.get_output_embeddings()
    is_tied = head is None or getattr(head, "weight", None) is embedding.weight
    if not isinstance(given, Mapping) or len(given) != 1 or len(found) != 1 or not is_tied:
        return None
    ((name, values),) = found.items()
    ((where, places),) = given.items()
    path = name.removeprefix(_PREFIX).removesuffix(".token_adapter.trainable_tokens_delta")
    if _find(model, path) is not model.get_input_embeddings() or path.rpartition(".")[2] != where:
        return None
    if values.shape != (len(places), embedding.weight.shape[1]):
        return None
    weight: Tensor = embedding.weight
    return {name: (weight, list(places), values)}


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
