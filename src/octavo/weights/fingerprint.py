"""Identify the weights and tokenizers that make and read latents.

Files and models in memory are identified alike, by evenly spaced values of every tensor, whatever
its name: layouts of a checkpoint name tensors differently, and write tied ones once.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from octavo.config import Extension, ModelConfig, read_json
from octavo.nn import LCLM

_BLOCK, _NUM_BLOCKS = 256, 64


def fingerprint_of(
    folder: Path, config: ModelConfig, extension: Extension, tokenizers: Iterable[Any]
) -> str:
    """Identify a checkpoint by its files, whatever precision they are loaded in.

    Reads at most 64 kilobytes of each tensor.
    """
    found: list[bytes] = []
    bases: list[object] = []
    for part in (folder, *(folder / name for name in ("decoder", "encoder", "adapter"))):
        for file in sorted(part.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                found += [_sample(tensors.get_tensor(name)) for name in tensors.keys()]
        if (part / "adapter_config.json").is_file():
            bases.append(read_json(part / "adapter_config.json").get("base_model_name_or_path"))
    return _digest(found, config, extension, tokenizers, bases)


def fingerprint_of_weights(lclm: LCLM, tokenizers: Sequence[Any]) -> str:
    """Identify a model as its files would be, written in the precision it has.

    `tokenizers` are the decoder's and the encoder's; that of a pinned base is not written.
    """
    found: list[bytes] = []
    bases: list[object] = []
    modules: tuple[Any, ...] = (lclm.decoder, lclm.encoder.body, lclm.adapter, lclm.residual)
    for module in filter(None, modules):
        state = module.state_dict()
        if hasattr(module, "peft_config"):
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(module, save_embedding_layers=False)
            bases.append(module.peft_config["default"].base_model_name_or_path)
        found += [_sample(tensor) for tensor in state.values()]
    written = tokenizers[:1] if lclm.extension.base else tokenizers
    return _digest(found, lclm.settings, lclm.extension, written, bases)


def _digest(
    tensors: list[bytes],
    config: ModelConfig,
    extension: Extension,
    tokenizers: Iterable[Any],
    bases: list[object],
) -> str:
    layers = extension.encoder_layers if bases else None
    settings = [sorted(config.to_dict().items()), extension.residual, layers, bases]
    digest = hashlib.sha256(repr(settings).encode() + b"".join(sorted(set(tensors))))
    for tokenizer in tokenizers:
        # What comes before is how long texts are padded and cut, which is never done here.
        digest.update(tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')[2].encode())
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    step = max(_BLOCK, len(flat) // _NUM_BLOCKS)
    blocks = [flat[at : at + _BLOCK] for at in range(0, len(flat), step)]
    values = torch.cat(blocks).float().cpu().numpy() if blocks else b""
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + bytes(values)).digest()
