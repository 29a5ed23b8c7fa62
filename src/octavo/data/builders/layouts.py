"""Lay made-up facts out as people do: as prose, lists, logs, chats, tables and settings.

    fact   "The {thing} came on {date}. | When did the {thing} come? = date"
    page   "The ladder came on 3 May 2011." and ("When did the ladder come?", "3 May 2011")

A layout writes to a `Page`, which keeps what can be asked about it, and returns its text.
"""

import csv
import io
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.data.builders.qa import Question
from octavo.data.builders.values import EVERYDAY, TABLES, Values

OPTIONS: dict[str, Any] = EVERYDAY["options"]
FILLERS = 0.2
"""How often a sentence of prose says nothing that is asked about."""
REVERSED = 0.25
"""How often a question about a table asks for the row."""
_SLOT = re.compile(r"\{([a-z]+\d*)\}")
_BLANKS = {"by", "at"}
"""Slots that the layout fills: who says a line, and when."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A text with slots, and the questions about it, each with the slot that answers it."""

    text: str
    questions: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, line: str) -> "Fact":
        """Read `text | question = slot | …`."""
        text, *asked = line.split(" | ")
        pairs = [question.rpartition(" = ") for question in asked]
        return cls(text, tuple((question, slot) for question, _, slot in pairs))

    @property
    def may_repeat(self) -> bool:
        """Whether every question names a slot, by which two such facts are told apart."""
        return all({*_SLOT.findall(question)} - _BLANKS for question, _ in self.questions)


