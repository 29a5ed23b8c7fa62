"""Report evaluations: rows in, tables and pictures out, the same ones for the same rows.

read.py  ->  summary.py, costs.py (over statistics.py)  ->  tables.py, words.py, plots.py
                                                        ->  report.md, report.html, tables.json
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.errors import EvaluationError
from octavo.files import write_text
from octavo_evals.report.page import Section, to_html
from octavo_evals.report.plots import draw
from octavo_evals.report.read import Reading, read
from octavo_evals.report.summary import Summary, summarise
from octavo_evals.report.tables import make_tables, to_markdown
from octavo_evals.report.words import describe_settings, make_headlines, make_notes

PAPER = Path(__file__).parents[1] / "assets" / "paper" / "results.json"
UNITS = "scores, retention and differences in percent; times in seconds; sizes in bytes"


def write(folders: Sequence[Path], output: Path) -> list[str]:
    """Write the report of the rows in some folders, and return its headlines.

    `output` gets report.md, report.html, tables.json and the pictures; it is made if need be.
    Raises `EvaluationError` for rows that cannot be reported together, before it writes anything,
    and `MissingExtraError` without matplotlib.
    """
    reading = read(folders)
    summaries = summarise(reading)
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    if output.exists() and not output.is_dir():
        raise EvaluationError(f"-o {output} is a file; give a folder for the report")
    output.mkdir(parents=True, exist_ok=True)
    sections = []
    for summary, title, prefix in _name(summaries):
        sections.append(
            Section(
                title=title,
                headlines=make_headlines(summary),
                tables=make_tables(summary, paper),
                pictures=draw(summary, paper, output, prefix),
                settings=describe_settings(summary, reading),
                notes=make_notes(summary, reading),
            )
        )
    write_text(output / "tables.json", _to_json(reading, summaries))
    write_text(output / "report.md", _to_markdown(sections))
    write_text(output / "report.html", to_html(_TITLE, sections, output))
    return [text for section in sections for text in section.headlines]


_TITLE = "What context compression loses, and what it gains"


def _name(summaries: Sequence[Summary]) -> list[tuple[Summary, str, str]]:
    """Return each summary with a title and a prefix for its pictures; one alone needs no prefix."""
    models = Counter(summary.model for summary in summaries)
    named = []
    for summary in summaries:
        mark = f" ({summary.fingerprint[:8]})" if models[summary.model] > 1 else ""
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{summary.model}{mark}").strip("-.")
        prefix = f"{slug}-" if len(summaries) > 1 else ""
        named.append((summary, f"{summary.model}{mark}", prefix))
    return named


def _to_json(reading: Reading, summaries: Sequence[Summary]) -> str:
    told = {
        "units": UNITS,
        "seed": reading.seed,
        "models": [_plain(summary) for summary in summaries],
        "runs": [{"folder": name, "settings": dict(told)} for name, told in reading.runs],
        "notes": list(reading.notes),
    }
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return plain JSON values; the digits below the ninth are a matter of the machine."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _to_markdown(sections: Sequence[Section]) -> str:
    lines = [f"# {_TITLE}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [f"- {text}" for text in section.headlines]
        lines += ["", to_markdown(section.tables[0])]
        for picture in section.pictures:
            lines += [f"### {picture.title}", "", f"![{picture.title}]({picture.stem}.png)", ""]
            lines += [picture.caption, ""]
        lines += [to_markdown(table) for table in section.tables[1:]]
        lines += ["### How the rows were made", ""]
        lines += [f"- {name}: `{value}`" for name, value in section.settings]
        lines += ["", "### How to read this", ""]
        lines += [f"- {note}" for note in section.notes]
        lines.append("")
    return "\n".join(lines)
