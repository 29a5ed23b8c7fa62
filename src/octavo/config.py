"""The settings of a Latent Context Language Model, and the arithmetic of its latents.

`ModelConfig` is the published `model_config.json`, key for key. What the published format has no
place for (several ratios in one checkpoint, the order-preserving sum) is an `Extension`, kept in a
file of our own, `octavo.json`, that other readers ignore. Standard library only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

from octavo.errors import CheckpointError, ConfigError, RatioError

Pooling = Literal["mean", "concat", "eos"]
MaskType = Literal["causal", "bidirectional"]
AdapterType = Literal["mlp", "attn_mlp", "mlp_attn"]
Rotary = Literal["exact", "bf16_encoder", "bf16"]

MODEL_CONFIG_FILE = "model_config.json"
EXTENSION_FILE = "octavo.json"
MAX_JSON_BYTES = 1 << 26
"""The largest files of this kind, indexes of weights, are some megabytes."""

MEMORY_START = "<|memory_start|>"
MEMORY_END = "<|memory_end|>"
MEMORY = "<|memory|>"
MEMORY_TOKENS = (MEMORY_START, MEMORY_END, MEMORY)
"""In the order in which the published tokenizers hold them (wire-format: end before slot)."""

# Names that the authors' earlier checkpoints use for the same settings.
_LEGACY_KEYS = {
    "chunk_size": "compression_ratio",
    "batch_summary_tokens": "encoder_window_size",
    "pooling_token": "pooling",
    "embed_mask_type": "encoder_mask_type",
    "overlap_tokens": "boundary_overlap",
}
_LEGACY_POOLINGS = {"summary_mean": "mean", "summary_concat": "concat", "summary": "eos"}
_LEGACY_ORDERS = {"attention_mlp": "attn_mlp", "mlp_attention": "mlp_attn"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The fields of the published `model_config.json`, key for key."""

    compression_ratio: int
    """Source tokens folded into one latent."""

    encoder_window_size: int = 1024
    """Source tokens that share one encoder pass; a multiple of the ratio."""

    pooling: Pooling = "mean"
    """How a block becomes one vector: its mean, its concatenation, or a marker token's state."""

    encoder_mask_type: MaskType = "causal"
    """Whether a source token sees only what came before it in its window."""

    boundary_overlap: int = 0
    """Tokens of the neighbouring windows that a window may look at but does not pool."""

    adapter_type: AdapterType = "mlp"
    """Whether latents attend to each other before or after the MLP that lifts them."""

    num_adapter_layers: int = 1
    """Attention layers of the adapter; unused by `mlp`."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the key."""
        _check_whole_number("compression_ratio", self.compression_ratio, least=1)
        _check_whole_number("encoder_window_size", self.encoder_window_size, least=1, most=1 << 22)
        _check_whole_number("boundary_overlap", self.boundary_overlap, least=0)
        _check_whole_number("num_adapter_layers", self.num_adapter_layers, least=1, most=1 << 8)
        _check_choice("pooling", self.pooling, get_args(Pooling))
        _check_choice("encoder_mask_type", self.encoder_mask_type, get_args(MaskType))
        _check_choice("adapter_type", self.adapter_type, get_args(AdapterType))
        check_ratio_divides_window(self.compression_ratio, self.encoder_window_size)
        if self.boundary_overlap > self.encoder_window_size:
            raise ConfigError(
                f"boundary_overlap {self.boundary_overlap} is larger than encoder_window_size "
                f"{self.encoder_window_size}; lower the overlap"
            )
        if self.pooling == "concat" and self.adapter_type == "attn_mlp":
            raise ConfigError(
                "adapter_type 'attn_mlp' attends in the encoder's width, but pooling 'concat' "
                "makes wider vectors; choose pooling 'mean' or adapter_type 'mlp_attn'"
            )

    def num_latents(self, num_tokens: int, ratio: int | None = None) -> int:
        """Return how many latents a span of `num_tokens` becomes: the ceiling of tokens / ratio."""
        return -(-num_tokens // (ratio or self.compression_ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return exactly the published keys: `num_adapter_layers` only beside attention."""
        values = asdict(self)
        if self.adapter_type == "mlp":
            del values["num_adapter_layers"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Read published or legacy keys; keys that nobody documents are ignored.

        Raises `ConfigError` when a required key is missing or a value is impossible.
        """
        values = _modernise(values)
        required = [field.name for field in fields(cls) if field.name != "num_adapter_layers"]
        if missing := [name for name in required if name not in values]:
            raise ConfigError(f"{MODEL_CONFIG_FILE} lacks {', '.join(missing)}; add them")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def read(cls, folder: Path) -> "ModelConfig":
        """Read `model_config.json` of a checkpoint folder."""
        return cls.from_dict(read_json(folder / MODEL_CONFIG_FILE))


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """What octavo can do beyond the published format; absent from published checkpoints."""

    ratios: tuple[int, ...] = ()
    """Further ratios the weights were trained for. Empty: only `compression_ratio`."""

    residual: Literal["none", "sum"] = "none"
    """`sum` adds each block's own decoder embeddings, turned by position, to its latent."""

    rotary: Rotary | None = None
    """The rotary precision the weights were trained with. None: decided by dtype, as published."""

    base: str | None = None
    """The pinned base model that LoRA parts build on."""

    encoder_layers: int | None = None
    """How many first layers of the base make the encoder; None: all of an encoder of its own."""

    name: str | None = None
    """A short name to show."""

    limits: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What was measured to go wrong at a ratio, in a few words after the model's name."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the key."""
        for ratio in self.ratios:
            _check_whole_number("ratios", ratio, least=1)
        if self.encoder_layers is not None:
            _check_whole_number("encoder_layers", self.encoder_layers, least=1)
        is_text = isinstance(self.limits, Mapping) and all(
            isinstance(words, str) for pair in self.limits.items() for words in pair
        )
        if not is_text:
            raise ConfigError(f"limits is {self.limits!r}, expected words by ratio")
        _check_choice("residual", self.residual, ("none", "sum"))
        if self.rotary is not None:
            _check_choice("rotary", self.rotary, get_args(Rotary))

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        default = Extension()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(default, name)}

    @classmethod
    def read(cls, folder: Path) -> "Extension":
        """Read `octavo.json`, or return the defaults where there is none."""
        if not (folder / EXTENSION_FILE).is_file():
            return cls()
        values = read_json(folder / EXTENSION_FILE)
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known - {"format_version"}):
            raise ConfigError(
                f"{EXTENSION_FILE} has the unknown key {unknown[0]!r}; it was written by a newer "
                "octavo: upgrade"
            )
        return cls.from_dict({name: value for name, value in values.items() if name in known})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Extension":
        """Return what `to_dict` gave, also after JSON has made lists of tuples."""
        return cls(**{**values, "ratios": tuple(values.get("ratios", ()))})


