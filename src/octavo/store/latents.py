"""The latents of an entry's parts on disk: as they are, or a byte for each number.

Shapes: K latents, D decoder width.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from octavo.context import CompressedContext
from octavo.errors import ContextError
from octavo.files import write_file
from octavo.store.entry import StoreEntry, part_file

FORMAT = "octavo-context-int8"
_DTYPES = {str(one): one for one in (torch.float32, torch.bfloat16, torch.float16)}
_ABOUT = ("ratio", "fingerprint", "compressor_name", "text_sha256", "is_whole", "compress_seconds")


def save_part(context: CompressedContext, path: Path, precision: str) -> float:
    """Write a context without its text; return the error that the precision brings.

    It is the root mean square of the difference, relative to that of the latents.
    """
    context = replace(context, text=None)
    if precision == "full":
        context.save(path)
        return 0.0
    latents_KD = context.latents.float().cpu()
    scales_K1 = latents_KD.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    bytes_KD = (latents_KD / scales_K1).round().to(torch.int8)
    tensors = {
        "latents": bytes_KD.contiguous(),
        "scales": scales_K1.contiguous(),
        "block_tokens": context.block_tokens.to(torch.int32).contiguous(),
        "offsets": context.offsets.to(torch.int64).contiguous(),
    }
    about = {name: getattr(context, name) for name in _ABOUT}
    about |= {"format": FORMAT, "dtype": str(context.latents.dtype)}
    metadata = {"context": json.dumps(about)}
    write_file(path, lambda place: save_file(tensors, place, metadata=metadata))
    lost_KD = bytes_KD.float() * scales_K1 - latents_KD
    return float(
        lost_KD.square().mean().sqrt() / latents_KD.square().mean().sqrt().clamp_min(1e-12)
    )


def load_part(path: Path, precision: str, digest: str) -> CompressedContext:
    """Read what `save_part` wrote; raises `ContextError` where it does not match its sha256."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}; add the text again") from error
    if found != digest:
        raise ContextError(
            f"{path} does not match its sha256; remove the entry, add the text again"
        )
    if precision == "full":
        return CompressedContext.load(path)
    with safe_open(path, "pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["context"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    latents_KD = tensors["latents"].float() * tensors["scales"]
    return CompressedContext(
        latents=latents_KD.to(_DTYPES[about["dtype"]]),
        block_tokens=tensors["block_tokens"].long(),
        offsets=tensors["offsets"],
        **{name: about[name] for name in _ABOUT},
    )


def load_parts(folder: Path, entry: StoreEntry, text: str | None) -> list[CompressedContext]:
    """Read all parts of an entry, each with its piece of the text."""
    contexts, start = [], 0
    for number in range(entry.parts):
        name = part_file(number)
        context = load_part(folder / name, entry.precision, entry.digests[name])
        context.check_made_by(entry.fingerprint, entry.model)
        if text is not None:
            stop = start + int(context.offsets[-1, 1])
            context = replace(context, text=text[start:stop])
            start = stop
        contexts.append(context)
    return contexts
