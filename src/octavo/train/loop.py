"""Run one stage of training: step, log, measure, save, resume.

The loop owns nothing but the trainable parameters, the optimizer and a step count: examples and
dropout are functions of the step, so a checkpoint of these three resumes bit for bit. Checkpoints
are folders of safetensors that appear complete or not at all.
"""

import contextlib
import json
import math
import re
import shutil
import signal
import threading
import time
import typing
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from octavo.config import read_json
from octavo.errors import TrainingError
from octavo.files import new_folder
from octavo.nn import LCLM
from octavo.train.config import Group, RunConfig, StageSection
from octavo.train.data import Example, Examples
from octavo.train.loss import score

Log = Callable[[dict[str, Any]], None]
MAX_SKIPPED_STEPS = 10
"""Non-finite steps in a row before the run is given up."""


def learning_rate(step: int, stage: StageSection, peak: float) -> float:
    """Return the rate of optimizer step `step`, counted from 0.

    It rises linearly to the peak over `warmup_steps`, whose last step is the first at the peak, and
    falls as a half cosine that would reach the floor at step `steps`, one after the last.
    """
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


def set_trainable(
    model: LCLM, groups: typing.Collection[str]
) -> dict[str, dict[str, nn.Parameter]]:
    """Freeze everything but `groups` and return their parameters by group and name.

    A decoder or encoder under LoRA trains its low-rank factors only. `memory_rows` are the three
    memory tokens' embeddings; without LoRA that is the whole embedding, and `Stage` drops the
    gradient of its other rows.
    """
    # In one order everywhere: the gradient norm is a sum, and sums depend on their order.
    chosen: dict[str, dict[str, nn.Parameter]] = {
        group: {} for group in typing.get_args(Group) if group in groups
    }
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
        if "decoder" in groups:
            raise TrainingError(
                "a decoder trained whole moves its memory rows with it; drop the lr of "
                "memory_rows, or set lora.rank"
            )
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, nn.Parameter)
        weight.requires_grad_(True)
        name = next(n for n, parameter in model.named_parameters() if parameter is weight)
        chosen["memory_rows"][name] = weight
    for group, parameters in chosen.items():
        if not parameters:
            raise TrainingError(f"the group {group!r} has no parameters in this model; drop its lr")
    return chosen


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
        self.step, self.skipped, self.measured_step = 0, 0, 0
        self.parameters = set_trainable(model, self.settings.lr)
        rows = self.parameters.get("memory_rows", {})
        self._whole_embeddings = [p for name, p in rows.items() if "trainable_tokens" not in name]
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
            self._measure_if_due()  # the step may have been saved before it was measured
            while self.step < self.settings.steps:
                loss = self._take_step()
                if on_step is not None:
                    on_step(self.step, loss)
                self._measure_if_due()
                if self.step % self.config.save_every == 0:
                    self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            self.model.eval()

    def _is_due(self, every: int) -> bool:
        return self.step > 0 and (self.step % every == 0 or self.step == self.settings.steps)

    def _measure_if_due(self) -> None:
        """Measure every `measure_every` steps and at the end, once each, also after a resume."""
        if self.measure is None or self.measured_step == self.step:
            return
        if self._is_due(self.config.measure_every):
            self.model.eval()
            measured = self.measure()
            self.model.train()
            with _uninterrupted():
                self.log({"stage": self.name, "step": self.step, "measured": measured})
                self.measured_step = self.step

    def _batch(self) -> list[list[Example]]:
        """Return the micro-batches of the current step, each of examples of like length."""
        config = self.config
        first = self.step * config.batch_size
        batch = [self.examples[first + i] for i in range(config.batch_size)]
        batch.sort(key=lambda example: len(example.input_ids))
        size = config.micro_batch_size
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def _take_step(self) -> float:
        """Take and log one optimizer step; its loss is the mean over all its scored tokens."""
        started = time.perf_counter()
        # Dropout, where a model has any, is a function of the step too.
        torch.manual_seed(zlib.crc32(f"{self.config.seed}/{self.name}/{self.step}".encode()))
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
            loss.backward()
            total += loss.detach().double().cpu()
            hits += int(scored.is_hit_P.sum())
        self._keep_memory_rows()
        norm = nn.utils.clip_grad_norm_(self._all_parameters(), self.config.max_grad_norm)
        is_finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(total))
        row = {
            "stage": self.name,
            "step": self.step + 1,
            "loss": _rounded(total, 5),
            "accuracy": round(hits / num_scored, 4),
            "grad_norm": _rounded(norm, 4),
            "lr": {g["name"]: g["lr"] for g in self.optimizer.param_groups},
            "scored_tokens": num_scored,
            "decoder_tokens": sum(len(e.input_ids) for e in examples),
            "source_tokens": sum(len(span) for e in examples for span in e.spans),
        }
        with _uninterrupted():
            if is_finite:
                self.optimizer.step()
            else:
                row["skipped"] = "loss or gradient not finite"
            self.skipped = 0 if is_finite else self.skipped + 1
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            row["seconds"] = round(time.perf_counter() - started, 3)
            if self._is_due(self.config.log_every) or not is_finite:
                self.log(row)
        if self.skipped >= MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"{MAX_SKIPPED_STEPS} steps in a row had a loss or gradient that is not finite "
                f"(stage {self.name}, step {self.step}); lower the learning rates"
            )
        return float(total)

    def _keep_memory_rows(self) -> None:
        """Drop the gradient of all rows but the memory tokens' of a frozen embedding."""
        for weight in self._whole_embeddings:
            if weight.grad is not None:
                kept = weight.grad[self.model.config.memory_token_ids]
                weight.grad.zero_()
                weight.grad[self.model.config.memory_token_ids] = kept

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
        """Write weights, optimizer and step; the previous checkpoint goes once this is whole."""
        path = self.folder / f"checkpoint-{self.step:08d}"
        named = self._named()
        state: dict[str, Tensor] = {}
        for name, parameter in named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{key}/{name}"] = value.detach().cpu().contiguous().clone()
        weights = {name: p.detach().cpu().contiguous().clone() for name, p in named.items()}
        place = {
            "stage": self.name,
            "step": self.step,
            "skipped": self.skipped,
            "measured_step": self.measured_step,
        }
        with new_folder(path) as temporary:
            save_file(weights, temporary / "weights.safetensors")
            save_file(state, temporary / "optimizer.safetensors")
            (temporary / "state.json").write_text(json.dumps(place), encoding="utf-8")
        for older in self._checkpoints()[:-1]:
            shutil.rmtree(older)
        return path

    def resume(self) -> bool:
        """Continue from the newest checkpoint of this stage; return whether there was one."""
        if not (found := self._checkpoints()):
            return False
        named = self._named()
        place = read_json(found[-1] / "state.json")
        try:
            weights = load_file(found[-1] / "weights.safetensors")
            state = load_file(found[-1] / "optimizer.safetensors")
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{found[-1]} is damaged ({error}); remove it to start the stage again"
            ) from error
        shapes = {name: parameter.shape for name, parameter in named.items()}
        if {name: weight.shape for name, weight in weights.items()} != shapes:
            raise TrainingError(
                f"{found[-1]} was written by a run that trained other parameters; "
                "use the same recipe, or another output folder"
            )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(weights[name])
        for key_and_name, value in state.items():
            key, name = key_and_name.split("/", 1)
            parameter = named[name]
            value = value if key == "step" else value.to(parameter.device)
            self.optimizer.state[parameter][key] = value
        self.step, self.skipped = place["step"], place["skipped"]
        self.measured_step = place["measured_step"]
        return True

    def _checkpoints(self) -> list[Path]:
        found = self.folder.glob("checkpoint-*") if self.folder.is_dir() else iter(())
        return sorted(path for path in found if re.fullmatch(r"checkpoint-\d{8}", path.name))


def _rounded(value: Tensor, digits: int) -> float | None:
    """Return a number for the log; JSON has none for what is not finite."""
    return round(float(value), digits) if bool(torch.isfinite(value)) else None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, so that no step is ever half taken."""
    if threading.current_thread() is not threading.main_thread():  # where Ctrl-C never arrives
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if pressed:
        signal.raise_signal(signal.SIGINT)
