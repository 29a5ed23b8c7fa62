"""Measure every method at every length, in turn, and keep a row for each measurement.

At one length all methods are measured once, then all again: what warms up, throttles or disturbs
the machine disturbs them alike. The first round warms up and is not kept.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from octavo.costs import MARKS, Floor
from octavo.engine.base import Engine
from octavo.engine.local import PREFILL_POSITIONS
from octavo.errors import EvaluationError
from octavo.machine import find_device, is_out_of_memory, memory_of, parse_dtype
from octavo.nn import LCLM
from octavo.progress import Progress, ignore
from octavo.settings import refuse_change
from octavo_evals.bench.measure import check_method, measure
from octavo_evals.bench.shapes import Shape, build, check_ratios, find_shape, open_engine
from octavo_evals.rows import MEASUREMENT, Row, RowFile, describe_run

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to measure, and how."""

    shapes: tuple[str, ...] = ("smol",)
    """Names of shapes, or checkpoint folders."""
    lengths: tuple[int, ...] = (1024, 4096)
    """Source tokens of a context."""
    methods: tuple[str, ...] = ("raw", "octavo")
    ratios: tuple[int, ...] = (4, 8, 16)
    """For every method but raw."""
    repeats: int = 3
    questions: int = 3
    """About one context: the first one is answered, the others up to their first token."""
    question_tokens: int = 64
    new_tokens: int = 32
    """Of the answer; the first is part of the time to first token."""
    batch: int = 0
    """Questions asked in one call, and once more one by one; 0 leaves that out."""
    chunk: int = PREFILL_POSITIONS
    """Positions that the decoder reads at once."""
    encode_batch: int | None = None
    """Source tokens that the encoder reads at once."""
    attention: str | None = None
    """By default `sdpa`, which the engine improves upon."""
    device: str | None = None
    dtype: str | None = None
    """By default bf16 on CUDA and fp32 elsewhere."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to measure."""
        for name in ("shapes", "lengths", "methods"):
            if not getattr(self, name):
                raise EvaluationError(f"no {name} were given; give at least one")
        least = {
            "lengths": 1, "repeats": 1, "questions": 2, "new_tokens": 2, "question_tokens": 1,
            "chunk": 1,
        }  # fmt: skip
        for name, smallest in least.items():
            given = getattr(self, name)
            value = min(given) if isinstance(given, tuple) else given
            if value < smallest:
                raise EvaluationError(f"{name} is {value}; give at least {smallest}")
        if not self.ratios and set(self.methods) != {"raw"}:
            raise EvaluationError("no ratios were given; give at least one, or --method raw alone")
        for method in self.methods:
            check_method(method)


@dataclass(frozen=True, slots=True)
class Trial:
    """One method at one ratio and one length."""

    shape: str
    length: int
    method: str
    ratio: int | None

    def key(self, repeat: int | None) -> tuple[Any, ...]:
        """Return the key of its row; what was skipped has one row, of no repeat."""
        return self.shape, self.length, self.method, self.ratio, repeat


def trials_of(settings: Settings, shape: Shape) -> list[Trial]:
    """Return what is measured, in order: what stands at one length is measured side by side."""
    trials = [
        Trial(shape.name, length, method, None if method == "raw" else ratio)
        for length in settings.lengths
        for method in settings.methods
        for ratio in settings.ratios or (None,)
    ]
    return list(dict.fromkeys(trials))


