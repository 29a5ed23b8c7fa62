"""Choose what a stage trains: the adapter, the encoder, the decoder, the memory tokens' rows."""

import typing
from typing import Any

import torch
from torch import nn

from octavo.errors import TrainingError
from octavo.nn import LCLM
from octavo.recipe import Group

Parameters = dict[str, dict[str, nn.Parameter]]
"""By group, then by name."""


def group_of(name: str) -> str:
    """Return the group a parameter of `LCLM` belongs to, by the part it lives in."""
    if "trainable_tokens" in name:
        return "memory_rows"
    part = name.split(".", 1)[0]
    return {"residual": "adapter"}.get(part, part)


def set_trainable(model: LCLM, groups: typing.Collection[str]) -> Parameters:
    """Freeze everything but `groups` and return their parameters by group and name.

    A decoder or encoder under LoRA trains its low-rank factors only. `memory_rows` are the three
    memory tokens' embeddings; without LoRA that is the whole embedding, and `keep_rows` drops the
    gradient of its other rows.
    """
    # In one order everywhere: the gradient norm is a sum, and sums depend on their order.
    chosen: Parameters = {group: {} for group in typing.get_args(Group) if group in groups}
    has_lora = {group: False for group in ("encoder", "decoder")}
    for name, _ in model.named_parameters():
        if "lora_" in name:
            has_lora[group_of(name)] = True
    for name, parameter in model.named_parameters():
        group = group_of(name)
        is_factor = "lora_" in name or not has_lora.get(group, False)
        is_chosen = group in groups and (is_factor or group == "memory_rows")
        parameter.requires_grad_(is_chosen)
        if is_chosen:
            chosen[group][name] = parameter
    if "memory_rows" in groups and not chosen["memory_rows"]:
        if "decoder" in groups:
            raise TrainingError(
                "a decoder trained whole moves its memory rows with it; drop the lr of "
                "memory_rows, or set lora.rank"
            )
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, nn.Parameter)
        weight.requires_grad_(True)
        name = next(n for n, parameter in model.named_parameters() if parameter is weight)
        chosen["memory_rows"][name] = weight
    for group, parameters in chosen.items():
        if not parameters:
            raise TrainingError(f"the group {group!r} has no parameters in this model; drop its lr")
    return chosen


@torch.no_grad()
def keep_rows(parameters: Parameters, model: LCLM) -> None:
    """Drop the gradient of all rows but the memory tokens' of a frozen embedding."""
    for name, weight in parameters.get("memory_rows", {}).items():
        if "trainable_tokens" in name or weight.grad is None:
            continue
        grad: Any = weight.grad
        first, mine = 0, grad
        if hasattr(grad, "to_local"):  # sharded by rows over the ranks
            from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

            mine = grad.to_local()
            _, (first, *_) = compute_local_shape_and_global_offset(
                grad.shape, grad.device_mesh, grad.placements
            )
        wanted = torch.zeros(len(mine), 1, dtype=mine.dtype, device=mine.device)
        for row in model.config.memory_token_ids:
            if 0 <= row - first < len(mine):
                wanted[row - first] = 1
        # Not a product: a row that is not finite must not survive as nan.
        mine.copy_(torch.where(wanted > 0, mine, torch.zeros_like(mine)))
