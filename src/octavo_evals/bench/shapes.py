"""Build models of given shapes with random weights: no file, no hub and no tokenizer is needed.

Speed and memory depend on sizes alone, so what costs nothing (the base of the rotary angles, the
epsilon of a norm) is left at its default.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, Qwen3Config

from octavo.config import Extension, ModelConfig, check_ratio_divides_window
from octavo.engine.local import LocalEngine
from octavo.errors import EvaluationError, OctavoError
from octavo.nn import LCLM, LCLMConfig
from octavo.weights.layout import Checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Two Hugging Face configs, and how an encoder of the one serves a decoder of the other."""

    name: str
    decoder: Any
    encoder: Any
    settings: ModelConfig
    extension: Extension = field(default_factory=lambda: Extension(rotary="exact"))

    @property
    def vocabulary(self) -> int:
        """Ids below it are words of both halves, and no memory tokens."""
        return int(min(self.decoder.vocab_size - 3, self.encoder.vocab_size))


def _tiny() -> Shape:
    sizes: dict[str, Any] = {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    return Shape(
        name="tiny",
        decoder=Qwen3Config(num_hidden_layers=3, **sizes),
        encoder=Qwen3Config(num_hidden_layers=2, **sizes),
        settings=ModelConfig(compression_ratio=16, encoder_window_size=64),
    )


def _smol() -> Shape:
    """SmolLM2-135M (huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json).

    With the three memory tokens, and its first four layers as the encoder, as octavo ships it.
    """
    sizes: dict[str, Any] = {
        "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "tie_word_embeddings": True,
    }  # fmt: skip
    return Shape(
        name="smol",
        decoder=LlamaConfig(num_hidden_layers=30, vocab_size=49_155, **sizes),
        encoder=LlamaConfig(num_hidden_layers=4, vocab_size=49_152, **sizes),
        settings=ModelConfig(compression_ratio=8),
        extension=Extension(rotary="exact", residual="sum"),
    )


def _paper() -> Shape:
    """Qwen3-Embedding-0.6B and Qwen3-4B-Instruct-2507, the paper's pair.

    Sizes from the config.json of huggingface.co/Qwen/Qwen3-Embedding-0.6B and of
    huggingface.co/Qwen/Qwen3-4B-Instruct-2507. The memory tokens are spare rows of the latter.
    """
    common: dict[str, Any] = {
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    return Shape(
        name="paper-0.6b-4b",
        decoder=Qwen3Config(
            hidden_size=2560, num_hidden_layers=36, num_attention_heads=32,
            intermediate_size=9728, vocab_size=151_936, **common,
        ),
        encoder=Qwen3Config(
            hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
            intermediate_size=3072, vocab_size=151_669, **common,
        ),
        settings=ModelConfig(compression_ratio=16),
    )  # fmt: skip


SHAPES: dict[str, Callable[[], Shape]] = {"smol": _smol, "paper-0.6b-4b": _paper, "tiny": _tiny}


def find_shape(name: str) -> Shape:
    """Return a known shape, or that of a checkpoint folder; its weights are not read.

    Raises `EvaluationError` for an unknown name, and for a folder whose halves are not whole
    models or whose layers forget: their caches and costs follow other rules.
    """
    if name in SHAPES:
        return SHAPES[name]()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise EvaluationError(
            f"unknown shape {name!r}; give {', '.join(SHAPES)}, or a checkpoint folder"
        )
    halves = []
    for half in ("decoder", "encoder"):
        path = folder / half / "config.json"
        if not path.is_file():
            raise EvaluationError(
                f"{name} has no {half}/config.json, so it says no sizes (a folder of LoRA factors "
                "has none); give a checkpoint of whole weights, or --shape smol"
            )
        try:
            config = AutoConfig.from_pretrained(path.parent)
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise EvaluationError(f"cannot read {path} ({error}); fetch it again") from error
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise EvaluationError(
                f"the {half} of {name} has layers of {', '.join(sorted(kinds))}; the bench knows "
                "the costs of full attention only"
            )
        halves.append(config)
    return Shape(
        name=folder.resolve().name,
        decoder=halves[0],
        encoder=halves[1],
        settings=ModelConfig.read(folder),
        extension=Extension.read(folder),
    )


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
    served = tuple(ratios) or (shape.settings.compression_ratio,)
    settings = replace(shape.settings, compression_ratio=served[0])
    extension = {**shape.extension.to_dict(), "ratios": list(served), "base": None}
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
    _set_attention(lclm, attention)
    lclm.eval()
    return lclm


def _set_attention(lclm: LCLM, attention: str) -> None:
    try:
        lclm.decoder.set_attn_implementation(attention)
        lclm.encoder.body.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EvaluationError(
            f"attention {attention!r} is not available here ({reason}); try sdpa"
        ) from error


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
