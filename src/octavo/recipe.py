"""A training recipe: dataclasses that own every default, filled from TOML and `--set a.b=c`.

A recipe file holds only what differs from the defaults below. `RunConfig.load` refuses unknown
keys with the nearest known one, and values of the wrong type, before any step is taken.
"""

import dataclasses
import functools
import math
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.config import AdapterType, Extension, MaskType, ModelConfig, Pooling
from octavo.errors import ConfigError, TrainingError
from octavo.sections import apply_override, build, did_you_mean

Group = Literal["adapter", "encoder", "decoder", "memory_rows"]
STAGES = ("adapter", "encoder", "decoder", "sft")
KINDS = (
    *("reconstruction", "interleaved", "pairs", "chat", "qa", "needle", "hops", "quotes"),
    *("everyday", "expand"),
)
"""Every kind of example, each made by the builder of its name in `data/builders`."""
_LEAST = {
    **{"lora.rank": 0, "lora.encoder_rank": 1, "lora.alpha": 1},
    **{"data.max_documents": 1, "data.max_document_chars": 1, "data.rows_per_shard": 1},
    **{"data.row_tokens": 16, "data.held_out_examples": 1, "batch_rows": 1, "micro_batch_rows": 1},
    **{"save_every": 1, "keep_checkpoints": 1, "log_every": 1, "measure_every": 0},
    **{"data.workers": 0},
}
"""The smallest number that means anything, by key."""


@dataclass(kw_only=True, slots=True)
class ModelSection:
    """Which two models become an LCLM, and how."""

    start: str | None = None
    """An LCLM checkpoint to continue from, a folder or hub id, instead of encoder and decoder."""
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
class SourceSection:
    """One source of texts, where `data.train` alone would say too little."""

    files: list[str] = field(default_factory=list)
    """Files or globs below `data.root`, or `hf:NAME[:CONFIG]:SPLIT`, a streamed hub dataset."""
    weight: float | None = None
    """How often a document is drawn from here. None: as its number of documents says."""
    max_documents: int | None = None
    """None: the `max_documents` of all sources."""


@dataclass(kw_only=True, slots=True)
class MixtureSection:
    """What a stage's rows are made of. Lengths are in tokens, each drawn log-uniformly."""

    weights: dict[str, float] = field(
        default_factory=lambda: {"reconstruction": 0.5, "interleaved": 0.5}
    )
    """How often each kind of example is drawn."""
    caps: dict[str, int] = field(default_factory=dict)
    """At most so many examples of a kind, however many rows are wanted."""
    ratios: dict[str, float] = field(default_factory=dict)
    """How often a row has each ratio, as `{ "4" = 2, "8" = 1 }`. Empty: all the model's, alike."""
    copy_tokens: list[int] = field(default_factory=lambda: [16, 128])
    """Texts to reconstruct."""
    document_tokens: list[int] = field(default_factory=lambda: [256, 1024])
    """Documents to interleave; App. C.4 decides how they are cut."""
    min_segment_tokens: int = 128
    """Shortest piece of an interleaved document (paper App. C.4: 128)."""
    context_tokens: list[int] = field(default_factory=lambda: [64, 1024])
    """Spans of all other examples; longer contexts are cut or left out."""
    max_questions: int = 4
    """Questions asked of one context, in turns of one chat."""
    raw: float = 0.0
    """How often a context that is asked about stands there as plain text: answering well from
    latents begins with answering well."""


@dataclass(kw_only=True, slots=True)
class DataSection:
    """Where text comes from, and the rows that are packed from it."""

    root: str = "."
    """Where files start; relative to the folder the run is started from."""
    train: list[str] = field(default_factory=list)
    """Files or globs: `.txt`, `.jsonl`, `.jsonl.zst`, `.parquet`; one source without a section.
    `octavo:blue-carbuncle` is a story in the package."""
    sources: dict[str, SourceSection] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    """Texts never trained on. Empty: every fiftieth training document is held out."""
    max_documents: int = 2000
    """Documents kept of each file, spread evenly over it."""
    max_document_chars: int = 200_000
    """Longer records are cut off here; longer `.txt` files become several documents."""
    mixtures: dict[str, MixtureSection] = field(default_factory=dict)
    """By name. A stage without a `mixture` takes `main`, which has the defaults if not given."""
    row_tokens: int = 1024
    """Decoder positions of a row, latents included, at the ratio it is packed for."""
    rows_per_shard: int = 256
    held_out_examples: int = 32
    """Held-out examples of each measured kind."""
    rows: str | None = None
    """A folder of prepared rows. None: a run prepares its own, in its output."""
    stream: bool = False
    """Make each step's rows while training, and keep none: for machines whose hours are few."""
    workers: int = 0
    """Processes that bring the steps' rows. 0: the trainer does, between its steps."""


