"""Run one stage of training: step, log, measure, save, resume.

The loop owns nothing but the trainable parameters, the optimizer and a step count: examples are a
function of the step, so a checkpoint of these three resumes bit for bit. Checkpoints are folders
of safetensors that appear complete or not at all.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from octavo.config import read_json
from octavo.errors import TrainingError
from octavo.files import new_folder
from octavo.nn import LCLM
from octavo.train.config import RunConfig, StageSection
from octavo.train.data import Example, Examples
from octavo.train.loss import score

Log = Callable[[dict[str, Any]], None]
MAX_SKIPPED_STEPS = 10
"""Non-finite steps in a row before the run is given up."""


def learning_rate(step: int, stage: StageSection, peak: float) -> float:
    """Return the rate of optimizer step `step` (from 0): linear warm-up, then cosine to the floor."""
    if step < stage.warmup_steps:
        return peak * (step + 1) / stage.warmup_steps
    span = max(1, stage.steps - stage.warmup_steps)
    progress = min(1.0, (step - stage.warmup_steps) / span)
    floor = peak * stage.min_lr_ratio
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def group_of(name: str) -> str:
    """Return the group a parameter of `LCLM` belongs to, by the part it lives in."""
    if "trainable_tokens" in name:
        return "memory_rows"
    part = name.split(".", 1)[0]
    return {"residual": "adapter"}.get(part, part)


def set_trainable(model: LCLM, groups: set[str]) -> dict[str, dict[str, nn.Parameter]]:
    """Freeze everything but `groups` and return their parameters by group and name.

    A decoder or encoder under LoRA trains its low-rank factors only. `memory_rows` are the three
    memory tokens' embeddings; without LoRA the other rows' gradients are masked to zero.
    """
    chosen: dict[str, dict[str, nn.Parameter]] = {group: {} for group in groups}
    has_lora = {group: False for group in ("encoder", "decoder")}
    for name, _ in model.named_parameters():
        if "lora_" in name:
            has_lora[group_of(name)] = True
    for name, parameter in model.named_parameters():
        group = group_of(name)
        is_factor = "lora_" in name or not has_lora.get(group, False)
        is_chosen = group in groups and (is_factor or group == "memory_rows")
        parameter.requires_grad_(is_chosen)
        if is_chosen:
            chosen[group][name] = parameter
    if "memory_rows" in groups and not chosen["memory_rows"]:
        chosen["memory_rows"] = _masked_embedding(model, is_whole="decoder" in groups)
    for group, parameters in chosen.items():
        if not parameters and not (group == "memory_rows" and "decoder" in groups):
            raise TrainingError(f"the group {group!r} has no parameters in this model; drop its lr")
    return {group: parameters for group, parameters in chosen.items() if parameters}


def _masked_embedding(model: LCLM, *, is_whole: bool) -> dict[str, nn.Parameter]:
    """Let only the memory tokens' rows of a frozen decoder's embedding move."""
    if is_whole:  # a decoder trained whole trains all rows anyway
        return {}
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, nn.Parameter)
    weight.requires_grad_(True)
    mask = torch.zeros(len(weight), 1, device=weight.device, dtype=weight.dtype)
    mask[model.config.memory_token_ids] = 1
    weight.register_hook(lambda gradient: gradient * mask)
    name = next(n for n, parameter in model.named_parameters() if parameter is weight)
    return {name: weight}


class Stage:
    """One stage of a run: its trainable parameters, optimizer, examples and place on disk."""

    def __init__(
        self,
        name: str,
        model: LCLM,
        examples: Examples,
        config: RunConfig,
        folder: Path,
        log: Log,
        measure: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Prepare the stage; `measure` is called every `measure_every` steps and logged."""
        self.name, self.model, self.examples = name, model, examples
        self.config, self.settings = config, config.stages[name]
        self.folder, self.log, self.measure = folder, log, measure
        self.step, self.skipped = 0, 0
        self.parameters = set_trainable(model, set(self.settings.lr))
        groups = [
            {
                "params": list(parameters.values()),
                "lr": 0.0,
                "weight_decay": self.settings.weight_decay.get(group, 0.0),
                "name": group,
            }
            for group, parameters in self.parameters.items()
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)  # paper §4.1

    def run(self, on_step: Callable[[int, float], None] | None = None) -> None:
        """Take the remaining steps. Ctrl-C saves a checkpoint before it is passed on."""
        self.model.train()
        try:
            while self.step < self.settings.steps:
                row = self._take_step()
                if self.step % self.config.log_every == 0 or self.step == self.settings.steps:
                    self.log(row)
                if on_step is not None:
                    on_step(self.step, row["loss"])
                if self.measure and self.step % self.config.measure_every == 0:
                    self.model.eval()
                    self.log({"stage": self.name, "step": self.step, "measured": self.measure()})
                    self.model.train()
                if self.step % self.config.save_every == 0:
                    self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            self.model.eval()

    def _batch(self) -> list[list[Example]]:
        """Return the micro-batches of the current step, each of examples of like length."""
        config = self.config
        first = self.step * config.batch_size
        batch = [self.examples[first + i] for i in range(config.batch_size)]
        batch.sort(key=lambda example: len(example.input_ids))
        size = config.micro_batch_size
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def _take_step(self) -> dict[str, Any]:
        """Take one optimizer step; the loss is the mean over all scored tokens of the step."""
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings, self.settings.lr[group["name"]])
        micro_batches = self._batch()
        examples = [example for batch in micro_batches for example in batch]
        num_scored = sum(sum(label >= 0 for label in e.labels[1:]) for e in examples)
        total = torch.zeros((), dtype=torch.float64)
        hits = 0
        for batch in micro_batches:
            with self._autocast():
                scored = score(self.model, batch)
            loss = scored.loss_P.sum() / num_scored
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().cpu()
            hits += int(scored.is_hit_P.sum())
        norm = nn.utils.clip_grad_norm_(self._all_parameters(), self.config.max_grad_norm)
        self._step_unless_broken(norm, total)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "stage": self.name,
            "step": self.step,
            "loss": round(float(total), 5),
            "accuracy": round(hits / max(1, num_scored), 4),
            "grad_norm": round(float(norm), 4),
            "lr": {g["name"]: g["lr"] for g in self.optimizer.param_groups},
            "scored_tokens": num_scored,
            "decoder_tokens": sum(len(e.input_ids) for e in examples),
            "source_tokens": sum(len(span) for e in examples for span in e.spans),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _step_unless_broken(self, norm: Tensor, loss: Tensor) -> None:
        """Skip a step whose loss or gradient is not finite; give up after ten in a row."""
        if bool(torch.isfinite(norm)) and bool(torch.isfinite(loss)):
            self.optimizer.step()
            self.skipped = 0
            return
        self.skipped += 1
        self.log({"stage": self.name, "step": self.step, "skipped": "loss or gradient not finite"})
        if self.skipped >= MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"{MAX_SKIPPED_STEPS} steps in a row had a loss or gradient that is not finite "
                f"(stage {self.name}, step {self.step}); lower the learning rates"
            )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        device = next(self.model.adapter.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16)

    def _all_parameters(self) -> Iterator[nn.Parameter]:
        for parameters in self.parameters.values():
            yield from parameters.values()

    # -- checkpoints -----------------------------------------------------------------------------

    def _named(self) -> dict[str, nn.Parameter]:
        return {name: p for group in self.parameters.values() for name, p in group.items()}

    def save(self) -> Path:
        """Write weights, optimizer and step; the previous checkpoint goes once this one is whole."""
        path = self.folder / f"checkpoint-{self.step:08d}"
        named = self._named()
        state: dict[str, Tensor] = {}
        for name, parameter in named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{key}/{name}"] = value.detach().cpu().contiguous().clone()
        weights = {name: p.detach().cpu().contiguous().clone() for name, p in named.items()}
        with new_folder(path) as temporary:
            save_file(weights, temporary / "weights.safetensors")
            save_file(state, temporary / "optimizer.safetensors")
            place = {"stage": self.name, "step": self.step, "skipped": self.skipped}
            (temporary / "state.json").write_text(json.dumps(place))
        for older in self._checkpoints()[:-1]:
            _remove(older)
        return path

    def resume(self) -> bool:
        """Continue from the newest checkpoint of this stage; return whether there was one."""
        if not (found := self._checkpoints()):
            return False
        named = self._named()
        weights = load_file(found[-1] / "weights.safetensors")
        if weights.keys() != named.keys():
            raise TrainingError(
                f"{found[-1]} was written by a run that trained other parameters; "
                "use the same recipe, or another output folder"
            )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(weights[name])
        for key_and_name, value in load_file(found[-1] / "optimizer.safetensors").items():
            key, name = key_and_name.split("/", 1)
            parameter = named[name]
            value = value if key == "step" else value.to(parameter.device)
            self.optimizer.state[parameter][key] = value
        place = read_json(found[-1] / "state.json")
        self.step, self.skipped = place["step"], place["skipped"]
        return True

    def _checkpoints(self) -> list[Path]:
        found = self.folder.glob("checkpoint-*") if self.folder.is_dir() else iter(())
        return sorted(path for path in found if re.fullmatch(r"checkpoint-\d{8}", path.name))


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
