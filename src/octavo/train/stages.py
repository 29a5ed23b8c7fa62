"""Run a recipe: adapter, encoder, decoder, sft - each stage exported as a whole checkpoint.

OUT/config.json            the resolved recipe and the versions it ran with
OUT/log.jsonl              one line a step, plus measurements
OUT/STAGE/checkpoint-*     to resume from
OUT/STAGE/export           a finished stage in the published layout; a finished run's last one
                           is the model
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from octavo.assembly import add_lora, assemble_parts
from octavo.checkpoint import Checkpoint, fingerprint_of_weights, read, write
from octavo.config import read_json
from octavo.errors import TrainingError
from octavo.files import write_text
from octavo.prompt import PromptEncoder
from octavo.train.config import STAGES, RunConfig
from octavo.train.data import (
    Document,
    Example,
    Examples,
    read_documents,
    served_ratios,
    split_held_out,
)
from octavo.train.log import Log
from octavo.train.loop import Stage, set_trainable
from octavo.train.loss import View
from octavo.train.measure import VIEWS, measure, take

OnStep = Callable[[str, int, int, float], None]
"""Called as `on_step(stage, step, steps, loss)`."""
HARMLESS = {
    *("output", "device", "data.root"),
    *("save_every", "log_every", "measure_every", "measure_examples"),
}
"""Keys that may change between an interruption and `--resume`: no weight depends on them."""
CHECKPOINT_COPIES = 2 * 3
"""Weights and two moments, twice: the previous checkpoint goes only when the next one is whole."""


def train(
    config: RunConfig, root: Path, *, resume: bool = False, on_step: OnStep | None = None
) -> Path:
    """Run every stage of a recipe and return the folder of the last export.

    `root` is where relative paths start. Raises `TrainingError` (or another `OctavoError`) before
    the first step when anything in the recipe cannot work. An interrupted run continues with
    `resume`, bit for bit; without it, an output folder that already holds a run is refused.
    """
    config.check()
    device = _device(config.device)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision="bf16" if _has_bf16(device) else "fp32")
    out = root / Path(config.output).expanduser()
    names = [name for name in STAGES if name in config.stages and config.stages[name].steps]
    finished: list[str] = []
    before: dict[str, Any] = {}
    if (out / "log.jsonl").exists():
        if not resume:
            raise TrainingError(
                f"{out} already holds a run; add --resume, or choose another output"
            )
        before = read_json(out / "config.json")
        _refuse_other_recipe(before.get("recipe", {}), config, out)
        finished = [name for name in names if (out / name / "export").is_dir()]
    todo = names[names.index(finished[-1]) + 1 :] if finished else names
    if not todo:
        return out / finished[-1] / "export"
    run = _Run(config, root, out, device)
    if before and before.get("texts") != run.texts:
        raise TrainingError(
            f"the texts are not those that the run in {out} began with; bring them back, or choose "
            "another output"
        )
    run.check(todo)
    run.start()
    if finished:
        run.adopt(out / finished[-1] / "export")
    for name in todo:
        run.stage(name, resume, on_step)
    return out / todo[-1] / "export"


class _Run:
    """What the stages of one run share."""

    def __init__(self, config: RunConfig, root: Path, out: Path, device: torch.device) -> None:
        self.config, self.out, self.device = config, out, device
        self.log = Log(out / "log.jsonl")
        self.documents, self.held_out = _read_texts(config, root)
        self.texts = _fingerprint(self.documents, self.held_out)
        torch.manual_seed(config.seed)
        section, lora = config.model, config.lora
        encoder, decoder = (_source(name, root) for name in (section.encoder, section.decoder))
        lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
            encoder,
            decoder,
            section.model_config(),
            extension=section.extension(),
            encoder_layers=section.encoder_layers,
        )
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
        lclm.to(device)
        self.checkpoint = Checkpoint(
            lclm,
            decoder_tokenizer,
            encoder_tokenizer,
            section.name or "run",
            fingerprint_of_weights(lclm),
        )
        self.prompts: PromptEncoder = self.checkpoint.prompts()
        self.held_out_examples: dict[str, list[Example]] = {}

    def examples(self, stage: str, weights: dict[str, float] | None = None) -> Examples:
        """Return what the stage trains on."""
        return Examples(
            self.documents,
            self.prompts,
            self.config.data,
            ratios=served_ratios(self.checkpoint.lclm),
            weights=weights or self.config.stages[stage].weights or self.config.data.weights,
            seed=f"{self.config.seed}/{stage}",
        )

    def check(self, todo: list[str]) -> None:
        """Try everything the stages will need, so that what cannot work stops the run here."""
        self._check_lengths()
        num_trained = 0
        for name in todo:
            settings = self.config.stages[name]
            weights = settings.weights or self.config.data.weights
            _ = self.examples(name)[0]
            for kind in (kind for kind, weight in weights.items() if weight > 0):
                _ = self.examples(name, {kind: 1.0})[0]
            chosen = set_trainable(self.checkpoint.lclm, settings.lr)
            trained = sum(p.numel() for group in chosen.values() for p in group.values())
            num_trained = max(num_trained, trained)
        try:
            self._build_held_out()
        except TrainingError as error:
            raise TrainingError(f"held-out texts: {error} (data.held_out)") from error
        self._check_space(len(todo), num_trained)

    def _check_lengths(self) -> None:
        """Refuse examples and windows beyond the positions of the two models."""
        data, configs = self.config.data, self.checkpoint.lclm.config
        interleaved = data.max_pairs * (data.span_tokens[1] + data.target_tokens[1])
        section = self.config.model
        for whose, longest, cure in (
            ("text", max(interleaved, 2 * data.copy_tokens[1]), "data.*_tokens or data.max_pairs"),
            (
                "encoder",
                section.encoder_window_size + 2 * section.boundary_overlap,
                "model.encoder_window_size",
            ),
        ):
            positions = getattr(
                getattr(configs, f"{whose}_config"), "max_position_embeddings", None
            )
            if positions is not None and longest > positions:
                half = "decoder" if whose == "text" else whose
                raise TrainingError(
                    f"the {half} has {positions} positions, but would read up to {longest} tokens; "
                    f"lower {cure}"
                )

    def _build_held_out(self) -> None:
        """Cut the examples to measure on once: the same for every stage, and at every ratio."""
        for ratio in served_ratios(self.checkpoint.lclm):
            for kind in ("reconstruction", "interleaved"):
                stream = Examples(
                    self.held_out,
                    self.prompts,
                    self.config.data,
                    ratios=[ratio],
                    weights={kind: 1.0},
                    seed=f"{self.config.seed}/held_out",
                )
                examples = take(stream, kind, ratio, self.config.measure_examples)
                self.held_out_examples[f"{kind}/{ratio}"] = examples

    def _check_space(self, num_exports: int, num_trained: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        exported = sum(
            parameter.numel()
            for name, parameter in self.checkpoint.lclm.named_parameters()
            if not self.config.lora.rank or "lora_" in name or name.startswith("adapter.")
        )
        needed = 4 * (num_exports * exported + CHECKPOINT_COPIES * num_trained)  # fp32
        place = next(folder for folder in (self.out, *self.out.parents) if folder.is_dir())
        if (free := shutil.disk_usage(place).free) < needed:
            raise TrainingError(
                f"the run needs about {needed / 1e9:.1f} GB at {place}, but there are only "
                f"{free / 1e9:.1f} GB; make room or choose another output"
            )

    def start(self) -> None:
        """Write down what this run is."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot make the folder {self.out} ({error.strerror}); choose another output"
            ) from error
        packages = ("octavo", "torch", "transformers", "peft", "safetensors")
        versions = {name: _version(name) for name in packages}
        about = {
            "recipe": self.config.to_dict(),
            "versions": {"python": platform.python_version(), **versions},
            "documents": len(self.documents),
            "held_out_documents": len(self.held_out),
            "texts": self.texts,
            "device": str(self.device),
        }
        write_text(self.out / "config.json", json.dumps(about, indent=2) + "\n")

    def measure(self) -> dict[str, Any]:
        """Measure reconstruction and continuation on held-out text, at every ratio."""
        rows: dict[str, Any] = {}
        for name, examples in self.held_out_examples.items():
            is_copy = examples[0].kind == "reconstruction"
            views: tuple[View, ...] = ("latents", "none") if is_copy else VIEWS
            rows[name] = measure(self.checkpoint.lclm, examples, views=views)
        return rows

    def stage(self, name: str, resume: bool, on_step: OnStep | None) -> None:
        """Train one stage and export it."""
        settings, lclm = self.config.stages[name], self.checkpoint.lclm
        examples, folder = self.examples(name), self.out / name
        stage = Stage(name, lclm, examples, self.config, folder, self.log, self.measure)
        if resume:
            is_resumed = stage.resume()
            self.log.rewind(name, stage.step, stage.measured_step)
            if is_resumed:
                self.log({"stage": name, "step": stage.step, "resumed": True})
        stage.run(on_step and (lambda step, loss: on_step(name, step, settings.steps, loss)))
        write(self.checkpoint, folder / "export")
        exported = os.fspath(folder / "export")
        self.log({"stage": name, "step": settings.steps, "exported": exported})

    def adopt(self, export: Path) -> None:
        """Take the weights of a stage that an earlier run finished."""
        finished = read(export, trainable=bool(self.config.lora.rank))
        own = self.checkpoint.lclm.state_dict()
        self.checkpoint.lclm.load_state_dict(
            {k: v for k, v in finished.lclm.state_dict().items() if k in own}, strict=True
        )


