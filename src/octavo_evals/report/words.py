"""Say in sentences what the numbers show: what is lost, what is gained, against what."""

from collections.abc import Sequence

from octavo_evals.report.read import Reading
from octavo_evals.report.statistics import Estimate
from octavo_evals.report.summary import SUBJECT, Board, Difference, Summary, split_label
from octavo_evals.report.tables import percent, seconds, size

CONTROLS = ("full", "none", "identity", "shuffled")
"""Not rivals: nobody would use them instead."""
HOW_TO_READ = (
    "Intervals are 95% percentile-bootstrap intervals over items (2,000 samples, fixed seed); in a "
    "mean over tasks, items are resampled within their task. They say how far other items of the "
    "same kind might move the number; a second model or training run is not in them. An interval "
    "without width means that all answers scored alike, not that the number is certain.",
    "Items that share a context are resampled one by one, which makes the intervals of such tasks "
    "somewhat too narrow. Differences are marked one by one, with no correction for their number.",
    "A method that only masks keys answers as if its cache were smaller, but holds the full cache: "
    "its bytes are the ones it really holds.",
    "Skipped rows (the prompt does not fit, or the method cannot serve the item) have no score and "
    "are in no mean. Empty answers are scored as they are, and counted.",
)


def find_main_board(boards: Sequence[Board]) -> Board:
    """Return the board to speak of first: of the most tasks, then the longest."""
    return max(boards, key=lambda board: (len(board.tasks), board.length or 0, not board.name))


def make_headlines(summary: Summary) -> list[str]:
    """Return a sentence on each ratio of the subject, and what else must be said first."""
    board = find_main_board(summary.boards)
    ours = [label for label in board.labels if split_label(label)[0] == SUBJECT]
    said = [_headline(board, label, summary) for label in ours if label in board.means]
    if not said:
        best = sorted(board.means, key=lambda label: -board.means[label].score.value)
        told = ", ".join(f"{label} {board.means[label].score.value:.1f}%" for label in best[:4])
        return [f"No {SUBJECT} answers on {board.title}. Its scores: {told or 'none'}."]
    return said


def _headline(board: Board, label: str, summary: Summary) -> str:
    mean = board.means[label].score
    text = f"{label} scores {_bracket(mean)} on {board.title}"
    if "full" in board.means:
        text += f"; the uncompressed text scores {_bracket(board.means['full'].score)}"
    if "none" in board.means:
        text += f", no text {board.means['none'].score.value:.1f}%"
    found = {o.rival: o for o in summary.differences if o.ours == label and o.board == board.title}
    parts = [f"{text}."]
    if lost := found.get("full"):
        parts.append(_loss(lost))
    if kept := board.retention.get(label):
        parts.append(f"It keeps {_bracket(kept)} of what the context is worth.")
    if gain := _gain(board, label):
        parts.append(gain)
    rivals = [one for one in found.values() if split_label(one.rival)[0] not in CONTROLS]
    if rivals:
        parts.append(_against(rivals, summary.masked))
    return " ".join(parts)


def _loss(difference: Difference) -> str:
    points = difference.points
    if not difference.is_clear:
        return f"The difference of {_bracket(points, ' points', is_signed=True)} is not clear."
    if points.value > 0:
        return f"It gains {_bracket(points, ' points')}."
    low, high = points.low, points.high
    lost = Estimate(value=-points.value, low=None, high=None, n=points.n)
    if low is not None and high is not None:
        lost = Estimate(value=-points.value, low=-high, high=-low, n=points.n)
    return f"It loses {_bracket(lost, ' points')}."


def _gain(board: Board, label: str) -> str:
    cost, full = board.costs[label], board.costs.get("full")
    if full is None:
        return ""
    told = []
    if cost.speed_up and cost.first_ttft_seconds and full.first_ttft_seconds:
        ratio = cost.speed_up.median
        how = f"{ratio:.2f}x sooner" if ratio >= 1 else f"{1 / ratio:.2f}x later"
        told.append(
            f"its first token comes {how} ({seconds(cost.first_ttft_seconds.median)} s, "
            f"not {seconds(full.first_ttft_seconds.median)} s)"
        )
    if cost.cache_bytes and full.cache_bytes and cost.cache_bytes.median > 0:
        told.append(
            f"the context's cache takes {size(cost.cache_bytes.median)}, "
            f"not {size(full.cache_bytes.median)}"
        )
    text = " and ".join(told)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _against(rivals: Sequence[Difference], masked: Sequence[str]) -> str:
    def listed(some: Sequence[Difference]) -> str:
        def one(rival: Difference) -> str:
            mark = ", masks only" if rival.rival in masked else ""
            shown = percent(rival.points, is_signed=True)
            return f"{rival.rival} ({shown.text}{mark})"

        return ", ".join(one(rival) for rival in some)

    ordered = sorted(rivals, key=lambda rival: rival.points.value)
    ahead = [r for r in ordered if r.is_clear and r.points.value < 0]
    behind = [r for r in reversed(ordered) if r.is_clear and r.points.value > 0]
    level = [r for r in ordered if not r.is_clear]
    parts = [
        f"{words} {listed(some)}"
        for words, some in (
            ("clearly worse than", ahead),
            ("clearly better than", behind),
            ("not clearly different from", level),
        )
        if some
    ]
    return f"At the same ratio it is {'; '.join(parts)}."


def _bracket(estimate: Estimate, unit: str = "%", *, is_signed: bool = False) -> str:
    shown = percent(estimate, is_signed=is_signed)
    return f"{shown.text}{unit} [{shown.detail}]" if shown.detail else f"{shown.text}{unit}"


def make_notes(summary: Summary, reading: Reading) -> list[str]:
    """Return what a reader must know of these rows."""
    notes = list(reading.notes)
    for name, what in (("machine", "machines"), ("device", "devices"), ("dtype", "number formats")):
        values = summary.settings.get(name, ())
        if len(values) > 1:
            notes.append(
                f"Rows come from several {what} ({', '.join(values)}): their times do not compare, "
                "and “faster” takes only rows of the same one."
            )
    for reason, count in summary.skipped.items():
        notes.append(f"{count:,} rows were skipped: {reason}.")
    short = [
        f"{label} on {board.title}"
        for board in summary.boards
        for label, mean in board.means.items()
        if mean.num_tasks < len(board.tasks)
    ]
    if short:
        notes.append(f"Not all tasks were answered, so the mean is of some: {', '.join(short)}.")
    return [*notes, *HOW_TO_READ]


def describe_settings(summary: Summary, reading: Reading) -> list[tuple[str, str]]:
    """Return what rows and `run.json` say of how they were made, as names and values."""
    told = [("model", summary.model), ("fingerprint", summary.fingerprint or "—")]
    told.append(("seed", str(reading.seed)))
    told += [(name, ", ".join(values)) for name, values in summary.settings.items()]
    for name, settings in reading.runs:
        for key, value in sorted(settings.items()):
            told.append((f"{name}: {key}", _plain(value)))
    return told


def _plain(value: object) -> str:
    if value is None or value in ({}, []):
        return "—"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(one)}" for key, one in sorted(value.items()))
    if isinstance(value, list | tuple):
        return " ".join(_plain(one) for one in value)
    return str(value)
