"""Identify the weights that make and read latents, whatever precision they are loaded in."""

import hashlib
from pathlib import Path

from octavo.config import Extension, ModelConfig
from octavo.nn import LCLM


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