@dataclass(kw_only=True, slots=True)
class StageSection:
    """One stage of training. Peak learning rates are per group; a group without one is frozen."""

    steps: int = 0
    lr: dict[str, float] = field(default_factory=dict)
    min_lr_ratio: float = 0.05
    hold: float = 0.0
    """The part of the stage after which rates begin to fall. 0.8 beat 0 in the same minutes
    (docs/log.md, 2026-12-01), and a run that holds can be prolonged."""
    warmup_steps: int = 0
    weight_decay: dict[str, float] = field(default_factory=dict)
    mixture: str = "main"
    """Which of `data.mixtures` it reads."""
    seconds: float | None = None
    """When the stage ends at the latest; its learning rates then fall with the time. Two such runs
    are alike, not the same."""
    betas: dict[str, list[float]] = field(default_factory=dict)
    """AdamW's two betas by group; 0.9 and 0.95 where not given (paper §4.1)."""

    def check(self, where: str) -> None:
        """Refuse what cannot train, naming the key."""
        groups = typing.get_args(Group)
        for group in [*self.lr, *self.weight_decay, *self.betas]:
            if group not in groups:
                raise TrainingError(
                    f"{where} names the group {group!r}{did_you_mean(group, groups)}"
                )
        if self.steps and not self.lr:
            raise TrainingError(f"{where} has steps but no lr: nothing would be trained")
        for group, rate in self.lr.items():
            _expect(0 <= rate < math.inf, f"{where}.lr.{group}", rate, "at least 0")
        if unused := sorted(self.weight_decay.keys() - self.lr.keys()):
            raise TrainingError(
                f"{where}.weight_decay names {unused[0]!r}, which has no lr; drop it or add the lr"
            )
        if "memory_rows" in self.weight_decay:  # decay would move all other rows too
            raise TrainingError(
                f"{where}.weight_decay names memory_rows; these never decay: drop it"
            )
        for group, pair in self.betas.items():
            is_right = len(pair) == 2 and all(0 <= beta < 1 for beta in pair)
            _expect(is_right, f"{where}.betas.{group}", pair, "two in [0, 1)")
        if self.seconds is not None:
            _expect(self.seconds > 0, f"{where}.seconds", self.seconds, "more than 0")
        ratio, fewest = self.min_lr_ratio, min(self.steps, self.warmup_steps)
        _expect(0 <= ratio <= 1, f"{where}.min_lr_ratio", ratio, "0 to 1")
        _expect(0 <= self.hold < 1, f"{where}.hold", self.hold, "0 to less than 1")
        _expect(fewest >= 0, f"the fewer of {where}.steps and warmup_steps", fewest, "0 or more")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything a run depends on; written next to its output, resolved."""

    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    stages: dict[str, StageSection] = field(default_factory=dict)
    output: str = "runs/out"
    seed: int = 0
    batch_rows: int = 16
    """Rows per optimizer step, over all ranks."""
    micro_batch_rows: int = 16
    """Rows per forward pass on one rank."""
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`bf16` autocast, or plain fp32. `auto`: bf16 where the hardware has it."""
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    """`auto`: eager on a CPU, whose fused kernel has a slow gradient (docs/log.md), else sdpa."""
    compile: bool = False
    """Compile every layer with torch.compile: minutes once, then faster steps."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass: slower, and memory hardly grows with depth."""
    save_every: int = 100
    keep_checkpoints: int = 1
    """The newest so many of a stage are kept."""
    log_every: int = 1
    measure_every: int = 100
    """0: never."""
    keep_best: bool = True
    """Export the model whenever the held-out loss is the lowest yet, to `STAGE/best`."""
    tensorboard: bool = False
    """Also write TensorBoard files; needs `octavo[tensorboard]`."""
    peak_tflops: float | None = None
    """What the device could do, for the MFU of the log. None: known for some GPUs."""
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
            apply_override(values, override)
        config: RunConfig = build(cls, values, "")
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
                raise TrainingError(f"unknown stage {name!r}{did_you_mean(name, STAGES)}")
            stage.check(f"stages.{name}")
        self._check_data()
        self._check_numbers()
        if self.batch_rows % self.micro_batch_rows:
            raise TrainingError(
                f"batch_rows {self.batch_rows} is not a multiple of micro_batch_rows "
                f"{self.micro_batch_rows}"
            )

    def _check_data(self) -> None:
        """Refuse sources and mixtures that cannot work."""
        data = self.data
        if data.stream and data.rows is not None:
            raise TrainingError("data.stream makes rows and data.rows names some; drop one of them")
        if not data.train and not data.sources and data.rows is None:
            raise TrainingError("data.train is empty; name at least one text file")
        for name, source in data.sources.items():
            if not source.files:
                raise TrainingError(f"data.sources.{name} has no files; name at least one")
            weight = source.weight or 0
            _expect(0 <= weight < math.inf, f"data.sources.{name}.weight", weight, "at least 0")
        for name in sorted({s.mixture for s in self.stages.values() if s.steps}):
            if name != "main" and name not in data.mixtures:
                known = ["main", *data.mixtures]
                raise TrainingError(f"no mixture {name!r} in data{did_you_mean(name, known)}")
        for name, mixture in data.mixtures.items():
            self._check_mixture(f"data.mixtures.{name}", mixture)

    def _check_mixture(self, where: str, mixture: MixtureSection) -> None:
        for kind in [*mixture.weights, *mixture.caps]:
            if kind not in KINDS:
                raise TrainingError(f"{where} names the kind {kind!r}{did_you_mean(kind, KINDS)}")
        for kind, weight in mixture.weights.items():
            _expect(0 <= weight < math.inf, f"{where}.weights.{kind}", weight, "at least 0")
        if not any(mixture.weights.values()):
            raise TrainingError(f"{where}.weights are all zero; give one kind a positive weight")
        for kind, cap in mixture.caps.items():
            _expect(cap >= 0, f"{where}.caps.{kind}", cap, "0 or more")
        for name in ("copy_tokens", "document_tokens", "context_tokens"):
            lengths = getattr(mixture, name)
            is_right = len(lengths) == 2 and 1 <= lengths[0] <= lengths[1]
            _expect(is_right, f"{where}.{name}", lengths, "[shortest, longest]")
        for name in ("min_segment_tokens", "max_questions"):
            value = getattr(mixture, name)
            _expect(value >= 1, f"{where}.{name}", value, "at least 1")
        for ratio, weight in mixture.ratios.items():
            if ratio not in map(str, self.served_ratios()) or not weight >= 0:
                raise TrainingError(
                    f"{where}.ratios has {ratio} = {weight}; expected a weight for one of the "
                    f"model's ratios, {', '.join(map(str, self.served_ratios()))}"
                )
        _expect(0 <= mixture.raw <= 1, f"{where}.raw", mixture.raw, "0 to 1")
        if mixture.ratios and not any(mixture.ratios.values()):
            raise TrainingError(f"{where}.ratios are all zero; give one a positive weight")

    def served_ratios(self) -> list[int]:
        """Return every ratio the model is trained for, the default among them."""
        return sorted({self.model.compression_ratio, *self.model.ratios})

    def mixture(self, name: str) -> MixtureSection:
        """Return a mixture by name; `main` exists without being written down."""
        return self.data.mixtures.get(name) or MixtureSection()

    def sources(self) -> dict[str, SourceSection]:
        """Return every source by name; `data.train` is one called `train`."""
        short = {"train": SourceSection(files=self.data.train)} if self.data.train else {}
        return {**short, **self.data.sources}

    def num_rows(self, mixture: str) -> int:
        """Return how many rows the stages that read a mixture need."""
        steps = sum(stage.steps for stage in self.stages.values() if stage.mixture == mixture)
        return self.batch_rows * steps

    def _check_numbers(self) -> None:
        """Refuse numbers too small to mean anything, naming the key."""
        for where, least in _LEAST.items():
            value: Any = functools.reduce(getattr, where.split("."), self)
            is_right = value is None or value >= least
            _expect(is_right, where, value, f"at least {least}")
        _expect(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "more than 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the whole configuration, defaults included."""
        return dataclasses.asdict(self)


def _expect(is_right: bool, where: str, value: object, expected: str) -> None:
    if not is_right:
        raise TrainingError(f"{where} is {value}, expected {expected}")
