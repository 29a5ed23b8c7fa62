"""A training recipe: dataclasses that own every default, filled from TOML and `--set a.b=c`.

A recipe file holds only what differs from the defaults below. `RunConfig.load` refuses unknown
keys with the nearest known one, and values of the wrong type, before any step is taken.
"""

import dataclasses
import difflib
import functools
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.config import AdapterType, Extension, MaskType, ModelConfig, Pooling
from octavo.errors import ConfigError, TrainingError

Group = Literal["adapter", "encoder", "decoder", "memory_rows"]
STAGES = ("adapter", "encoder", "decoder", "sft")
_LEAST = {
    **{"lora.rank": 0, "lora.encoder_rank": 1, "lora.alpha": 1},
    **{"data.max_documents": 1, "data.max_document_chars": 1, "data.max_pairs": 1},
    **{"batch_size": 1, "micro_batch_size": 1, "save_every": 1},
    **{"log_every": 1, "measure_every": 1, "measure_examples": 1},
}
"""The smallest number that means anything, by key."""


@dataclass(kw_only=True, slots=True)
class ModelSection:
    """Which two models become an LCLM, and how."""

    encoder: str = "octavo:smollm2"
    """A local folder, a hub id, or `octavo:smollm2`, the pinned base of the shipped model."""
    decoder: str = "octavo:smollm2"
    encoder_layers: int | None = None
    """Keep only the first layers of the encoder."""
    compression_ratio: int = 16
    ratios: list[int] = field(default_factory=list)
    """Further ratios to train for; each example draws one of all."""
    encoder_window_size: int = 1024
    pooling: Pooling = "mean"
    encoder_mask_type: MaskType = "causal"
    boundary_overlap: int = 0
    adapter_type: AdapterType = "mlp"
    num_adapter_layers: int = 1
    residual: Literal["none", "sum"] = "none"
    name: str | None = None

    def model_config(self) -> ModelConfig:
        """Return the published settings of this section."""
        names = {f.name for f in dataclasses.fields(ModelConfig)}
        return ModelConfig(**{n: getattr(self, n) for n in names})

    def extension(self) -> Extension:
        """Return our own settings of this section."""
        return Extension(
            ratios=tuple(self.ratios), residual=self.residual, rotary="exact", name=self.name
        )


@dataclass(kw_only=True, slots=True)
class LoraSection:
    """Low-rank training of encoder and decoder by peft; rank 0 trains them whole."""

    rank: int = 0
    alpha: int = 32
    encoder_rank: int | None = None
    """None: the same as `rank`."""


@dataclass(kw_only=True, slots=True)
class DataSection:
    """Where text comes from and how examples are cut from it."""

    root: str = "."
    """Where `train` and `held_out` start; relative to the folder the run is started from."""
    train: list[str] = field(default_factory=list)
    """Files or globs: `.txt`, `.jsonl`, `.jsonl.zst`, `.parquet`."""
    held_out: list[str] = field(default_factory=list)
    """Texts never trained on. Empty: every fiftieth training document is held out."""
    max_documents: int = 2000
    """Documents kept of each file, spread evenly over it."""
    max_document_chars: int = 200_000
    """Longer records are cut off here; longer `.txt` files become several documents."""
    weights: dict[str, float] = field(
        default_factory=lambda: {"reconstruction": 0.5, "interleaved": 0.5, "qa": 0.0}
    )
    """How often each kind of example is drawn."""
    span_tokens: list[int] = field(default_factory=lambda: [32, 256])
    """Shortest and longest span of interleaved examples."""
    copy_tokens: list[int] = field(default_factory=lambda: [16, 128])
    """Shortest and longest text to reconstruct."""
    target_tokens: list[int] = field(default_factory=lambda: [32, 128])
    """Shortest and longest scored text after a span, for interleaved examples."""
    max_pairs: int = 2
    """Most span-text pairs in an interleaved example (paper App. C.4 has 1 to 8 by length)."""


