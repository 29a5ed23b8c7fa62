"""Open a model: one that exists, or a new one made of any two Hugging Face models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from octavo.config import Extension, ModelConfig, Rotary
from octavo.engine.fake import FakeEngine
from octavo.engine.local import LocalEngine
from octavo.errors import ConfigError
from octavo.machine import find_device, parse_dtype
from octavo.model import Model
from octavo.nn.body import share_rows
from octavo.progress import Progress
from octavo.prompt import PromptEncoder
from octavo.weights.assembly import assemble_parts
from octavo.weights.fingerprint import fingerprint_of_weights
from octavo.weights.layout import (
    Checkpoint,
    read,
    read_tokenizers,
    resolve,
)


def load(
    name_or_path: str | Path | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    engine: Literal["local", "fake"] = "local",
    revision: str | None = None,
    *,
    rotary: Rotary | None = None,
    base: str | Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model: a folder, a hub id, or nothing for the one that octavo ships.

    `device` is by default what is there: cuda, mps, cpu; `dtype` bf16 on cuda and fp32 elsewhere.
    The shipped model fetches its base on first use (93 MB), or takes it from `base`. Engine `fake`
    needs no weights. Raises `CheckpointError` for anything missing or inconsistent.
    """
    if engine not in ("local", "fake"):
        raise ConfigError(f"unknown engine {engine!r}, expected local or fake")
    folder = resolve(name_or_path, revision)
    if engine == "fake":
        return _fake(folder, base, progress)
    chosen = find_device(device)
    if dtype is None:
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    checkpoint = read(
        folder,
        dtype=dtype,
        rotary=rotary,
        base=Path(base) if base is not None else None,
        progress=progress,
    )
    model = Model(LocalEngine(checkpoint, chosen), checkpoint.prompts(), checkpoint)
    share_rows(checkpoint.lclm.encoder.body, checkpoint.lclm.decoder)
    return model


def _fake(folder: Path, base: str | Path | None, progress: Any) -> Model:
    config, extension = ModelConfig.read(folder), Extension.read(folder)
    decoder, encoder = read_tokenizers(folder, extension, Path(base) if base else None, progress)
    engine = FakeEngine(
        config,
        extension,
        extension.name or folder.name,
        stop_ids=(decoder.eos_token_id,),
        control_ids=frozenset(decoder.added_tokens_decoder),
    )
    return Model(engine, PromptEncoder(decoder, encoder, config))


def assemble(
    encoder: Any, decoder: Any, *, compression_ratio: int = 16, ratios: Sequence[int] = (),
    encoder_layers: int | None = None, residual: Literal["none", "sum"] = "none",
    encoder_tokenizer: Any = None, decoder_tokenizer: Any = None, device: str | None = None,
    dtype: str | torch.dtype = "float32", name: str = "assembled", **settings: Any,
) -> Model:  # fmt: skip
    """Make a new, untrained model out of any two Hugging Face models.

    `encoder` and `decoder` are folders, hub ids or model objects (with their tokenizers);
    `encoder_layers` keeps the encoder's first layers. `settings` are further keys of
    `model_config.json`. The adapter is fresh: train it, or the latents mean nothing.
    """
    lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
        encoder,
        decoder,
        ModelConfig(compression_ratio=compression_ratio, **settings),
        extension=Extension(ratios=tuple(ratios), residual=residual, rotary="exact", name=name),
        encoder_layers=encoder_layers,
        encoder_tokenizer=encoder_tokenizer,
        decoder_tokenizer=decoder_tokenizer,
        dtype=parse_dtype(dtype),
    )
    fingerprint = fingerprint_of_weights(lclm, (decoder_tokenizer, encoder_tokenizer))
    checkpoint = Checkpoint(lclm, decoder_tokenizer, encoder_tokenizer, name, fingerprint)
    return Model(LocalEngine(checkpoint, find_device(device)), checkpoint.prompts(), checkpoint)