@dataclass(slots=True)
class Page:
    """A document while it is being written."""

    values: Values
    questions: list[Question] = field(default_factory=list)

    @property
    def rng(self) -> random.Random:
        """What everything about it is drawn from."""
        return self.values.rng

    def say(self, fact: Fact, **around: str) -> str:
        """Fill a fact in, keep its questions, and return its text."""
        drawn = dict(around)

        def fill(slot: re.Match[str]) -> str:
            if slot[1] not in drawn:
                drawn[slot[1]] = self.values.draw(slot[1].rstrip("0123456789"))
            return drawn[slot[1]]

        text = _SLOT.sub(fill, fact.text)
        self.questions += [
            (_begun(question, _SLOT.sub(fill, question)), drawn[slot])
            for question, slot in fact.questions
        ]
        return _begun(fact.text, text)

    def say_all(
        self, facts: Sequence[Fact], num_chars: int, around: Callable[[], Mapping[str, str]] = dict
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield facts up to a length, each with what is `around` it; most come once only."""
        waiting = [*facts]
        self.rng.shuffle(waiting)
        size = 0
        while size < num_chars and waiting:
            fact, given = waiting.pop(0), around()
            text = self.say(fact, **given)
            size += len(text) + 2
            if fact.may_repeat:
                waiting.insert(self.rng.randint(len(waiting) // 2, len(waiting)), fact)
            yield text, given

    def sentences(self, facts: Sequence[Fact], num_chars: int) -> list[str]:
        """Return facts up to a length, with nothing around them."""
        return [text for text, _ in self.say_all(facts, num_chars)]


def prose(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Put two to five sentences into a paragraph, some of which say nothing."""
    rng, paragraphs = page.rng, [""]
    left = rng.randint(2, 5)
    for sentence in page.sentences(facts, num_chars):
        if rng.random() < FILLERS:
            sentence = f"{sentence} {rng.choice(TABLES['filler'])}"
        paragraphs[-1] = f"{paragraphs[-1]} {sentence}".strip()
        left -= 1
        if not left:
            paragraphs.append("")
            left = rng.randint(2, 5)
    return "\n\n".join(filter(None, paragraphs))


def lines(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Put a fact on a line."""
    return "\n".join(page.sentences(facts, num_chars))


def bullets(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Make a list with or without numbers."""
    mark = page.rng.choice(("- ", "* ", "• ", "{n}. ", "{n}) ", "[{n}] ", "-- "))
    said = enumerate(page.sentences(facts, num_chars), 1)
    return "\n".join(mark.format(n=number) + text for number, text in said)


def clauses(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Put a number before every clause or step."""
    rng = page.rng
    mark = rng.choice(("{n}. ", "§ {n}  ", "Article {n}. ", "({n}) ", "1.{n} ", "Step {n}: "))
    said = enumerate(page.sentences(facts, num_chars), rng.choice((1, 1, 1, 4)))
    gap = rng.choice(("\n", "\n\n"))
    return gap.join(mark.format(n=number) + text for number, text in said)


def sections(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Put headings between paragraphs."""
    rng = page.rng
    mark = rng.choice(("## {}", "# {}", "{}:", "*** {} ***", "[{}]", "== {} =="))
    headings = itertools.cycle(rng.sample(TABLES["part"], len(TABLES["part"])))
    paragraphs = prose(page, facts, num_chars).split("\n\n")
    return "\n\n".join(f"{mark.format(next(headings))}\n{text}" for text in paragraphs)


def log(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Put the time before every line."""
    rng, day = page.rng, page.values.draw("date")
    mark = rng.choice(("{t} ", "[{t}] ", "{d} {t} ", "{t}  ", "{t} - ", "[{d} {t}] "))
    minute, most = rng.randrange(720), rng.choice((1, 4, 30))

    def around() -> Mapping[str, str]:
        nonlocal minute
        minute += rng.randint(1, most)  # no two at once: the time may be what is asked for
        return {"at": page.values.clock(minute)}

    said = page.say_all(facts, num_chars, around)
    return "\n".join(mark.format(t=given["at"], d=day) + text for text, given in said)


def chat(page: Page, facts: Sequence[Fact], num_chars: int) -> str:
    """Let two to five people speak."""
    rng = page.rng
    kinds = rng.choices(("first", "login"), (2, 1), k=rng.randint(2, 5))
    people = [page.values.draw(kind) for kind in kinds]
    mark = rng.choice(("{p}: ", "[{t}] {p}: ", "<{p}> ", "{t} - {p}: ", "{p} ({t}): ", "{t} {p}> "))
    minute = rng.randrange(1200)

    def around() -> Mapping[str, str]:
        nonlocal minute
        minute += rng.randint(0, 7)
        return {"by": rng.choice(people), "at": page.values.clock(minute)}

    said = page.say_all(facts, num_chars, around)
    return "\n".join(mark.format(p=given["by"], t=given["at"]) + text for text, given in said)


FORMS: Mapping[str, Callable[[Page, Sequence[Fact], int], str]] = {
    "prose": prose, "lines": lines, "list": bullets, "clauses": clauses, "sections": sections,
    "log": log, "chat": chat,
}  # fmt: skip
"""Every layout of facts, by the name that a kind gives it."""


def table(page: Page, columns: Sequence[str], num_chars: int) -> str:
    """Make a table of `name:kind of value`, as csv, markdown, aligned or records.

    A row is asked for by one of its cells, or a cell by the row's first.
    """
    rng, values = page.rng, page.values
    first, *others = columns
    chosen = [first, *rng.sample(others, rng.randint(1, len(others)))]
    names, kinds = zip(*(column.split(":") for column in chosen), strict=True)
    layout = rng.choice((_csv, _markdown, _aligned, _records))
    between = 3 * len(names) + (sum(map(len, names)) if layout is _records else 0)
    rows: list[list[str]] = []
    size = 0
    while size < num_chars:
        rows.append([values.draw(kind) for kind in kinds])
        size += sum(map(len, rows[-1])) + between
    times = [Counter(column) for column in zip(*rows, strict=True)]
    for row in rows:
        at = rng.randrange(1, len(row))
        cell, column = row[at], names[at]
        if rng.random() < REVERSED and times[at][cell] == 1:
            page.questions.append((f"Which {names[0]} has the {column} {cell}?", row[0]))
        elif times[0][row[0]] == 1:
            asked = rng.choice(OPTIONS["table"]).format(column=column, key=row[0])
            page.questions.append((asked, cell))
    return layout(rng, [list(names), *rows])


def settings(page: Page, num_chars: int) -> str:
    """Make a configuration file of sections: ini, YAML, JSON or NAME=value."""
    rng, values = page.rng, page.values
    kinds = OPTIONS["values"].split()
    sections: dict[str, dict[str, str]] = {}
    size = 0
    while size < num_chars:
        section = sections.setdefault(rng.choice(OPTIONS["sections"].split()), {})
        for _ in range(rng.randint(2, 7)):
            key = f"{rng.choice(OPTIONS['heads'].split())}_{rng.choice(OPTIONS['tails'].split())}"
            section.setdefault(key, values.draw(rng.choice(kinds)))
            size += 30
    for name, section in sections.items():
        key = rng.choice(list(section))
        asked = rng.choice(OPTIONS["config"]).format(key=key, section=name)
        page.questions.append((asked, section[key]))
        alone = [one for one in section if sum(one in other for other in sections.values()) == 1]
        if alone:
            key = rng.choice(alone)
            page.questions.append((f"What is {key}?", section[key]))
    return rng.choice((_ini, _yaml, _json, _env))(sections)


def _csv(rng: random.Random, rows: Sequence[Sequence[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, delimiter=rng.choice(",;\t|"), lineterminator="\n").writerows(rows)
    return written.getvalue()


def _markdown(_: random.Random, rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _aligned(_: random.Random, rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    padded = ("".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(padded)


def _records(rng: random.Random, rows: Sequence[Sequence[str]]) -> str:
    names, *body = rows
    gap = rng.choice((", ", "; ", " / "))
    return "\n".join(
        gap.join(f"{name}: {cell}" for name, cell in zip(names, row, strict=True)) for row in body
    )


def _ini(sections: Mapping[str, Mapping[str, str]]) -> str:
    return "\n\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {value}" for key, value in section.items())
        for name, section in sections.items()
    )


def _yaml(sections: Mapping[str, Mapping[str, str]]) -> str:
    return "\n".join(
        f"{name}:\n" + "\n".join(f"  {key}: {value}" for key, value in section.items())
        for name, section in sections.items()
    )


def _json(sections: Mapping[str, Mapping[str, str]]) -> str:
    return json.dumps(sections, indent=2, ensure_ascii=False)


def _env(sections: Mapping[str, Mapping[str, str]]) -> str:
    return "\n".join(
        f"{name}.{key}={value}"
        for name, section in sections.items()
        for key, value in section.items()
    )


def _begun(template: str, text: str) -> str:
    """Begin a text with a capital, where a slot begins it."""
    return text[:1].upper() + text[1:] if template.startswith("{") else text
