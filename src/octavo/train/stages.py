"""Run a recipe: adapter, encoder, decoder, sft - each stage exported as a whole checkpoint.

    OUT/config.json            the resolved recipe and the versions it ran with
    OUT/log.jsonl              one line a step, plus measurements
    OUT/STAGE/checkpoint-*     to resume from
    OUT/STAGE/export           a finished stage in the published layout; a finished run's last one
                               is the model
"""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from octavo.assembly import add_lora, assemble_parts
from octavo.checkpoint import Checkpoint, fingerprint_of_weights, read, write
from octavo.errors import TrainingError
from octavo.files import write_text
from octavo.prompt import PromptEncoder
from octavo.train.config import STAGES, RunConfig
from octavo.train.data import Document, Examples, read_documents, served_ratios, split_held_out
from octavo.train.loop import Stage
from octavo.train.measure import measure, take

OnStep = Callable[[str, int, int, float], None]
"""Called as `on_step(stage, step, steps, loss)`."""


def train(
    config: RunConfig, root: Path, *, resume: bool = False, on_step: OnStep | None = None
) -> Path:
    """Run every stage of a recipe and return the folder of the last export.

    `root` is where relative paths start. Raises `TrainingError` before the first step
    when anything in the recipe cannot work. An interrupted run continues with `resume`, bit for
    bit; without it, an output folder that already holds a run is refused.
    """
    config.check()
    out = root / config.output
    if not resume and (out / "log.jsonl").exists():
        raise TrainingError(f"{out} already holds a run; add --resume, or choose another output")
    texts = root / Path(config.data.root).expanduser()
    documents = read_documents(config.data.train, config.data, texts)
    if config.data.held_out:
        held_out = read_documents(config.data.held_out, config.data, texts)
    else:
        documents, held_out = split_held_out(documents)
    run = _Run(config, out, documents, held_out)
    run.check_examples()
    run.start()
    names = [name for name in STAGES if name in config.stages and config.stages[name].steps]
    export = out
    for name in names:
        export = out / name / "export"
        if resume and export.is_dir():
            run.adopt(export)
        else:
            run.stage(name, export, resume, on_step)
    return export


class _Run:
    """What the stages of one run share."""

    def __init__(
        self, config: RunConfig, out: Path, documents: list[Document], held_out: list[Document]
    ) -> None:
        self.config, self.out = config, out
        self.documents, self.held_out = documents, held_out
        torch.manual_seed(config.seed)
        self.device = _device(config.device)
        if config.precision == "auto":
            config.precision = "bf16" if _has_bf16(self.device) else "fp32"
        section = config.model
        lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
            section.encoder,
            section.decoder,
            section.model_config(),
            extension=section.extension(),
            encoder_layers=section.encoder_layers,
        )
        if config.lora.rank:
            add_lora(lclm, config.lora.rank, config.lora.alpha, config.lora.encoder_rank)
        lclm.to(self.device)
        self.checkpoint = Checkpoint(
            lclm,
            decoder_tokenizer,
            encoder_tokenizer,
            section.name or "run",
            fingerprint_of_weights(lclm),
        )
        self.prompts: PromptEncoder = self.checkpoint.prompts()

    def examples(
        self, stage: str, documents: list[Document], ratios: list[int], weights: dict[str, float]
    ) -> Examples:
        """Return the stage's stream of examples over `documents`."""
        return Examples(
            documents,
            self.prompts,
            self.config.data,
            ratios=ratios,
            weights=weights,
            seed=f"{self.config.seed}/{stage}",
        )

    def training_examples(self, stage: str) -> Examples:
        """Return what the stage trains on."""
        weights = self.config.stages[stage].weights or self.config.data.weights
        return self.examples(stage, self.documents, served_ratios(self.checkpoint.lclm), weights)

    def check_examples(self) -> None:
        """Build one example of every stage, so that bad data stops the run before it starts."""
        for name, settings in self.config.stages.items():
            if settings.steps:
                _ = self.training_examples(name)[0]

    def start(self) -> None:
        """Write down what this run is."""
        self.out.mkdir(parents=True, exist_ok=True)
        packages = ("octavo", "torch", "transformers", "peft", "safetensors")
        versions = {name: _version(name) for name in packages}
        about = {
            "recipe": self.config.to_dict(),
            "versions": {"python": platform.python_version(), **versions},
            "documents": len(self.documents),
            "held_out_documents": len(self.held_out),
            "device": str(self.device),
        }
        write_text(self.out / "config.json", json.dumps(about, indent=2) + "\n")

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to the log."""
        row = {"time": round(time.time(), 1), **row}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def measure(self, stage: str) -> dict[str, Any]:
        """Measure reconstruction and continuation on held-out text, at every ratio."""
        rows: dict[str, Any] = {}
        for ratio in served_ratios(self.checkpoint.lclm):
            for kind in ("reconstruction", "interleaved"):
                stream = self.examples(stage, self.held_out, [ratio], {kind: 1.0})
                examples = take(stream, kind, ratio, self.config.measure_examples)
                views = ("latents", "none") if kind == "reconstruction" else ("latents", "raw", "none")
                rows[f"{kind}/{ratio}"] = measure(self.checkpoint.lclm, examples, views=views)
        return rows

    def stage(self, name: str, export: Path, resume: bool, on_step: OnStep | None) -> None:
        """Train one stage and export it."""
        settings = self.config.stages[name]
        stage = Stage(
            name,
            self.checkpoint.lclm,
            self.training_examples(name),
            self.config,
            self.out / name,
            self.log,
            lambda: self.measure(name),
        )
        if resume and stage.resume():
            self.log({"stage": name, "step": stage.step, "resumed": True})
        stage.run(on_step and (lambda step, loss: on_step(name, step, settings.steps, loss)))
        self.checkpoint.lclm.eval()
        if settings.steps % self.config.measure_every:
            self.log({"stage": name, "step": settings.steps, "measured": self.measure(name)})
        write(self.checkpoint, export)
        self.log({"stage": name, "step": settings.steps, "exported": os.fspath(export)})

    def adopt(self, export: Path) -> None:
        """Take the weights of a stage that an earlier run finished."""
        finished = read(export, trainable=bool(self.config.lora.rank))
        own = self.checkpoint.lclm.state_dict()
        self.checkpoint.lclm.load_state_dict(
            {k: v for k, v in finished.lclm.state_dict().items() if k in own}, strict=True
        )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: emulated bf16 on a CPU without it is 2.5x slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_has("bf16")


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
