"""Measure every method at every length, in turn, and keep a row for each measurement.

At one length all methods are measured once, then all again: what warms up, throttles or disturbs
the machine disturbs them alike. The first round warms up and is not kept.
"""

import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import octavo
from octavo.costs import MARKS, Floor
from octavo.errors import EvaluationError
from octavo.machine import describe_machine, find_device, is_out_of_memory, memory_of, parse_dtype
from octavo.nn.encoder import ENCODE_BATCH_TOKENS
from octavo_evals.bench.measure import Reader, check_method, measure
from octavo_evals.bench.rows import Row, Rows
from octavo_evals.bench.shapes import LOWER_RIGHT, Shape, build, check_ratios, find_shape

Report = Callable[[str, int, int], None]
"""Called as `report(what, done, total)`."""
OUT_OF_MEMORY = "out of memory"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
    chunk: int = 8192
    """Positions that the decoder reads at once."""
    encode_batch: int = ENCODE_BATCH_TOKENS
    """Source tokens that the encoder reads at once."""
    attention: str | None = None
    """By default the fastest that every torch has: `sdpa`, on CUDA with chunks but no mask."""
    device: str | None = None
    dtype: str | None = None
    """By default bf16 on CUDA and fp32 elsewhere."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, naming the option."""
        for name in ("shapes", "lengths", "methods"):
            if not getattr(self, name):
                raise EvaluationError(f"no {name} were given; give at least one")
        if not self.ratios and set(self.methods) != {"raw"}:
            raise EvaluationError("no ratios were given; give at least one, or --method raw alone")
        least = {"repeats": 1, "questions": 2, "new_tokens": 2}
        for name in (
            "repeats", "questions", "question_tokens", "new_tokens", "chunk", "encode_batch",
        ):  # fmt: skip
            if getattr(self, name) < least.get(name, 1):
                option = name.replace("_", "-")
                raise EvaluationError(
                    f"--{option} is {getattr(self, name)}; give at least {least.get(name, 1)}"
                )
        for name in ("lengths", "ratios"):
            if min(getattr(self, name), default=1) < 1:
                raise EvaluationError(f"{name} are {getattr(self, name)}; give numbers above 0")
        for method in self.methods:
            check_method(method)


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one ratio and one length."""

    method: str
    ratio: int | None
    length: int

    def key(self, shape: str, repeat: int | None) -> tuple[Any, ...]:
        """Return what tells its rows apart; a skipped cell has one row, of no repeat."""
        return shape, self.length, self.method, self.ratio, repeat


def cells_of(settings: Settings, length: int) -> list[Cell]:
    """Return what is measured side by side at one length, in order."""
    ratios: dict[str, tuple[int | None, ...]] = {"raw": (None,)}
    return [
        Cell(method, ratio, length)
        for method in dict.fromkeys(settings.methods)
        for ratio in ratios.get(method, tuple(dict.fromkeys(settings.ratios)))
    ]


def key_of(row: Row) -> tuple[Any, ...]:
    """Return the key of a row, as `Cell.key` does."""
    return tuple(row[name] for name in ("shape", "length", "method", "ratio", "repeat"))


def run(settings: Settings, output: Path | None = None, report: Report | None = None) -> list[Row]:
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
    attention = settings.attention or (LOWER_RIGHT if device.type == "cuda" else "sdpa")
    about = _about(settings, device, dtype, attention)
    with Rows(output, about) as rows:
        for shape in shapes:
            _Bench(settings, shape, device, dtype, attention, rows, report or _ignore).run()
        wanted = {shape.name for shape in shapes}
        lengths = set(settings.lengths)
        return [row for row in rows.rows if row["shape"] in wanted and row["length"] in lengths]


class _Bench:
    """The measurements of one shape."""

    def __init__(
        self,
        settings: Settings,
        shape: Shape,
        device: torch.device,
        dtype: torch.dtype,
        attention: str,
        rows: Rows,
        report: Report,
    ) -> None:
        self._settings, self._shape, self._rows, self._report = settings, shape, rows, report
        self._device = device
        longest = max(settings.lengths) + settings.question_tokens + settings.new_tokens + MARKS
        self._how: dict[str, Any] = {
            "ratios": settings.ratios, "positions": longest, "dtype": dtype,
            "attention": attention, "seed": settings.seed,
        }  # fmt: skip
        self._floor = Floor(build(shape, device="meta", **self._how))
        self._cells = {
            length: cells_of(settings, length) for length in dict.fromkeys(settings.lengths)
        }

    def run(self) -> None:
        """Measure what is missing; build the weights only if there is something to measure."""
        for cells in self._cells.values():
            for cell in cells:
                reason = self._misfit(cell)
                if reason and not self._is_done(cell):
                    self._skip(cell, reason)
        if all(self._is_done(cell) for cells in self._cells.values() for cell in cells):
            return
        self._report(f"building {self._shape.name}", 0, 0)
        reader = self._or_skip(self._reader, *(c for cells in self._cells.values() for c in cells))
        if reader is not None:
            for length, cells in self._cells.items():
                self._measure(reader, length, cells)

    def _reader(self) -> Reader:
        lclm = build(self._shape, device=self._device, **self._how)
        settings = self._settings
        return Reader(lclm, chunk=settings.chunk, encode_batch=settings.encode_batch)

    def _measure(self, reader: Reader, length: int, cells: list[Cell]) -> None:
        """Measure all cells of a length, round by round."""
        done = 0
        missing = [cell for cell in cells if not self._is_done(cell)]
        if not missing:
            return
        gc.collect()  # once: it takes longer than a small measurement
        source, questions = self._draw(length)
        total = len(missing) * (self._settings.repeats + 1)
        for repeat in range(self._settings.repeats + 1):
            for cell in missing:
                done += 1
                if self._is_done(cell) or (repeat and self._has(cell, repeat)):
                    continue
                self._report(f"{self._shape.name}, {length:,} tokens", done, total)
                measured = self._or_skip(
                    lambda cell=cell: measure(  # type: ignore[misc]
                        reader, cell.method, cell.ratio or 1, source, questions,
                        self._settings.new_tokens,
                    ),
                    cell,
                )  # fmt: skip
                if repeat and measured is not None:
                    self._keep(cell, repeat, measured)

    def _draw(self, length: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return a context and questions of random ids, the same for every method and repeat."""
        generator = torch.Generator().manual_seed(self._settings.seed + length)
        sizes = [length] + [self._settings.question_tokens] * self._settings.questions
        drawn = torch.randint(self._shape.vocabulary, (sum(sizes),), generator=generator)
        source, *questions = drawn.to(self._device).split(sizes)
        return source, questions

    # -- rows ------------------------------------------------------------------------------------

    def _has(self, cell: Cell, repeat: int | None) -> bool:
        wanted = cell.key(self._shape.name, repeat)
        return any(key_of(row) == wanted for row in self._rows.rows)

    def _is_done(self, cell: Cell) -> bool:
        """Whether nothing of a cell is missing: it was skipped, or has all its repeats."""
        repeats = range(1, self._settings.repeats + 1)
        return self._has(cell, None) or all(self._has(cell, repeat) for repeat in repeats)

    def _keep(self, cell: Cell, repeat: int, measured: dict[str, Any]) -> None:
        floor, asked = self._floor, self._settings.question_tokens
        compress = 0
        positions = cell.length
        if cell.method == "octavo":
            assert cell.ratio is not None
            compress = floor.compress_flops(cell.length, cell.ratio)
            positions = measured["latents"] + MARKS
        held = measured["kept_positions"]
        next_flops = floor.question_flops(asked, past=held)
        # Of the tokens after the first, the middle one stands for all: costs rise linearly.
        middle = held + asked + measured["decode_tokens"] / 2
        self._rows.add(
            self._head(cell, repeat)
            | measured
            | {
                "flops": compress + floor.read_flops(positions) + next_flops,
                "compress_flops": compress,
                "next_flops": next_flops,
                "decode_bytes": floor.decode_bytes(round(middle)),
                "weight_bytes": floor.weight_bytes,
                "skipped": None,
            }
        )

    def _skip(self, cell: Cell, reason: str) -> None:
        nothing = dict.fromkeys(("compress_seconds", "first_seconds", "next_seconds"))
        self._rows.add(self._head(cell, None) | nothing | {"skipped": reason})

    def _head(self, cell: Cell, repeat: int | None) -> Row:
        return {
            "shape": self._shape.name, "method": cell.method, "ratio": cell.ratio,
            "length": cell.length, "repeat": repeat,
        }  # fmt: skip

    # -- memory ----------------------------------------------------------------------------------

    def _or_skip(self, work: Callable[[], Any], *cells: Cell) -> Any:
        """Return what `work` does, or skip `cells` and return None when memory runs out."""
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler: the traceback no longer holds what the work had made.
        for cell in cells:
            if not self._is_done(cell):
                self._skip(cell, OUT_OF_MEMORY)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _misfit(self, cell: Cell) -> str | None:
        """Return why a cell cannot fit, from its weights and what its cache holds at the end."""
        memory = memory_of(self._device)
        if memory is None:
            return None
        held = cell.length if cell.ratio is None else -(-cell.length // cell.ratio)
        positions = held + self._settings.question_tokens + self._settings.new_tokens
        cache, weights = self._floor.kv_bytes * positions, self._floor.weight_bytes
        if cache + weights <= memory:
            return None
        sizes = [f"{size / 1e9:.1f} GB" for size in (cache, weights, memory)]
        return "{}: {} of KV cache and {} of weights exceed {}".format(OUT_OF_MEMORY, *sizes)


def _about(
    settings: Settings, device: torch.device, dtype: torch.dtype, attention: str
) -> dict[str, Any]:
    """Return what every row of a file has in common."""
    is_cuda = device.type == "cuda"
    return {
        "methods": list(settings.methods),
        "ratios": list(settings.ratios),
        "repeats": settings.repeats,
        "questions": settings.questions,
        "question_tokens": settings.question_tokens,
        "new_tokens": settings.new_tokens,
        "chunk": settings.chunk,
        "encode_batch": settings.encode_batch,
        "attention": attention,
        "cache": "transformers DynamicCache",
        "seed": settings.seed,
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
        "versions": {
            "octavo": octavo.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _ignore(what: str, done: int, total: int) -> None:
    """Report to nobody."""