@dataclass(kw_only=True, slots=True)
class StageSection:
    """One stage of training. Peak learning rates are per group; a group without one is frozen."""

    steps: int = 0
    lr: dict[str, float] = field(default_factory=dict)
    min_lr_ratio: float = 0.05
    warmup_steps: int = 0
    weight_decay: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] | None = None
    """Overrides `data.weights`."""

    def check(self, where: str) -> None:
        """Refuse what cannot train, naming the key."""
        groups = typing.get_args(Group)
        for group in [*self.lr, *self.weight_decay]:
            if group not in groups:
                raise TrainingError(
                    f"{where} names the group {group!r}{_did_you_mean(group, groups)}"
                )
        if self.steps and not self.lr:
            raise TrainingError(f"{where} has steps but no lr: nothing would be trained")
        for group, rate in self.lr.items():
            if not 0 <= rate < float("inf"):
                raise TrainingError(f"{where}.lr.{group} is {rate}, expected at least 0")
        if unused := sorted(self.weight_decay.keys() - self.lr.keys()):
            raise TrainingError(
                f"{where}.weight_decay names {unused[0]!r}, which has no lr; drop it or add the lr"
            )
        if (
            "memory_rows" in self.weight_decay
        ):  # it would move the rows that are to stay as they are
            raise TrainingError(
                f"{where}.weight_decay names memory_rows; these never decay: drop it"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise TrainingError(f"{where}.min_lr_ratio is {self.min_lr_ratio}, expected 0 to 1")
        if self.steps < 0 or self.warmup_steps < 0:
            raise TrainingError(f"{where} has less than no steps or warmup_steps; give 0 or more")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything a run depends on; written next to its output, resolved."""

    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    stages: dict[str, StageSection] = field(default_factory=dict)
    output: str = "runs/out"
    seed: int = 0
    batch_size: int = 16
    """Examples per optimizer step."""
    micro_batch_size: int = 16
    """Examples per forward pass."""
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`bf16` autocast, or plain fp32. `auto`: bf16 where the hardware has it."""
    save_every: int = 100
    log_every: int = 1
    measure_every: int = 100
    measure_examples: int = 32
    device: str = "auto"

    @classmethod
    def load(cls, path: Path, overrides: typing.Sequence[str] = ()) -> "RunConfig":
        """Read a recipe and apply `section.field=value` overrides; values are TOML."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise TrainingError(f"no recipe at {path}; give a .toml file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise TrainingError(f"{path} is not a readable TOML recipe: {error}") from error
        for override in overrides:
            _apply_override(values, override)
        config: RunConfig = _build(cls, values, "")
        config.check()
        return config

    def check(self) -> None:
        """Refuse what cannot run, before any step is taken."""
        self.model.model_config()
        self.model.extension()
        for ratio in self.model.ratios:
            if self.model.encoder_window_size % ratio:
                raise ConfigError(
                    f"model.ratios holds {ratio}, which does not divide encoder_window_size "
                    f"{self.model.encoder_window_size}; drop it or change the window"
                )
        if self.model.pooling == "concat" and self.model.ratios:
            raise ConfigError("pooling 'concat' fixes the ratio; leave model.ratios empty")
        if not self.stages or not any(stage.steps for stage in self.stages.values()):
            raise TrainingError(
                "the recipe trains no step; add [stages.NAME] with steps and lr, NAME being one of "
                + ", ".join(STAGES)
            )
        for name, stage in self.stages.items():
            if name not in STAGES:
                raise TrainingError(f"unknown stage {name!r}{_did_you_mean(name, STAGES)}")
            stage.check(f"stages.{name}")
        if not self.data.train:
            raise TrainingError("data.train is empty; name at least one text file")
        self._check_numbers()
        data = self.data
        for lengths in (data.span_tokens, data.copy_tokens, data.target_tokens):
            if len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]:
                raise TrainingError(f"a length range is {lengths}, expected [shortest, longest]")
        if self.batch_size % self.micro_batch_size:
            raise TrainingError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )

    def _check_numbers(self) -> None:
        """Refuse numbers too small to mean anything, naming the key."""
        for where, least in _LEAST.items():
            value = functools.reduce(getattr, where.split("."), self)
            if isinstance(value, int | float) and not value >= least:
                raise TrainingError(f"{where} is {value}, expected at least {least}")
        if not self.max_grad_norm > 0:
            raise TrainingError(f"max_grad_norm is {self.max_grad_norm}, expected more than 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the whole configuration, defaults included."""
        return dataclasses.asdict(self)


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise TrainingError(f"--set {override!r} is not section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, last = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise TrainingError(f"--set {override!r}: {section!r} is a value, not a section")
    values[last] = value


def _build(kind: Any, values: Any, where: str) -> Any:
    """Turn a TOML value into `kind`, naming the key that does not fit."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(values, dict):
            raise TrainingError(f"{where} is {values!r}, expected a section")
        hints = typing.get_type_hints(kind)
        for name in values:
            if name not in hints:
                raise TrainingError(
                    f"unknown key {f'{where}.{name}'.lstrip('.')!r}{_did_you_mean(name, hints)}"
                )
        built = {n: _build(hints[n], v, f"{where}.{n}".lstrip(".")) for n, v in values.items()}
        return kind(**built)  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _build(next(a for a in arguments if a is not type(None)), values, where)
    if origin is Literal:
        if values not in arguments:
            raise TrainingError(f"{where} is {values!r}, expected one of {', '.join(arguments)}")
        return values
    if origin is list:  # one value may stand for a list of one: --set data.train=book.txt
        values = values if isinstance(values, list) else [values]
        return [_build(arguments[0], value, where) for value in values]
    if origin is dict and isinstance(values, dict):
        return {name: _build(arguments[1], v, f"{where}.{name}") for name, v in values.items()}
    if kind is float and isinstance(values, int) and not isinstance(values, bool):
        return float(values)
    wanted = origin or kind
    if not isinstance(values, wanted) or (isinstance(values, bool) and wanted is not bool):
        raise TrainingError(f"{where} is {values!r}, expected {wanted.__name__}")
    return values


def _did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
