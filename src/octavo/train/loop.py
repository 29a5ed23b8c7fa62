"""Run one stage of training: step, log, measure, save, resume.

The loop owns nothing but the trainable parameters, the optimizer and a step count: rows and dropout
are functions of the step, so a checkpoint of these three resumes bit for bit. Alone or on many
ranks it is the same loop; what the ranks share is in `parallel.py`, and files in `checkpoints.py`.
"""

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.costs import Work, find_peaks
from octavo.errors import TrainingError
from octavo.machine import peak_memory
from octavo.nn import LCLM
from octavo.recipe import RunConfig, StageSection
from octavo.train import checkpoints, parallel
from octavo.train.batch import MicroBatch
from octavo.train.feed import Feed, RowSource
from octavo.train.groups import keep_rows, set_trainable
from octavo.train.log import Log
from octavo.train.signals import Stop

MAX_SKIPPED_STEPS = 10
"""Non-finite steps in a row before the run is given up."""
MAX_LOGGED_ROWS = 64


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved itself."""


def learning_rate(step: int, stage: StageSection, peak: float, seconds: float = 0) -> float:
    """Return the rate of optimizer step `step`, counted from 0, after so many `seconds`.

    It rises linearly to the peak over `warmup_steps`, whose last step is the first at the peak, and
    falls, once the part `hold` has passed, as a half cosine that would reach the floor at step
    `steps`, one after the last, or when the stage's time is over.
    """
    if step < stage.warmup_steps:
        return peak * (step + 1) / stage.warmup_steps
    span = max(1, stage.steps - stage.warmup_steps)
    progress = min(1.0, (step - stage.warmup_steps) / span)
    if stage.seconds is not None:
        progress = min(1.0, max(progress, seconds / stage.seconds))
    progress = max(0.0, progress - stage.hold) / (1 - stage.hold)
    floor = peak * stage.min_lr_ratio
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Stage:
    """One stage of a run: its trainable parameters, optimizer, rows and place on disk."""

    def __init__(
        self,
        name: str,
        model: LCLM,
        rows: RowSource,
        config: RunConfig,
        folder: Path,
        log: Log,
        *,
        first_row: int = 0,
        measure: Callable[[LCLM], dict[str, Any]] | None = None,
        export: Callable[["Stage", Path], None] | None = None,
        stop: Stop | None = None,
        is_measured_first: bool = False,
    ) -> None:
        """Prepare the stage on a model that lies on this process's device, sharded or not.

        `set_trainable` has chosen the parameters. `first_row` is where its reading starts in the
        mixture. `measure` is called every `measure_every` steps, its result logged, and `export`
        with a folder when the held-out loss is the best so far; with `is_measured_first` also
        before the first step, so that the log shows what the stage was worth.
        """
        self.name, self.model = name, model
        self.config, self.settings = config, config.stages[name]
        self.folder, self.log = folder, log
        self.measure, self.export, self.stop = measure, export, stop or Stop()
        self.step, self.updates, self.skipped = 0, 0, 0
        self.measured_step = -1 if is_measured_first else 0
        self.best: float | None = None
        self.device = model.device
        self.rank, self.num_ranks = parallel.world()
        self.feed = Feed(rows, config, first_row, model.memory_token_id)
        self.seconds = 0.0
        """How long its steps have taken, over all interruptions."""
        self.work = Work(model)
        self._peak = find_peaks(self.device, torch.bfloat16, config.peak_tflops).tflops
        self.parameters = set_trainable(model, self.settings.lr)
        self.named = {n: p for group in self.parameters.values() for n, p in group.items()}
        groups = [
            {
                "params": list(parameters.values()),
                "lr": 0.0,
                "betas": tuple(self.settings.betas.get(group, (0.9, 0.95))),  # paper §4.1
                "weight_decay": self.settings.weight_decay.get(group, 0.0),
                "name": group,
            }
            for group, parameters in self.parameters.items()
        ]
        self.optimizer = torch.optim.AdamW(groups, eps=1e-8)
        for parameter in self.named.values():  # as AdamW does at its first step
            self.optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def run(self, on_step: Callable[[int, float], None] | None = None) -> None:
        """Take the remaining steps.

        SIGINT or SIGTERM on any rank ends the step, saves on all of them, and raises `Interrupted`.
        """
        self.model.train()
        try:
            self._measure_if_due()  # the step may have been saved before it was measured
            batches = self.feed.steps(self.step, self.settings.steps)
            while not self._is_over:
                loss, must_stop = self._take_step(batches)
                if on_step is not None:
                    try:
                        on_step(self.step, loss)
                    except KeyboardInterrupt:
                        must_stop = True
                if not must_stop:
                    self._measure_if_due()
                if must_stop or self.step % self.config.save_every == 0:
                    self.save()
                if must_stop:
                    raise Interrupted(f"stage {self.name}, step {self.step}")
        finally:
            self.model.eval()

    @property
    def _is_over(self) -> bool:
        """Whether all steps are taken, or the time for them has passed on any rank."""
        limit = self.settings.seconds
        is_late = limit is not None and parallel.any_over_ranks(self.seconds >= limit)
        return is_late or self.step >= self.settings.steps

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self._is_over

    def _measure_if_due(self) -> None:
        """Measure every `measure_every` steps and at the end, once each, also after a resume."""
        if not self.config.measure_every or self.measure is None or self.measured_step == self.step:
            return
        if not self._is_due(self.config.measure_every):
            return
        self.model.eval()
        measured = self.measure(self.model)
        self.model.train()
        loss = sum(row["latents"]["loss"][0] for row in measured.values()) / max(1, len(measured))
        is_best = bool(measured) and (self.best is None or loss < self.best)
        if is_best:
            self.best = loss
            if self.export is not None and self.config.keep_best:
                self.export(self, self.folder / "best")
        self.measured_step = self.step
        row = {"stage": self.name, "step": self.step, "measured": measured, "is_best": is_best}
        if parallel.is_main():
            self.log(row)

    # -- one step --------------------------------------------------------------------------------

    def _add_gradients(self, batches: Sequence[MicroBatch], scored: int) -> tuple[Tensor, Tensor]:
        """Pass forward and back over this rank's batches.

        Returns the sums of losses and of greedy hits, and which rows of the step had a loss that is
        no number. `scored` counts the scored tokens of all ranks. Nothing is looked at before the
        last batch is under way: a GPU would stand still meanwhile.
        """
        found: list[Tensor] = []
        bad: list[Tensor] = []
        for batch in batches:
            with autocast(self.config.precision, self.device):
                scores = self.model.score(**batch.inputs(self.device))
            # Sharded gradients are averaged over ranks; the loss is a sum over all of them.
            loss = scores.loss_P.sum() * (self.num_ranks / max(1, scored))
            loss.backward()
            loss_P = scores.loss_P.detach().float()
            found.append(torch.stack([loss_P.double().sum(), scores.is_hit_P.sum().double()]))
            of_rows = torch.zeros(len(batch.row_ids), device=loss_P.device)
            bad.append(of_rows.index_add(0, scores.row_P, (~torch.isfinite(loss_P)).float()))
        loss_and_hits = torch.stack(found).sum(0).cpu()
        is_bad_row = torch.zeros(self.config.batch_rows, dtype=torch.float64)
        first = self.rank * (self.config.batch_rows // self.num_ranks)
        mine = torch.cat(bad).cpu()
        is_bad_row[first : first + len(mine)] = (mine > 0).double()
        return loss_and_hits, is_bad_row

    def _take_step(self, feed: Iterator[list[MicroBatch]]) -> tuple[float, bool]:
        """Take and log one optimizer step; return its loss and whether to stop after it.

        The loss is the mean over all scored tokens of all ranks, however they are spread.
        """
        started = time.perf_counter()
        # Dropout, where a model has any, is a function of the step and the rank too.
        key = f"{self.config.seed}/{self.name}/{self.step}/{self.rank}"
        torch.manual_seed(zlib.crc32(key.encode()))
        for group in self.optimizer.param_groups:
            peak = self.settings.lr[group["name"]]
            group["lr"] = learning_rate(self.step, self.settings, peak, self.seconds)
        before_rows = time.perf_counter()
        batches = next(feed)
        waited = time.perf_counter() - before_rows
        scored, positions, sources, latents = _count(batches)
        loss_and_hits, is_bad_row = self._add_gradients(batches, scored)
        keep_rows(self.parameters, self.model)
        norm = parallel.whole(
            nn.utils.clip_grad_norm_(self.named.values(), self.config.max_grad_norm)
        )
        summed = parallel.sum_over_ranks(
            torch.cat([loss_and_hits, torch.tensor([float(self.stop.is_asked)]), is_bad_row])
        )
        loss_sum, hits, stops, *bad_rows = summed.tolist()
        is_finite = math.isfinite(loss_sum) and bool(torch.isfinite(norm))
        if is_finite:
            self.optimizer.step()
            self.updates += 1
        self.skipped = 0 if is_finite else self.skipped + 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        row: dict[str, Any] = {
            "stage": self.name,
            "step": self.step,
            "loss": _rounded(loss_sum / max(1, scored), 5),
            "accuracy": round(hits / max(1, scored), 4),
            "grad_norm": _rounded(float(norm), 4),
            "lr": {g["name"]: g["lr"] for g in self.optimizer.param_groups},
            "scored_tokens": scored,
            "decoder_tokens": positions,
            "source_tokens": sources,
            "latents": latents,
            "waited": round(waited, 3),
            **self._speed(seconds, scored, positions, sources, latents),
        }
        if not is_finite:
            row["skipped"] = "loss or gradient not finite"
            row["rows"] = self._row_ids(bad_rows)
        if parallel.is_main() and (self._is_due(self.config.log_every) or not is_finite):
            self.log(row)
        if self.skipped >= MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"{MAX_SKIPPED_STEPS} steps in a row had a loss or gradient that is not finite "
                f"(stage {self.name}, step {self.step}, rows {', '.join(row['rows'][:3])}, …); "
                "lower the learning rates, or look at these rows"
            )
        return loss_sum / max(1, scored), stops > 0

    def _speed(
        self, seconds: float, scored: int, positions: int, sources: int, latents: int
    ) -> dict[str, Any]:
        """Return how fast a step was, as far as the log says it."""
        speed = {
            "seconds": round(seconds, 3),
            "decoder_tokens_per_second": round(positions / seconds, 1),
            "source_tokens_per_second": round(sources / seconds, 1),
            "memory_bytes": peak_memory(self.device),
        }
        if self._peak:
            flops = self.work.of(
                source_tokens=sources, latents=latents, positions=positions, scored=scored
            )
            speed["mfu"] = round(flops / seconds / (self._peak * 1e12 * self.num_ranks), 4)
        return speed

    def _row_ids(self, is_bad: list[float]) -> list[str]:
        """Return the rows whose loss was not finite, or all of the step when none was."""
        chosen = [i for i, bad in enumerate(is_bad) if bad] or list(range(len(is_bad)))
        return self.feed.row_ids(self.step - 1, chosen[:MAX_LOGGED_ROWS])

    # -- checkpoints -----------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """Return everything a checkpoint holds, by name."""
        tensors: dict[str, Tensor] = {f"weight/{n}": p.data for n, p in self.named.items()}
        for name, parameter in self.named.items():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}/{name}"] = self.optimizer.state[parameter][key]
        return tensors

    def save(self) -> Path:
        """Write a checkpoint of the current step; older ones go once this is whole."""
        state = {
            "stage": self.name,
            "step": self.step,
            "updates": self.updates,
            "skipped": self.skipped,
            "measured_step": self.measured_step,
            "best": self.best,
            "seconds": self.seconds,
            "ranks": self.num_ranks,
        }
        keep = self.config.keep_checkpoints
        return checkpoints.save(self.folder, self.step, self._tensors(), state, keep)

    def resume(self) -> bool:
        """Continue from the newest checkpoint of this stage; return whether there was one."""
        if not (found := checkpoints.find(self.folder)):
            return False
        state = checkpoints.read_state(found[-1])
        with torch.no_grad():
            checkpoints.load(found[-1], self._tensors())
        self.step, self.skipped = state["step"], state["skipped"]
        self.measured_step, self.best = state["measured_step"], state["best"]
        self.updates, self.seconds = state["updates"], state.get("seconds", 0.0)
        for parameter in self.named.values():
            self.optimizer.state[parameter]["step"] = torch.tensor(float(self.updates))
        return True


def _count(batches: Sequence[MicroBatch]) -> tuple[int, ...]:
    """Return the scored tokens, positions, source tokens and latents of all ranks' batches."""
    counts = [[b.num_scored, b.num_positions, b.num_source_tokens, b.num_latents] for b in batches]
    total = parallel.sum_over_ranks(torch.tensor(counts, dtype=torch.float64).sum(0))
    return tuple(map(int, total.tolist()))


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a model computes in the recipe's precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _rounded(value: float, digits: int) -> float | None:
    """Return a number for the log; JSON has none for what is not finite."""
    return round(value, digits) if math.isfinite(value) else None