def run(settings: Settings, output: Path | None = None, progress: Progress = ignore) -> list[Row]:
    """Measure what `output` lacks, and return the rows of these settings.

    Shapes and lengths may be added to a file later; everything else must be as it was, the machine
    included. What does not fit into memory becomes a row that says so under `skipped`. Raises
    `EvaluationError` for settings that cannot be measured, or differ from the file's.
    """
    device = find_device(settings.device)
    dtype = parse_dtype(settings.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    shapes = [find_shape(name) for name in dict.fromkeys(settings.shapes)]
    for shape in shapes:
        check_ratios(shape, settings.ratios)
    about = _about(settings, device, dtype)
    with RowFile(output, MEASUREMENT, keeps=True) as rows, rows.claim(()) as claimed:
        if claimed is None:
            raise EvaluationError(
                f"another process is measuring into {output}; wait for it: two at once would slow "
                "each other down"
            )
        what, cure = (
            f"the rows of {output} were measured",
            "give -o another file, or the same settings to go on",
        )
        for row in rows.rows:
            before = {name: row.get(name) for name in about}
            refuse_change(before, about, EvaluationError, what=what, cure=cure)
        for shape in shapes:
            _Bench(settings, shape, device, dtype, rows, about).run(progress)
        wanted = {(shape.name, length) for shape in shapes for length in settings.lengths}
        return [row for row in rows.rows if (row["shape"], row["length"]) in wanted]


class _Bench:
    """The measurements of one shape."""

    def __init__(
        self,
        settings: Settings,
        shape: Shape,
        device: torch.device,
        dtype: torch.dtype,
        rows: RowFile,
        about: Row,
    ) -> None:
        self._settings, self._shape, self._device = settings, shape, device
        self._rows, self._about = rows, about
        longest = max(settings.lengths) + settings.question_tokens + settings.new_tokens + MARKS
        self._how: dict[str, Any] = {
            "ratios": settings.ratios, "positions": longest, "dtype": dtype,
            "attention": settings.attention or "sdpa", "seed": settings.seed,
        }  # fmt: skip
        self._floor = Floor(build(shape, device="meta", **self._how))

    def run(self, progress: Progress) -> None:
        """Measure what is missing; build the weights only if there is something to measure."""
        settings = self._settings
        trials = trials_of(settings, self._shape)
        for trial in self._missing(trials):
            if reason := self._misfit(trial):
                self._add(trial, None, {"skipped": reason})
        if not (missing := self._missing(trials)):
            return
        progress(f"building {self._shape.name}", 0, 0)
        lclm = self._or_skip(missing, lambda: build(self._shape, device=self._device, **self._how))
        if lclm is None:
            return
        engine = open_engine(lclm, prefill=settings.chunk, encode_batch=settings.encode_batch)
        for length in dict.fromkeys(trial.length for trial in missing):
            side_by_side = [trial for trial in missing if trial.length == length]
            self._measure(engine, lclm, length, side_by_side, progress)

    def _measure(
        self, engine: Engine, lclm: LCLM, length: int, trials: Sequence[Trial], progress: Progress
    ) -> None:
        """Measure all trials of a length, round by round; the first one is not kept."""
        gc.collect()  # once: it takes longer than a small measurement
        settings = self._settings
        source, *drawn = self._draw(length)
        questions, batched = drawn[: settings.questions], drawn[settings.questions :]
        rounds = [(repeat, trial) for repeat in range(settings.repeats + 1) for trial in trials]
        for done, (repeat, trial) in enumerate(rounds, 1):
            if not self._missing([trial]) or (repeat and self._rows.is_done(trial.key(repeat))):
                continue
            progress(f"{self._shape.name}, {length:,} tokens", done, len(rounds))
            work = partial(
                measure, engine, lclm, trial.method, trial.ratio or 1, source, questions, batched,
                settings.new_tokens,
            )  # fmt: skip
            measured = self._or_skip([trial], work)
            engine.forget()  # the next one begins anew, and what did not fit frees its memory
            if repeat and measured is not None:
                counted = self._count(trial, measured)
                self._add(trial, repeat, {**measured, **counted, "skipped": None})

    def _draw(self, length: int) -> list[list[int]]:
        """Return a context and questions of random ids, the same for every method and repeat."""
        generator = torch.Generator().manual_seed(self._settings.seed + length)
        num_questions = self._settings.questions + self._settings.batch
        sizes = [length] + [self._settings.question_tokens] * num_questions
        drawn = torch.randint(self._shape.vocabulary, (sum(sizes),), generator=generator)
        return [part.tolist() for part in drawn.split(sizes)]

    def _missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that were not skipped and do not have all their repeats."""

        def is_done(trial: Trial) -> bool:
            repeats = range(1, self._settings.repeats + 1)
            is_skipped = self._rows.is_done(trial.key(None))
            return is_skipped or all(self._rows.is_done(trial.key(repeat)) for repeat in repeats)

        return [trial for trial in trials if not is_done(trial)]

    def _add(self, trial: Trial, repeat: int | None, values: Row) -> None:
        key = dict(zip(MEASUREMENT.key, trial.key(repeat), strict=True))
        self._rows.append([{**key, **values, **self._about}])

    def _count(self, trial: Trial, measured: Row) -> Row:
        """Return what the measured work must cost at least."""
        floor, asked = self._floor, self._settings.question_tokens
        compress, positions = 0, trial.length
        if trial.method == "octavo":
            compress = floor.compress_flops(trial.length, trial.ratio or 1)
            positions = measured["latents"] + MARKS
        held = measured["kept_positions"]
        next_flops = floor.question_flops(asked, past=held)
        # Of the tokens after the first, the middle one stands for all: costs rise linearly.
        middle = held + asked + measured["decode_tokens"] / 2
        return {
            "flops": compress + floor.read_flops(positions) + next_flops,
            "compress_flops": compress,
            "next_flops": next_flops,
            "decode_bytes": floor.decode_bytes(round(middle)),
            "weight_bytes": floor.weight_bytes,
        }

    def _or_skip(self, trials: Sequence[Trial], work: Callable[[], Any]) -> Any:
        """Return what `work` does, or skip `trials` and return None when memory runs out."""
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler: the traceback no longer holds what the work had made.
        for trial in trials:
            self._add(trial, None, {"skipped": OUT_OF_MEMORY})
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _misfit(self, trial: Trial) -> str | None:
        """Return why a trial cannot fit, from its weights and what its cache holds at the end."""
        memory = memory_of(self._device)
        held = -(-trial.length // (trial.ratio or 1))
        positions = held + self._settings.question_tokens + self._settings.new_tokens
        cache, weights = self._floor.kv_bytes * positions, self._floor.weight_bytes
        if memory is None or cache + weights <= memory:
            return None
        return (
            f"{OUT_OF_MEMORY}: {cache / 1e9:.1f} GB of KV cache and {weights / 1e9:.1f} GB of "
            f"weights exceed {memory / 1e9:.1f} GB"
        )


def _about(settings: Settings, device: torch.device, dtype: torch.dtype) -> Row:
    """Return what every row of a file has in common."""
    given = asdict(settings)
    del given["shapes"], given["lengths"]  # more of them may be added
    return {
        **given,
        "methods": list(settings.methods),
        "ratios": list(settings.ratios),
        "attention": settings.attention or "sdpa",
        "reader": "LocalEngine",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": str(dtype).removeprefix("torch."),
        **describe_run(),
    }
