"""Find the headings of a text: of Markdown, of a book's chapters, and the definitions of code."""

from collections.abc import Iterator
from dataclasses import dataclass

import regex

_MAX_LENGTH = 120
"""Of one heading; what is longer is cut."""
_MAX_LINE = 400
"""No heading stands in a longer line, which would take the patterns long to read."""
_FENCE = regex.compile(r"[ ]{0,3}(```+|~~~+)")
_ATX = regex.compile(r"[ ]{0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_SETEXT = regex.compile(r"[ ]{0,3}(=+|-{3,})[ \t]*$")
_CHAPTER = regex.compile(
    r"[ \t]*((?:BOOK|Book|PART|Part|CHAPTER|Chapter|SECTION|Section|ACT|Act|SCENE|Scene|APPENDIX"
    r"|Appendix|Kapitel|Chapitre|Cap[ií]tulo)[ ]+(?:\d+|[IVXLC]+|[A-Z])\b.{0,80})$"
    r"|[ \t]*(第[\p{N}\p{Han}]{1,6}[章回節节部編].{0,40})$"
)
_LEVELS = {"book": 1, "part": 1, "act": 1, "section": 3, "scene": 3}
_DEFINITION = regex.compile(
    r"(\s*)(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|pub"
    r"(?:\([a-z]+\))?|unsafe|const|inline|virtual|override)\s+)*"
    r"(?:def|class|fn|func|function|struct|enum|trait|impl|interface|module|namespace|type)\s+"
    r"(?:\([^)\n]{0,80}\)\s*)?([\p{L}_][\p{L}\p{N}_.:<>]*)"
)


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading, by the character its line begins at and the path down to it."""

    start: int
    path: str


def find_headings(text: str, kind: str) -> list[Heading]:
    """Return the headings of a text in order; `kind` is prose, markdown or code."""
    find = {"prose": _of_prose, "markdown": _of_markdown, "code": _of_code}[kind]
    found: list[Heading] = []
    above: list[tuple[int, str]] = []
    for start, level, title in find(text):
        title = " ".join(title.split())[:_MAX_LENGTH]
        above = [*((depth, name) for depth, name in above if depth < level), (level, title)]
        found.append(Heading(start, " > ".join(name for _, name in above)))
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield every line with where it begins; a very long one as if it were empty."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, text[start:end].rstrip("\r") if end - start <= _MAX_LINE else ""
        start = end + 1


def _of_markdown(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, level and title of ATX and setext headings outside of fenced code."""
    fence = ""
    before, before_start = "", 0
    for start, line in _lines(text):
        if marker := _FENCE.match(line):
            if not fence:
                fence = marker[1]
            elif marker[1].startswith(fence) and not line[marker.end() :].strip():
                fence = ""
            line = ""
        elif fence:
            line = ""
        elif atx := _ATX.match(line):
            yield start, len(atx[1]), atx[2]
            line = ""
        elif before.strip() and (setext := _SETEXT.match(line)):
            yield before_start, 1 if setext[1][0] == "=" else 2, before
            line = ""
        before, before_start = line, start


def _of_prose(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield chapters, or the pages of a text that has form feeds between them."""
    if "\f" in text:
        start = 0
        for number, page in enumerate(text.split("\f"), 1):
            yield start, 1, f"page {number}"
            start += len(page) + 1
        return
    for start, line in _lines(text):
        if len(line) <= _MAX_LENGTH and (chapter := _CHAPTER.match(line)):
            title = chapter[1] or chapter[2]
            yield start, _LEVELS.get(title.split()[0].lower(), 2), title


def _of_code(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield definitions; their level is their indentation."""
    for start, line in _lines(text):
        if definition := _DEFINITION.match(line):
            yield start, 1 + len(definition[1].expandtabs(4)), definition[2].rstrip(":")
