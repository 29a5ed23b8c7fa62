"""Draw the pictures of a report, each as PNG and SVG with nothing that varies between runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from octavo.errors import MissingExtraError
from octavo.files import write_file
from octavo_evals.report.canvas import DPI, STYLE
from octavo_evals.report.curves import (
    PAPER_METHODS,
    draw_over_length,
    draw_over_position,
    draw_over_ratio,
)
from octavo_evals.report.frontier import draw_frontier, draw_heatmap
from octavo_evals.report.marks import Line
from octavo_evals.report.summary import Board, Summary
from octavo_evals.report.tables import PAPER_TITLES, seconds, size


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture in the report's folder."""

    stem: str
    title: str
    caption: str


def draw(
    summary: Summary, paper: Mapping[str, Any], folder: Path, prefix: str = ""
) -> list[Picture]:
    """Draw every picture that the numbers allow; stems begin with `prefix`.

    Raises `MissingExtraError` where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "a report's pictures need matplotlib: pip install 'octavo[eval]'"
        ) from error
    plans: list[tuple[Picture, Callable[[], Any]]] = []
    wide = [board for board in summary.boards if len(board.tasks) > 1]
    for board in wide or [b for b in summary.boards if not b.is_likelihood]:
        plans += _plan_board(summary, board, paper)
    plans += _plan_curves(summary, paper)
    pictures = []
    with matplotlib.rc_context(STYLE):
        for plan, make in plans:
            picture = Picture(stem=prefix + plan.stem, title=plan.title, caption=plan.caption)
            figure = make()
            if figure is None:
                continue
            _save(figure, folder / picture.stem)
            pictures.append(picture)
    return pictures


def _save(figure: Any, stem: Path) -> None:
    facts: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }
    for kind, metadata in facts.items():
        save = partial(figure.savefig, format=kind, dpi=DPI, metadata=metadata)
        write_file(stem.with_name(f"{stem.name}.{kind}"), save)


def _plan_board(
    summary: Summary, board: Board, paper: Mapping[str, Any]
) -> list[tuple[Picture, Callable[[], Any]]]:
    timed = _paper_ttft(board, paper)
    setup = f" Faint grey: the paper, {paper['setup']['decoder']} on an H200, for reference only."
    slug = board.key.replace("@", "-").replace("/", "-")
    shared = (
        "Up and to the left is better. Lines join the ratios of a method, the largest mark being "
        "the smallest ratio; bars are 95% intervals (score) and quartiles (cost)."
    )
    plans = [
        (
            Picture(
                stem=f"frontier-ttft-{slug}",
                title=f"{board.title}: score against time to the first token",
                caption=f"{shared} Time counts compression and prefill of a first question."
                + (setup if timed else ""),
            ),
            lambda: draw_frontier(
                summary, board, lambda cost: cost.first_ttft_seconds,
                "seconds to the first token of the first question, compression included", seconds,
                timed,
            ),
        ),
        (
            Picture(
                stem=f"frontier-bytes-{slug}",
                title=f"{board.title}: score against bytes held",
                caption=f"{shared} Bytes are those of the KV cache that is physically held for the "
                "context, ready for the next question; (masks) marks methods that mask keys and "
                "hold the full cache.",
            ),
            lambda: draw_frontier(
                summary, board, lambda cost: cost.cache_bytes,
                "bytes of KV cache held for the context", size,
            ),
        ),
    ]  # fmt: skip
    if len(board.tasks) > 1:
        picture = Picture(
            stem=f"tasks-{slug}",
            title=f"{board.title}: score by task",
            caption="Mean score in percent; — is a task without answers.",
        )
        plans.append((picture, lambda: draw_heatmap(summary, board)))
    return plans


def _plan_curves(
    summary: Summary, paper: Mapping[str, Any]
) -> list[tuple[Picture, Callable[[], Any]]]:
    setup = f"{paper['setup']['decoder']}, arXiv {paper['source']['arxiv']}, Table 6"
    return [
        (
            Picture(
                stem="ratio",
                title="Score over ratio",
                caption="Bars are 95% intervals. Faint grey: the paper's numbers at its nearest "
                f"length ({setup}): another scale, for reference only.",
            ),
            lambda: draw_over_ratio(summary, paper),
        ),
        (
            Picture(
                stem="length",
                title="Score over length",
                caption="A panel a ratio; methods without a ratio are in each. Bars are 95% "
                "intervals.",
            ),
            lambda: draw_over_length(summary),
        ),
        (
            Picture(
                stem="position",
                title="Reconstruction over position",
                caption="Token accuracy in each quarter of the text that was compressed.",
            ),
            lambda: draw_over_position(summary),
        ),
    ]


def _paper_ttft(board: Board, paper: Mapping[str, Any]) -> list[tuple[str, Line]]:
    """Return the paper's points where it timed the same length; elsewhere the axis is not its."""
    times, length = paper["ttft_seconds"], str(board.length)
    if board.name != "ruler" or board.key not in PAPER_TITLES:
        return []
    ours = [(f"lclm@{r}", f"lclm@{r}") for r in (4, 8, 16)]
    rivals = [[(method, f"{method}@{r}") for r in (4, 8, 16)] for method in ("kvzip", "snapkv")]
    return [
        (
            f"paper: {PAPER_METHODS[steps[0][1].split('@')[0]]}",
            [(times[timed][length], paper["scores"][label][board.key]) for timed, label in steps],
        )
        for steps in (ours, *rivals)
    ]
