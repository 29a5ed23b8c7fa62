"""What the stages of one run share: the model's making, its rows, measurements and exports.

A stage starts from a freshly assembled model that takes over what the stage before exported. An
export is made the same way: the trained weights, gathered from all ranks, go into a fresh model in
full precision, and that is written. Exports so depend neither on the number of ranks nor on what a
stage did to its own copy for speed.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.config import ModelConfig
from octavo.data.examples import Example
from octavo.data.prepare import (
    check_manifest,
    locate,
    mixtures_of,
    open_prompts,
    open_stream,
    prepare,
)
from octavo.data.rows import MANIFEST, Rows, read_held_out
from octavo.errors import TrainingError
from octavo.files import remove_leftovers, write_text
from octavo.nn import LCLM
from octavo.progress import OnNote, Progress
from octavo.recipe import STAGES, RunConfig
from octavo.train import parallel
from octavo.train.feed import PreparedRows, RowSource, StreamedRows
from octavo.train.groups import set_trainable
from octavo.train.log import Log
from octavo.train.loop import Interrupted, Stage, autocast
from octavo.train.measure import Baselines, measure
from octavo.train.signals import Stop
from octavo.weights.assembly import add_lora, assemble_parts
from octavo.weights.fingerprint import fingerprint_of_weights
from octavo.weights.layout import Checkpoint, read, resolve, write

COPIES = 3 * 2
"""Weights and two moments, twice: the previous checkpoint goes only when the next one is whole."""


class Run:
    """One run of a recipe in its output folder."""

    def __init__(
        self, config: RunConfig, root: Path, device: torch.device, stop: Stop, note: OnNote
    ) -> None:
        """Make the output folder. `check` and then `open_rows` come next."""
        self.config, self.root, self.device, self.stop, self.note = config, root, device, stop, note
        self.out = root / Path(config.output).expanduser()
        self.rows: dict[str, RowSource] = {}
        self.held_out: dict[str, list[Example]] = {}
        self.texts = ""
        """Identifies the rows."""
        self._closed: dict[str, str] | None = None
        """What the self-check of the halves found, which is made once: it takes 15 s on a CPU."""
        self._make_folder()
        self.log = Log(
            self.out / "log.jsonl", tensorboard=config.tensorboard and parallel.is_main()
        )

    def open_rows(self, on_rows: Progress | None = None) -> None:
        """Open the rows, prepared first where they are missing.

        Raises `Interrupted` when asked to stop; the shards that are whole are kept.
        """
        config, prompts = self.config, open_prompts(self.config, self.root)
        if config.data.stream:
            maker, self.held_out, self.texts = open_stream(config, self.root, prompts)
            self.rows = {name: StreamedRows(maker, name) for name in mixtures_of(config)}
            return
        folder = self.out / "rows"
        if config.data.rows is not None:
            folder = self.root / Path(config.data.rows).expanduser()
        elif parallel.any_over_ranks(not (self.log.path.exists() and (folder / MANIFEST).exists())):
            # A run that has begun keeps its rows: later stages may change, and texts may be gone.
            is_stopped = False
            with parallel.on_main("preparing rows") as is_main:
                try:
                    if is_main:
                        prepare(
                            *(config, self.root, folder, prompts),
                            on_rows=on_rows,
                            is_stopped=lambda: self.stop.is_asked,
                        )
                except KeyboardInterrupt:
                    is_stopped = True
            if parallel.any_over_ranks(is_stopped):
                raise Interrupted("preparing rows")
        rows = {name: Rows(folder, name) for name in mixtures_of(config)}
        self.rows = {n: PreparedRows(some, f"{config.seed}/{n}") for n, some in rows.items()}
        manifest = next(iter(rows.values())).manifest
        check_manifest(manifest, config, prompts)
        self.texts = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
        self.held_out = read_held_out(folder)

    def _make_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot make the folder {self.out} ({error.strerror}); choose another output"
            ) from error

    # -- the model -------------------------------------------------------------------------------

    def assemble(self, weights: Path | None = None) -> Checkpoint:
        """Return the model as the recipe begins it, with the weights of an export if given."""
        torch.manual_seed(self.config.seed)
        made = self._from_checkpoint() if self.config.model.start else self._from_halves()
        if weights is not None:
            finished = read(weights, trainable=made.lclm.extension.base is not None or self._lora)
            own = made.lclm.state_dict()
            made.lclm.load_state_dict(
                {k: v for k, v in finished.lclm.state_dict().items() if k in own}, strict=True
            )
        return made

    @property
    def _lora(self) -> bool:
        return bool(self.config.lora.rank)

    def _from_halves(self) -> Checkpoint:
        section, lora = self.config.model, self.config.lora
        encoder, decoder = (locate(name, self.root) for name in (section.encoder, section.decoder))
        lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
            encoder,
            decoder,
            section.model_config(),
            extension=section.extension(),
            encoder_layers=section.encoder_layers,
            closed=self._closed,
        )
        self._closed = dict(lclm.config.closed)
        if lora.rank:
            add_lora(
                lclm,
                lora.rank,
                lora.alpha,
                lora.encoder_rank,
                encoder=encoder,
                decoder=decoder,
                encoder_layers=section.encoder_layers,
            )
        name = section.name or "run"
        return Checkpoint(lclm, decoder_tokenizer, encoder_tokenizer, name, "")

    def _from_checkpoint(self) -> Checkpoint:
        """Continue from an LCLM; its own settings hold, and the recipe may not contradict them."""
        section = self.config.model
        folder = resolve(locate(section.start or "", self.root))
        found, wanted = ModelConfig.read(folder).to_dict(), section.model_config().to_dict()
        for key, value in found.items():
            if wanted[key] != value:
                raise TrainingError(
                    f"model.{key} is {wanted[key]!r}, but {section.start} has {value!r}; set it so"
                )
        made = read(folder, trainable=True, rotary="exact")
        if self._lora:
            raise TrainingError(
                "lora.rank is for new models; a checkpoint to continue from (model.start) keeps "
                "the factors that it has: drop lora.rank"
            )
        known = {made.lclm.settings.compression_ratio, *made.lclm.extension.ratios}
        if new := sorted(set(self.config.served_ratios()) - known):
            if made.lclm.residual is not None or made.lclm.settings.pooling == "concat":
                raise TrainingError(
                    f"model.ratios has {new[0]}, which {section.start} has no weights for; drop it"
                )
            made.lclm.extension = dataclasses.replace(
                made.lclm.extension, ratios=tuple(self.config.model.ratios)
            )
        return dataclasses.replace(made, name=section.name or made.name)

    # -- checks before the first step ------------------------------------------------------------

    def check(self, todo: list[str]) -> None:
        """Try everything the stages will need, so that what cannot work stops the run here."""
        config, (_, num_ranks) = self.config, parallel.world()
        if config.batch_rows % (config.micro_batch_rows * num_ranks):
            raise TrainingError(
                f"batch_rows {config.batch_rows} is not a multiple of micro_batch_rows "
                f"{config.micro_batch_rows} times {num_ranks} ranks; change one of them"
            )
        lclm = self.assemble().lclm
        self._check_lengths(lclm)
        num_trained = 0
        for name in todo:
            chosen = set_trainable(lclm, config.stages[name].lr)
            trained = sum(p.numel() for group in chosen.values() for p in group.values())
            num_trained = max(num_trained, trained)
        has_factors = any("lora_" in name for name, _ in lclm.named_parameters())
        exported = sum(
            parameter.numel()
            for name, parameter in lclm.named_parameters()
            if not has_factors or "lora_" in name or name.startswith("adapter.")
        )
        self._check_space((len(todo) + bool(config.keep_best)) * exported, num_trained)

    def _check_lengths(self, lclm: LCLM) -> None:
        """Refuse rows and windows beyond the positions of the two models."""
        section = self.config.model
        window = section.encoder_window_size + 2 * section.boundary_overlap
        for whose, longest, key in (
            ("text", self.config.data.row_tokens, "data.row_tokens"),
            ("encoder", window, "model.encoder_window_size"),
        ):
            half = getattr(lclm.config, f"{whose}_config")
            positions = getattr(half, "max_position_embeddings", None)
            if positions is not None and longest > positions:
                name = "decoder" if whose == "text" else whose
                raise TrainingError(
                    f"the {name} has {positions} positions, but would read up to {longest} tokens; "
                    f"lower {key}"
                )

    def _check_space(self, num_exported: int, num_trained: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        keep = (self.config.keep_checkpoints + 1) / 2
        needed = 4 * (num_exported + COPIES * keep * num_trained)  # fp32
        if (free := shutil.disk_usage(self.out).free) < needed:
            raise TrainingError(
                f"the run needs about {needed / 1e9:.1f} GB at {self.out}, but there are only "
                f"{free / 1e9:.1f} GB; make room or choose another output"
            )

    def describe(self) -> None:
        """Write down what this run is."""
        packages = ("octavo", "torch", "transformers", "peft", "safetensors")
        versions = {name: _version(name) for name in packages}
        about = {
            "recipe": self.config.to_dict(),
            "versions": {"python": platform.python_version(), **versions},
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "texts": self.texts,
            "device": str(self.device),
            "ranks": parallel.world()[1],
        }
        write_text(self.out / "config.json", json.dumps(about, indent=2) + "\n")

    def clear_leftovers(self, name: str) -> None:
        """Remove what a run that was killed while it wrote has left half done."""
        for half in (self.out / name).glob(".*"):
            shutil.rmtree(half, ignore_errors=True)
        remove_leftovers(self.out)

    # -- stages ----------------------------------------------------------------------------------

    def stage(self, name: str, before: Path | None) -> Stage:
        """Return a stage ready to run, on the weights of the export before it."""
        config = self.config
        lclm = self.assemble(before).lclm
        set_trainable(lclm, config.stages[name].lr)
        lclm.to(self.device)
        is_bf16 = config.precision == "bf16"
        parallel.prepare(
            lclm,
            attention=self._attention(),
            compile=config.compile,
            checkpointing=config.activation_checkpointing,
            bf16=is_bf16,
        )
        parallel.shard(lclm, bf16=is_bf16)
        mixture = config.stages[name].mixture
        return Stage(
            name,
            lclm,
            self.rows[mixture],
            config,
            self.out / name,
            self.log,
            first_row=_first_row(config, name),
            measure=lambda lclm: self.measure(name, lclm),
            export=lambda stage, folder: self.export(stage, before, folder),
            stop=self.stop,
            # A later stage begins with what was measured at the end of the one before.
            is_measured_first=before is None and config.model.start is not None,
        )

    def _attention(self) -> str:
        if self.config.attention != "auto":
            return self.config.attention
        return "eager" if self.device.type == "cpu" else "sdpa"

    def measure(self, name: str, lclm: LCLM) -> dict[str, Any]:
        """Measure every kind of held-out example at every ratio, in the stage `name`."""
        self.note(name, "measuring")
        baselines: dict[str, Baselines] = {kind: {} for kind in self.held_out}
        with autocast(self.config.precision, self.device):
            return {
                f"{kind}/{ratio}": measure(lclm, examples, ratio=ratio, baselines=baselines[kind])
                for ratio in self.config.served_ratios()
                for kind, examples in self.held_out.items()
            }

    def export(self, stage: Stage, before: Path | None, folder: Path) -> None:
        """Write the model as the stage has it now; a collective."""
        self.note(stage.name, "writing the model")
        trained = {name: parallel.whole(p) for name, p in stage.named.items()}
        with parallel.on_main(f"writing {folder}") as is_main:
            if is_main:
                made = self.assemble(before)
                _fill(made.lclm, trained)
                tokenizers = (made.decoder_tokenizer, made.encoder_tokenizer)
                fingerprint = fingerprint_of_weights(made.lclm, tokenizers)
                folder.parent.mkdir(parents=True, exist_ok=True)
                write(dataclasses.replace(made, fingerprint=fingerprint), folder)


@torch.no_grad()
def _fill(lclm: LCLM, trained: Mapping[str, Tensor]) -> None:
    """Copy trained weights into a model of the same making."""
    own = dict(lclm.named_parameters())
    for name, weight in trained.items():
        own[name].copy_(weight)


def _first_row(config: RunConfig, name: str) -> int:
    """Return where a stage starts in its mixture: after the stages that read it before."""
    mixture = config.stages[name].mixture
    before = [config.stages[s] for s in STAGES[: STAGES.index(name)] if s in config.stages]
    return config.batch_rows * sum(s.steps for s in before if s.mixture == mixture)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"
