"""Say in a few sentences what the numbers show: what is lost, what is gained, against what."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo_evals.methods import find_entry, split_label
from octavo_evals.report.numbers import SUBJECT, Board, Findings
from octavo_evals.report.read import Evaluation
from octavo_evals.report.tables import percent, seconds, size

TITLE = "What context compression loses, and what it gains"
HOW_TO_READ = (
    "Intervals are 95% percentile-bootstrap intervals (2,000 samples, fixed seed) over contexts: "
    "questions about one context are drawn together, tasks apart from one another. They say how "
    "far other contexts of the same kind might move a number, not another model or training run; "
    "from fewer than about ten contexts they come out too narrow, and one without width only says "
    "that all answers scored alike. Differences are judged one by one, without a correction for "
    "their number.",
    "A method that only masks keys answers as if its cache were smaller, but holds all of it: its "
    "bytes are those it holds.",
    "Skipped rows (the prompt does not fit, or the method cannot serve the item) have no score and "
    "are in no mean. Empty answers are scored as they are, and counted.",
)


def make_headlines(findings: Findings) -> list[str]:
    """Return a few sentences on each ratio of the subject, on the board of the most tasks."""
    board = max(findings.boards, key=lambda board: (len(board.tasks), board.length))
    means = {row.label: row for row in findings.rows("means", board=board.title)}
    headlines = [
        _headline(findings, board, label, means)
        for label in means
        if split_label(label)[0] == SUBJECT
    ]
    best = sorted(means, key=lambda label: -means[label].value)[:4]
    scores = ", ".join(f"{label} {means[label].value:.1f}%" for label in best)
    return headlines or [f"No {SUBJECT} answers on {board.title}. Its scores: {scores or 'none'}."]


def _headline(findings: Findings, board: Board, label: str, means: Mapping[str, Any]) -> str:
    text = f"{label} scores {_bracket(means[label])} on {board.title}"
    if "raw" in means:
        text += f"; raw text scores {_bracket(means['raw'])}"
    if "none" in means:
        text += f", no text {means['none'].value:.1f}%"
    differences = findings.rows("differences", board=board.title, ours=label)
    found = {row.rival: row for row in differences}
    rivals = [row for row in differences if not find_entry(split_label(row.rival)[0]).is_control]
    sentences = [text]
    sentences += [_loss(found["raw"])] if "raw" in found else []
    sentences += _gain(findings, board, label)
    sentences += [_against(rivals)] if rivals else []
    return " ".join(f"{sentence}." for sentence in sentences)


def _loss(row: Any) -> str:
    if not row.is_clear:
        return f"The difference of {_bracket(row, ' points', is_signed=True)} is not clear"
    if row.value > 0:
        return f"It gains {_bracket(row, ' points')}"
    lost = row._replace(value=-row.value, low=-row.high, high=-row.low)
    return f"It loses {_bracket(lost, ' points')}"


def _gain(findings: Findings, board: Board, label: str) -> Iterator[str]:
    costs = findings.rows("costs", board=board.title)
    held = {(row.label, row.measure): row.median for row in costs}
    if (label, "speed_up") in held:
        faster = held[label, "speed_up"]
        how = f"{faster:.2f}x sooner" if faster >= 1 else f"{1 / faster:.2f}x later"
        ours, raw = (seconds(held[one, "first_ttft_seconds"]) for one in (label, "raw"))
        yield f"Its first token comes {how} ({ours} s, not {raw} s)"
    if held.get((label, "cache_bytes")) and ("raw", "cache_bytes") in held:
        ours, raw = (size(held[one, "cache_bytes"]) for one in (label, "raw"))
        yield f"The context's cache takes {ours}, not {raw}"


def _against(rivals: Sequence[Any]) -> str:
    ordered = sorted(rivals, key=lambda row: -abs(row.value))
    groups = {
        "clearly worse than": [row for row in ordered if row.is_clear and row.value < 0],
        "clearly better than": [row for row in ordered if row.is_clear and row.value > 0],
        "not clearly different from": [row for row in ordered if not row.is_clear],
    }
    parts = [
        f"{words} {', '.join(f'{row.rival} ({percent(row, is_signed=True).text})' for row in some)}"
        for words, some in groups.items()
        if some
    ]
    return f"At the same ratio it is {'; '.join(parts)}"


def _bracket(row: Any, unit: str = "%", *, is_signed: bool = False) -> str:
    shown = percent(row, is_signed=is_signed)
    return f"{shown.text}{unit} ({shown.detail})" if shown.detail else f"{shown.text}{unit}"


def make_notes(findings: Findings, evaluation: Evaluation) -> list[str]:
    """Return what a reader must know of these rows."""
    notes = list(evaluation.notes)
    for name in ("machine", "device", "dtype"):
        if len(values := findings.settings.get(name, ())) > 1:
            notes.append(
                f"The rows' {name} varies ({', '.join(values)}): their times do not compare, and "
                "“faster” takes only rows of the same one."
            )
    notes += [f"{count:,} rows were skipped: {why}." for why, count in findings.skipped.items()]
    return [*notes, *HOW_TO_READ]


def describe_settings(findings: Findings, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return what rows and `run.json` say of how they were made, as names and values."""
    facts = [("model", findings.model), ("fingerprint", findings.fingerprint or "—")]
    facts += [(name, ", ".join(values)) for name, values in findings.settings.items()]
    for folder, settings in evaluation.runs:
        for key, value in sorted(settings.items()):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            facts.append((f"{folder}: {key}", text))
    return facts
