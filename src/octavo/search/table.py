"""Rank the variants of a search, beside the paper where it ranked them too.

A mean over seeds has a 95% interval by Student's t; how far a variant is behind the best is taken
seed by seed, since two runs of one seed read the same rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from octavo.config import read_json
from octavo.errors import MissingExtraError
from octavo.files import write_text
from octavo.search.grid import Grid, Variant
from octavo.search.pictures import draw
from octavo.search.runs import list_runs

# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond, those of the normal.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.96
_PAPER = "The loss column of the paper is of arXiv 2606.09659 (Fig. 3 and Figs. 8-11)."


def write_table(grid: Grid, folder: Path, failed: Mapping[str, str]) -> Path:
    """Write `table.json` and `table.md`, and the pictures where matplotlib is installed."""
    rows = rank(grid, folder)
    write_text(folder / "table.json", json.dumps(rows, indent=1) + "\n")
    lines = [_markdown(rows), *_agreement(rows)]
    for name, why in sorted(failed.items()):
        lines.append(f"- failed: `{name}`: {why}")
    try:
        lines += [f"![{name}]({name}.png)" for name in draw(rows, folder)]
    except MissingExtraError as error:
        lines.append(f"There are no pictures: {error}")
    write_text(folder / "table.md", "\n\n".join(lines) + "\n")
    return folder / "table.md"


def rank(grid: Grid, folder: Path) -> list[dict[str, Any]]:
    """Return a row a variant, the lowest loss first; those without a finished run are last."""
    found: dict[str, dict[int, dict[str, Any]]] = {one.name: {} for one in grid.variants}
    for run in list_runs(grid, folder):
        if run.is_over:
            found[run.variant.name][run.seed] = read_json(run.folder / "result.json")
    rows = [_row(one, found[one.name]) for one in grid.variants]
    rows.sort(key=lambda row: (row["loss"] is None, row["loss"] and row["loss"][0], row["variant"]))
    best = found[rows[0]["variant"]] if rows else {}
    for row in rows:
        own = found[row["variant"]]
        shared = [own[seed]["loss"] - best[seed]["loss"] for seed in own if seed in best]
        row["behind"] = _interval(shared)
    return rows


def _row(variant: Variant, runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    any_run: Mapping[str, Any] = next(iter(runs.values()), {})
    curves = [run["curve"] for run in runs.values()]
    return {
        "variant": variant.name,
        "paper": variant.paper,
        "seeds": sorted(runs),
        "loss": _interval([run["loss"] for run in runs.values()]),
        "kept": _interval([_kept(run["kinds"].values()) for run in runs.values()]),
        **{key: any_run.get(key) for key in ("ratio", "latents", "encoder_gflops", "steps")},
        "curve": [round(fmean(points), 6) for points in zip(*curves, strict=False)],
    }


def _kept(kinds: Any) -> float:
    """Return the part of what raw text gains over nothing that latents keep, over all kinds."""
    none, raw, own = (sum(kind[view] for kind in kinds) for view in ("none", "raw", "latents"))
    return (none - own) / (none - raw) if none > raw else math.nan


def _interval(values: Sequence[float]) -> list[float | None] | None:
    """Return mean, low and high; no interval from a single value, and None without any."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count == 1:
        return [round(mean, 6), None, None]
    quantile = _T[count - 2] if count - 2 < len(_T) else _NORMAL
    half = quantile * stdev(values) / math.sqrt(count)
    return [round(mean, 6), round(mean - half, 6), round(mean + half, 6)]


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    has_paper = any(row["paper"] is not None for row in rows)
    head = ["", "variant", "held-out loss", "behind the best", "kept of raw", "encoder GFLOPs",
            "latents", "seeds", *(["paper's loss"] if has_paper else [])]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for place, row in enumerate(rows, 1):
        paper = "" if row["paper"] is None else f"{row['paper']:g}"
        cells = [
            str(place) if row["loss"] else "-",
            row["variant"],
            *(_shown(row[key]) for key in ("loss", "behind", "kept")),
            "" if row["encoder_gflops"] is None else f"{row['encoder_gflops']:.1f}",
            "" if row["latents"] is None else f"{row['latents']:,}",
            str(len(row["seeds"])),
            *([paper] if has_paper else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(interval: Sequence[float | None] | None) -> str:
    if not interval:
        return ""
    mean, low, high = interval
    return f"{mean:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _agreement(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in how many pairs that both ranked the order is the paper's."""
    both = [row for row in rows if row["paper"] is not None and row["loss"]]
    pairs = [(one, other) for one, other in combinations(both, 2) if one["paper"] != other["paper"]]
    if not pairs:
        return []
    same = sum(one["paper"] < other["paper"] for one, other in pairs)
    return [f"Of {len(pairs)} pairs that the paper ranked too, {same} are in its order. {_PAPER}"]
