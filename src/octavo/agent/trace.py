"""Write down what an agent did: one JSON object a line for machines, a page for people."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from octavo.agent.answer import AgentAnswer
from octavo.expand import ranges
from octavo.files import write_text
from octavo.text import visible

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;"
    "color:#1f2328;background:#fff}pre{white-space:pre-wrap;background:#f2f3f5;padding:.6rem;"
    "border-radius:6px}small{color:#57606a}h2{margin-bottom:.2rem}"
    "@media(prefers-color-scheme:dark){body{color:#e6e8eb;background:#16181c}"
    "pre{background:#22252b}small{color:#98a1ab}}"
)


def events(question: str, answer: AgentAnswer) -> Iterator[dict[str, Any]]:
    """Yield the question, every round and the answer as plain values."""
    whole = answer.to_dict()
    rounds, citations = whole.pop("rounds"), whole.pop("citations")
    yield {"event": "question", "text": question, "source_tokens": answer.source_tokens}
    for number, one in enumerate(rounds, 1):
        yield {"event": "round", "number": number, **one}
    for one in citations:
        yield {"event": "citation", **one}
    yield {"event": "answer", **whole}


def write_jsonl(path: Path, question: str, answer: AgentAnswer) -> None:
    """Write the trace as JSON lines, whole or not at all."""
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in events(question, answer)]
    write_text(path, "".join(lines))


def write_page(path: Path, question: str, answer: AgentAnswer) -> None:
    """Write the trace as one HTML page without scripts, whole or not at all."""
    sure = "not calibrated" if answer.confidence is None else f"{answer.confidence:.0%}"
    pieces = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{_text(question)}</title><style>{_STYLE}</style><h1>{_text(question)}</h1>",
        f"<p><strong>{_text(answer.text)}</strong><br><small>{answer.finish}, confidence {sure}; "
        f"{answer.positions:,} positions, {answer.cost:.0%} of the {answer.source_tokens:,} tokens "
        f"of the texts; {answer.seconds:.1f} s</small></p>",
    ]
    for number, one in enumerate(answer.rounds, 1):
        opened = f"; opened {ranges(one.expanded)}" if one.expanded else ""
        pieces.append(
            f"<h2>{number}. {one.action}</h2><small>read {one.prompt_tokens - one.cached_tokens:,} "
            f"(kept {one.cached_tokens:,}), wrote {one.new_tokens:,}, {one.seconds:.2f} s"
            f"{opened}</small>"
        )
        pieces += [f"<pre>{_text(said)}</pre>" for said in (one.said, *one.results) if said]
    pieces.append("<h2>Passages</h2>" if answer.citations else "")
    for cited in answer.citations:
        where = f"text {cited.context + 1}, line {cited.line}, characters {cited.start}-{cited.end}"
        under = f" · {_text(cited.heading)}" if cited.heading else ""
        mark = " · holds the answer" if cited.holds_answer else ""
        pieces.append(f"<p><small>[{cited.number}] {where}{under}{mark}</small></p>")
        pieces.append(f"<pre>{_text(cited.text)}</pre>")
    write_text(path, "\n".join(pieces) + "</html>\n")


def _text(text: str) -> str:
    """Return a text as HTML shows it, whoever wrote it."""
    return escape(visible(text))
