"""Report evaluations: rows in, tables and pictures out, the same ones for the same rows.

read.py  ->  numbers.py  ->  tables.py, words.py, plots.py  ->  report.md, report.html
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from octavo.errors import EvaluationError, MissingExtraError
from octavo.files import write_text
from octavo_evals.report.numbers import Findings, compare_models, summarise
from octavo_evals.report.plots import draw
from octavo_evals.report.read import Evaluation, read
from octavo_evals.report.tables import Cell, make_tables
from octavo_evals.report.words import TITLE, describe_settings, make_headlines, make_notes

__all__ = ["PAPER", "read", "summarise", "write"]

PAPER = Path(__file__).parents[1] / "assets" / "paper" / "results.json"
UNITS = "scores, retention and differences in percent; times in seconds; sizes in bytes"


def write(folders: Sequence[Path], output: Path) -> list[str]:
    """Write the report of the rows in some folders, and return its headlines.

    `output` gets report.md, report.html, tables.json and the pictures; it is made if need be.
    Raises `EvaluationError` for rows that cannot be reported together, before it writes anything,
    and `MissingExtraError` without the libraries of a report.
    """
    try:
        import adjustText  # noqa: F401
        import jinja2
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"a report needs {error.name}: pip install 'octavo[eval]'"
        ) from error
    evaluation = read(folders)
    models = summarise(evaluation.rows)
    if output.exists() and not output.is_dir():
        raise EvaluationError(f"-o {output} is a file; give a folder for the report")
    output.mkdir(parents=True, exist_ok=True)
    counts = Counter(findings.model for findings in models)
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    titles = [
        one.model + (f" ({one.fingerprint[:8]})" if counts[one.model] > 1 else "") for one in models
    ]
    sections: list[dict[str, Any]] = []
    for findings, title in zip(models, titles, strict=True):
        others = {
            other: compare_models(findings, one)
            for one, other in zip(models, titles, strict=True)
            if one is not findings
        }
        sections.append(
            {
                "title": title,
                "headlines": make_headlines(findings),
                "pictures": draw(findings, output, f"{title} " if len(models) > 1 else ""),
                "tables": make_tables(findings, paper, others),
                "settings": describe_settings(findings, evaluation),
                "notes": make_notes(findings, evaluation),
            }
        )
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        autoescape=lambda name: name == "report.html", undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    pages.filters |= {"md": _escape, "cell": _to_markdown, "data": partial(_embed, output)}
    for name in ("report.md", "report.html"):
        page = pages.get_template(name).render(title=TITLE, sections=sections)
        write_text(output / name, page)
    write_text(output / "tables.json", _to_json(evaluation, models))
    return [text for section in sections for text in section["headlines"]]


def _escape(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def _to_markdown(cell: Cell) -> str:
    text = f"**{_escape(cell.text)}**" if cell.tone else _escape(cell.text)
    return f"{text} ({_escape(cell.detail)})" if cell.detail else text


def _embed(folder: Path, stem: str) -> str:
    """Return a drawing as a data URL, in which its ids clash with no other drawing's."""
    drawing = base64.b64encode((folder / f"{stem}.svg").read_bytes())
    return f"data:image/svg+xml;base64,{drawing.decode('ascii')}"


def _to_json(evaluation: Evaluation, models: Sequence[Findings]) -> str:
    def plain(frame: Any) -> Any:
        return json.loads(frame.convert_dtypes().to_json(orient="records", double_precision=9))

    content = {
        "units": UNITS,
        "models": [
            {
                "model": one.model, "fingerprint": one.fingerprint, "masked": sorted(one.masked),
                "skipped": one.skipped, "settings": one.settings,
                **{name: plain(frame) for name, frame in one.frames.items()},
            }
            for one in models
        ],
        "runs": [{"folder": name, "settings": settings} for name, settings in evaluation.runs],
        "notes": evaluation.notes,
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