def resolve_ratio(config: ModelConfig, extension: Extension, ratio: int | None) -> int:
    """Return the ratio to use, refusing one that the weights were not trained for."""
    if ratio is None:
        return config.compression_ratio
    served = sorted({config.compression_ratio, *extension.ratios})
    if isinstance(ratio, bool) or not isinstance(ratio, Integral) or ratio not in served:
        raise RatioError(
            f"ratio {ratio!r} is not served by this model, which was trained for "
            f"{', '.join(map(str, served))}; choose one of these"
        )
    return int(ratio)


def check_ratio_divides_window(ratio: int, window: int) -> None:
    """Blocks must not straddle windows, or latent counts would not add up."""
    if window % ratio:
        raise RatioError(
            f"compression ratio {ratio} does not divide encoder_window_size {window}; "
            f"choose a window that is a multiple of {ratio}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, naming the file in errors."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; is this a whole checkpoint?")
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise OSError(f"{size:,} bytes are too many")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def _modernise(values: dict[str, Any]) -> dict[str, Any]:
    """Translate legacy keys and values into the published ones."""
    values = {_LEGACY_KEYS.get(name, name): value for name, value in values.items()}
    values["pooling"] = _LEGACY_POOLINGS.get(str(values.get("pooling")), values.get("pooling"))
    if "adapter_type" not in values and "use_adapter_attention" in values:
        order = str(values.get("adapter_order"))
        attends = bool(values["use_adapter_attention"])
        values["adapter_type"] = _LEGACY_ORDERS.get(order, order) if attends else "mlp"
    # The published format reads every mask but "causal" as bidirectional.
    if isinstance(mask := values.get("encoder_mask_type"), str) and mask != "causal":
        values["encoder_mask_type"] = "bidirectional"
    return {name: value for name, value in values.items() if value is not None}


def _check_whole_number(name: str, value: object, *, least: int, most: int = 1 << 62) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        kind = RatioError if "ratio" in name else ConfigError
        bound = "" if most == 1 << 62 else f" and at most {most:,}"
        raise kind(f"{name} is {value!r}, expected a whole number of at least {least}{bound}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
