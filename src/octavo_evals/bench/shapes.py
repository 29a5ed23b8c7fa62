"""Build models of given shapes with random weights: no file, no hub and no tokenizer is needed.

Speed and memory depend on sizes alone, so what costs nothing (the base of the rotary angles, the
epsilon of a norm) is left at its default.
"""

import copy
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from octavo.config import Extension, ModelConfig, check_ratio_divides_window
from octavo.engine.local import LocalEngine
from octavo.errors import EvaluationError, OctavoError
from octavo.nn import LCLM, LCLMConfig
from octavo.weights.layout import Checkpoint
from octavo_evals.task import read_asset

HALVES = ("decoder", "encoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Two Hugging Face configs, and how an encoder of the one serves a decoder of the other."""

    name: str
    decoder: Any
    encoder: Any
    settings: ModelConfig
    extension: Extension

    @property
    def vocabulary(self) -> int:
        """Ids below it are words of both halves, and no memory tokens."""
        return int(min(self.decoder.vocab_size - 3, self.encoder.vocab_size))


SHAPES: dict[str, dict[str, Any]] = tomllib.loads(read_asset("shapes.toml"))


def find_shape(name: str) -> Shape:
    """Return a known shape, or that of a checkpoint folder; its weights are not read.

    Raises `EvaluationError` for an unknown name, and for a folder whose halves are not whole
    models or whose layers forget: their caches and costs follow other rules.
    """
    if sizes := SHAPES.get(name):
        decoder, encoder = (
            AutoConfig.for_model(**sizes["common"], **sizes[half]) for half in HALVES
        )
        return Shape(
            name=name,
            decoder=decoder,
            encoder=encoder,
            settings=ModelConfig(**sizes["settings"]),
            extension=Extension(**sizes["extension"]),
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise EvaluationError(
            f"unknown shape {name!r}; give {', '.join(SHAPES)}, or a checkpoint folder"
        )
    decoder, encoder = (_read_config(folder / half) for half in HALVES)
    return Shape(
        name=folder.resolve().name,
        decoder=decoder,
        encoder=encoder,
        settings=ModelConfig.read(folder),
        extension=Extension.read(folder),
    )


def _read_config(half: Path) -> Any:
    """Return the config of one half of a checkpoint."""
    if not (half / "config.json").is_file():
        raise EvaluationError(
            f"{half} has no config.json, so it says no sizes (a folder of LoRA factors has none); "
            "give a checkpoint of whole weights, or --shape smol"
        )
    try:
        config = AutoConfig.from_pretrained(half)
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"cannot read {half}/config.json ({error}); fetch it again"
        ) from error
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise EvaluationError(
            f"{half} has layers of {', '.join(sorted(kinds))}; the bench knows the costs of full "
            "attention only"
        )
    return config


def check_ratios(shape: Shape, ratios: Sequence[int]) -> None:
    """Raise `EvaluationError` for ratios that no model of this shape could have."""
    for ratio in ratios:
        try:
            check_ratio_divides_window(ratio, shape.settings.encoder_window_size)
        except OctavoError as error:
            raise EvaluationError(f"shape {shape.name}: {error}") from error
    own = shape.settings.compression_ratio
    if shape.settings.pooling == "concat" and set(ratios) - {own}:
        raise EvaluationError(
            f"shape {shape.name} pools by concat, whose adapter fits one ratio; give --ratio {own}"
        )


def build(
    shape: Shape,
    *,
    ratios: Sequence[int] = (),
    positions: int,
    device: torch.device | str,
    dtype: torch.dtype,
    attention: str = "sdpa",
    seed: int = 0,
) -> LCLM:
    """Return a model whose weights are drawn on `device` in `dtype`; `meta` draws none.

    There is never a copy in another place or precision. The decoder takes `positions` positions
    and the model serves all `ratios`, whatever the configs say: random weights know no limits.
    """
    device = torch.device(device)
    decoder_config, encoder_config = copy.deepcopy(shape.decoder), copy.deepcopy(shape.encoder)
    known = int(decoder_config.max_position_embeddings)
    decoder_config.max_position_embeddings = max(known, positions)
    served = list(ratios) or [shape.settings.compression_ratio]
    settings = replace(shape.settings, compression_ratio=served[0])
    extension = {**shape.extension.to_dict(), "ratios": served, "base": None}
    before = torch.get_default_dtype()
    cards = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cards), torch.device(device):
            torch.set_default_dtype(dtype)
            torch.manual_seed(seed)
            decoder = AutoModelForCausalLM.from_config(decoder_config, dtype=dtype)
            decoder.tie_weights()  # transformers 5.0 does not where weights are drawn on `meta`
            encoder = AutoModel.from_config(encoder_config, dtype=dtype)
            last = decoder_config.vocab_size
            config = LCLMConfig(
                # Copies: transformers changes the configs nested in another.
                text_config=copy.deepcopy(decoder_config),
                encoder_config=copy.deepcopy(encoder_config),
                model_config=settings.to_dict(),
                extension=extension,
                memory_token_ids=[last - 3, last - 2, last - 1],
            )
            lclm = LCLM(config, encoder=encoder, decoder=decoder)
    finally:
        torch.set_default_dtype(before)
    try:
        lclm.decoder.set_attn_implementation(attention)
        lclm.encoder.body.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise EvaluationError(
            f"attention {attention!r} is not available here ({reason}); try sdpa"
        ) from error
    lclm.eval()
    return lclm


def open_engine(lclm: LCLM, *, prefill: int, encode_batch: int | None) -> LocalEngine:
    """Return the engine that users call, over a model that has no tokenizers.

    The decoder reads at most about `prefill` positions at once, the encoder `encode_batch` tokens.
    """
    lclm.encoder.encode_batch_tokens = encode_batch
    none = SimpleNamespace(eos_token_id=None)
    checkpoint = Checkpoint(
        lclm=lclm, decoder_tokenizer=none, encoder_tokenizer=none, name="random", fingerprint=""
    )
    return LocalEngine(checkpoint, lclm.device, prefill=prefill)
