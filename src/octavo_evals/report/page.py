"""Write the report as one HTML page that needs nothing but itself: no network, no script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from octavo_evals.report.plots import Picture
from octavo_evals.report.tables import Table, Text

STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--back:#fff;--soft:#f5f6f8;--line:#d8dce1;
--faint:#656d76;--gain:#0b57a4;--loss:#b33c00;--accent:#d9480f}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--back:#15181c;--soft:#1e2227;
--line:#3a4047;--faint:#9aa3ad;--gain:#79b8ff;--loss:#ff9d66;--accent:#ff8a4c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:2rem 1rem 4rem;background:var(--back);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.35rem;margin:2.6rem 0 .6rem;border-bottom:2px solid var(--accent);
padding-bottom:.2rem}
h3{font-size:1.08rem;margin:2rem 0 .3rem}
p{margin:.4rem 0}.lead{font-size:1.06rem;border-left:4px solid var(--accent);padding-left:.8rem}
.note,figcaption,small{color:var(--faint)}.note,figcaption{font-size:.88rem;max-width:62rem}
.scroll{overflow:auto;max-height:80vh;border:1px solid var(--line);border-radius:6px;margin:.6rem 0}
table{border-collapse:separate;border-spacing:0;font-size:.84rem;font-variant-numeric:tabular-nums;
width:100%}
th,td{padding:.32rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;
vertical-align:top}
thead th{position:sticky;top:0;z-index:2;background:var(--soft);font-weight:600;white-space:normal;
vertical-align:bottom}
th:first-child{position:sticky;left:0;z-index:1;background:var(--soft);text-align:left}
thead th:first-child{z-index:3}
tbody th{font-weight:600}tbody tr.ours th{color:var(--accent)}
tbody tr:hover td{background:var(--soft)}tbody tr:last-child>*{border-bottom:0}
small{display:block;font-size:.86em;font-weight:400}
tbody th small{white-space:normal;max-width:9.5rem}
.gain{color:var(--gain);font-weight:700}.loss{color:var(--loss);font-weight:700}
figure{margin:1.2rem 0}figure img{width:100%;max-width:960px;height:auto;background:#fff;
border:1px solid var(--line);border-radius:6px;padding:.4rem}
summary{cursor:pointer;font-weight:600;margin:1rem 0 .3rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.88rem}
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}
code{font:.92em ui-monospace,Menlo,Consolas,monospace}
@media print{.scroll{max-height:none;overflow:visible}}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What is to be said of one model."""

    title: str
    headlines: Sequence[str]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    settings: Sequence[tuple[str, str]]
    notes: Sequence[str]


def to_html(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Return the page; the pictures' SVG files, in `folder`, are put into it."""
    body = "\n".join(_section(section, folder) for section in sections)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1></header>\n<main>\n{body}\n</main></body></html>\n"
    )


def _section(section: Section, folder: Path) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    parts += [f'<p class="lead">{escape(text)}</p>' for text in section.headlines]
    parts.append(_table(section.tables[0]))
    parts += [_picture(picture, folder) for picture in section.pictures]
    parts += [_table(table) for table in section.tables[1:]]
    parts.append("<h3>How the rows were made</h3><dl>")
    parts += [
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>"
        for name, value in section.settings
    ]
    parts.append("</dl><h3>How to read this</h3><ul>")
    parts += [f'<li class="note">{escape(note)}</li>' for note in section.notes]
    return "\n".join([*parts, "</ul></section>"])


def _picture(picture: Picture, folder: Path) -> str:
    """Put the drawing into the page as a data URL, where its ids clash with no other drawing's."""
    data = base64.b64encode((folder / f"{picture.stem}.svg").read_bytes()).decode("ascii")
    title = escape(picture.title)
    return (
        f'<figure><h3>{title}</h3><img alt="{title}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    title = escape(table.title)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(_row(row) for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = (
        f'{note}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if table.is_folded:
        return f"<details><summary>{title}</summary>{body}</details>"
    return f"<h3>{title}</h3>{body}"


def _row(row: Sequence[Text]) -> str:
    first, *others = row
    ours = ' class="ours"' if first.text.startswith("octavo") else ""
    cells = "".join(f"<td{_tone(cell)}>{escape(cell.text)}{_detail(cell)}</td>" for cell in others)
    return f'<tr{ours}><th scope="row">{escape(first.text)}{_detail(first)}</th>{cells}</tr>'


def _tone(cell: Text) -> str:
    return f' class="{cell.tone}"' if cell.tone else ""


def _detail(cell: Text) -> str:
    return f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