def _read_texts(config: RunConfig, root: Path) -> tuple[list[Document], list[Document]]:
    """Return the documents to train on, and those to measure on."""
    folder = root / Path(config.data.root).expanduser()
    documents = read_documents(config.data.train, config.data, folder)
    if not config.data.held_out:
        return split_held_out(documents)
    held_out = read_documents(config.data.held_out, config.data, folder)
    trained_on = {document.text for document in documents}
    if shared := sum(document.text in trained_on for document in held_out):
        raise TrainingError(
            f"{shared} of {len(held_out)} held-out texts are trained on too; take them out of "
            "data.train or of data.held_out"
        )
    return documents, held_out


def _fingerprint(*groups: list[Document]) -> str:
    """Identify the texts of a run: a resumed one must go on with the same."""
    digest = hashlib.sha256()
    for documents in groups:
        digest.update(f"{len(documents)}\n".encode())
        for document in documents:
            values = [document.text, document.question, *document.answers]
            digest.update(json.dumps(values).encode())
    return digest.hexdigest()[:16]


def _refuse_other_recipe(before: dict[str, Any], config: RunConfig, out: Path) -> None:
    """Refuse to resume by another recipe; stages that have not begun may still change."""
    waiting = tuple(f"stages.{name}." for name in STAGES if not (out / name).is_dir())
    old, new = _flat(before), _flat(config.to_dict())
    for key in [*old, *new]:
        if key in HARMLESS or key.startswith(waiting):
            continue
        if (was := old.get(key)) != (now := new.get(key)):
            raise TrainingError(
                f"{key} is {now!r}, but the run in {out} began with {was!r}; set it back to "
                "resume, or choose another output"
            )


def _flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return nested settings as `section.field` keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{where}{name}"
        flat.update(_flat(value, f"{key}.") if isinstance(value, dict) else {key: value})
    return flat


def _source(name: str, root: Path) -> str:
    """Return a model folder below `root` as a path, and any other name as it is."""
    folder = root / Path(name).expanduser()
    return os.fspath(folder) if folder.is_dir() else name


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} is not to be had here; try cpu") from error
    return device


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: emulated bf16 on a CPU without it is 2.5x slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return _cpu_has("bf16") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpu_has(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"
