"""Spread one run over processes: FSDP2 applied from outside, and the few collectives of a step.

Launched by `torchrun`, every process (rank) holds a shard of each parameter and reads its share of
a step's rows. Alone, nothing here does anything. The model knows none of it.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from octavo.errors import TrainingError
from octavo.nn import LCLM
from octavo.nn.body import layers_of as body_layers

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another: writing a large export on rank 0 takes minutes."""


def world() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return world()[0] == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did; yield this process's device."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def prepare(
    model: LCLM,
    *,
    attention: str,
    compile: bool,
    checkpointing: bool,
    bf16: bool,
) -> None:
    """Set a model up for training on this process's device, in place.

    Frozen weights are kept in bf16 under bf16 autocast: they would be rounded for every use anyway.
    Sharded ones are left alone, FSDP2 rounds them as it gathers them.
    """
    for body in (model.encoder.body, model.decoder):
        body.set_attn_implementation(attention)
        if checkpointing:
            _recompute(body)
    if bf16 and world()[1] == 1:
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    if compile:
        # Layers share their code, and are compiled for each of few shapes, with gradients and not.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for layer in layers_of(model):
            layer.compile()


def _recompute(body: Any) -> None:
    """Turn activation checkpointing on, by whichever name transformers has for it."""
    options = {"use_reentrant": False}
    if hasattr(body, "activation_checkpointing_enable"):
        body.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def layers_of(model: LCLM) -> list[nn.Module]:
    """Return the transformer layers of both halves, the units of sharding and compilation."""
    return [*body_layers(_base(model.encoder.body)), *body_layers(model.get_decoder())]


def shard(model: LCLM, *, bf16: bool = False) -> LCLM:
    """Shard every parameter over all ranks (FSDP2). Does nothing for a single process.

    Gradients are reduced in fp32; with `bf16` the weights are gathered in bf16.
    """
    if world()[1] == 1:
        return model
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
    )
    options: dict[str, Any] = {"mp_policy": policy}
    for layer in layers_of(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    # The training step calls `score`, not `forward`: it gathers the root's weights too.
    register_fsdp_forward_method(model, "score")
    return model


def _base(body: Any) -> Any:
    return body.get_base_model() if hasattr(body, "peft_config") else body


# -- collectives -----------------------------------------------------------------------------------


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum of a small CPU tensor over all ranks."""
    if world()[1] > 1:
        there = values.to(_collective_device())
        dist.all_reduce(there)
        values = there.cpu()
    return values


def any_over_ranks(flag: bool) -> bool:
    """Whether the flag is set on any rank; all ranks get the same answer."""
    return bool(sum_over_ranks(torch.tensor([float(flag)]))[0] > 0)


def barrier() -> None:
    """Wait until every rank is here."""
    if world()[1] > 1:
        dist.barrier()


@contextlib.contextmanager
def on_main(what: str) -> Iterator[bool]:
    """Run a block's writing on rank 0 alone; a failure there stops every rank with a clear error.

    Yields whether this is rank 0. All ranks leave together.
    """
    failure: BaseException | None = None
    try:
        yield is_main()
    except Exception as error:
        failure = error
    if any_over_ranks(failure is not None):
        if failure is not None:
            raise failure
        raise TrainingError(f"{what} failed on rank 0; its message says why")


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered from all ranks, on the CPU; a collective."""
    gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().cpu()


def _collective_device() -> torch.device:
    is_nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")
