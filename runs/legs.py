"""Check that the legs of kept training join, and draw their held-out curves in one picture.

A leg joins where its log has every step once, whatever was killed and resumed, and where it began
from the export of the leg before. Exits with 1, saying where, if one does not.

    python runs/legs.py runs/smol docs/images/legs.png
"""

import argparse
import json
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from octavo.search.pictures import STYLE

KINDS = {"reconstruction": "copying", "needle": "needles", "qa": "questions"}


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the start, steps, resumptions and measurements of each leg with a log, in order."""
    legs = []
    begun = [log.parent for log in folder.glob("leg-*/log.jsonl")]
    for leg in sorted(begun, key=lambda one: int(one.name.split("-")[1])):
        lines = [json.loads(line) for line in (leg / "log.jsonl").read_text().splitlines()]
        start, _, steps = (leg / "leg").read_text().split()
        legs.append(
            {
                "name": leg.name,
                "start": start,
                "wanted": int(steps),
                "steps": [line["step"] for line in lines if "loss" in line],
                "resumed": [line["step"] for line in lines if line.get("resumed")],
                "measured": {
                    line["step"]: line["measured"] for line in lines if "measured" in line
                },
                "hours": sum(line["seconds"] for line in lines if "loss" in line) / 3600,
            }
        )
    return legs


def breaks(legs: list[dict[str, Any]]) -> list[str]:
    """Return where the legs do not join."""
    found = [
        f"{leg['name']} has steps {leg['steps']}"
        for leg in legs
        if leg["steps"] != list(range(1, len(leg["steps"]) + 1))
    ]
    for before, leg in pairwise(legs):
        if f"{before['name']}/" not in leg["start"] or len(before["steps"]) != before["wanted"]:
            found.append(
                f"{leg['name']} began from {leg['start']}, not where {before['name']} ended"
            )
    return found


def held_out(leg: dict[str, Any]) -> str:
    """Say from where to where the held-out loss went, averaged over kinds and ratios."""
    if not leg["measured"]:
        return "nothing measured"
    ends = [leg["measured"][step] for step in (min(leg["measured"]), max(leg["measured"]))]
    losses = [[views["latents"]["loss"][0] for views in end.values()] for end in ends]
    first, last = (sum(some) / len(some) for some in losses)
    return f"held-out loss {first:.3f} to {last:.3f}"


def draw(legs: list[dict[str, Any]]) -> Figure:
    """Draw the held-out loss of every kind and ratio over the steps of all legs."""
    ends = list(accumulate((len(leg["steps"]) for leg in legs), initial=0))
    curves: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for before, leg in zip(ends, legs, strict=False):
        for step, measured in leg["measured"].items():
            for at, views in measured.items():
                kind, ratio = at.split("/")
                point = (before + step, *views["latents"]["loss"])
                curves.setdefault((kind, int(ratio)), []).append(point)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        for place, (kind, label) in enumerate(KINDS.items(), 1):
            axes = figure.add_subplot(1, len(KINDS), place)
            for ratio in sorted(ratio for its_kind, ratio in curves if its_kind == kind):
                steps, loss, low, high = zip(*curves[kind, ratio], strict=True)
                (line,) = axes.plot(steps, loss, marker="o", markersize=3, label=f"{ratio}x")
                axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
            for end in ends[1:]:
                axes.axvline(end, color="#656d76", linewidth=0.8, linestyle=":")
            axes.set_title(label)
            axes.set_xlabel("step")
        figure.axes[0].set_ylabel("held-out loss")
        if curves:
            lines, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(lines, labels, loc="outside right center")
    return figure


def main() -> None:
    """Say a line about each leg, write the picture, and refuse legs that do not join."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    if not (legs := read(arguments.folder)):
        sys.exit(f"there are no legs in {arguments.folder}; runs/keep_training.sh makes them")
    for leg in legs:
        print(
            f"{leg['name']}: {len(leg['steps'])} of {leg['wanted']} steps "
            f"in {leg['hours']:.2f} hours, resumed after {leg['resumed'] or 'none'}, "
            f"from {leg['start']}; {held_out(leg)}"
        )
    if found := breaks(legs):
        sys.exit("the legs do not join: " + "; ".join(found))
    draw(legs).savefig(arguments.picture, dpi=130)


if __name__ == "__main__":
    main()
