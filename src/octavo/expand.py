"""How a document is shown for skimming and how its parts are asked for: agents and training agree.

A document is shown in numbered parts, each folded; a model without tool calls of its own asks for
some with one line, and is shown them in full:

    [1] <latents>
    [2] <latents>
    …
    Question: …
    EXPAND: 2, 7-9
    [2] raw text …
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Layout = Literal["in place", "alone", "appended"]
LAYOUTS: tuple[Layout, ...] = ("in place", "alone", "appended")
"""Where an expanded part stands when the answer is given: in place of its latents; alone, without
any latents; or after the folded document, as the answer to a call, for models trained for it."""

NAME = "expand"
WORD = "EXPAND:"
HEADING = "A document in numbered parts, each of them folded:\n"
EXPANDED = "Parts of it in full:\n"
HOW = (
    "\n\nA folded part may lack details. To read parts in full, reply with one line such as "
    f"{WORD} 3, 7-9 and nothing else; otherwise answer the question."
)
"""Said where the chat template knows no tools."""
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Read numbered parts of the folded document in full, word for word.",
        "parameters": {
            "type": "object",
            "properties": {
                "ids": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": 'Numbers or ranges of parts, such as ["3", "7-9"].',
                }
            },
            "required": ["ids"],
        },
    },
}
"""Said where it does."""
_MAX_CHARS = 4096


def folded(parts: Sequence[Mapping[str, Any] | str | None]) -> list[dict[str, Any]]:
    """Return the content of a turn that shows parts: folded as memory parts, in full as texts.

    A part that is None, too short for a latent, is shown as its number alone.
    """
    shown: list[dict[str, Any]] = [{"type": "text", "text": HEADING}]
    for number, part in enumerate(parts, 1):
        shown.append({"type": "text", "text": f"\n{label(number)}"})
        if isinstance(part, str):
            shown.append({"type": "text", "text": part.strip()})
        elif part is not None:
            shown.append(dict(part))
    return shown


def asking(question: str, how: str = HOW) -> str:
    """Return how a question stands behind the parts."""
    return f"\n\nQuestion: {question}{how}"


def label(number: int) -> str:
    """Return how a part is numbered."""
    return f"[{number}] "


def in_full(parts: Sequence[tuple[int, str]]) -> str:
    """Return parts in full, under their numbers."""
    return "\n".join(f"{label(number)}{text.strip()}" for number, text in parts)


def ask_for(numbers: Sequence[int]) -> str:
    """Return the line that asks for parts, neighbours as a range."""
    return f"{WORD} {ranges(numbers)}"


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers as people do: `1, 3-5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read_numbers(asked: Any, count: int) -> tuple[list[int], list[str]]:
    """Return the parts that were asked for, each once, and what is wrong with the others.

    `asked` is whatever a model said: a text, a number, or a list of both; parts are 1 to `count`.
    """
    pieces: list[str] = []
    for one in asked if isinstance(asked, list) else [asked]:
        if isinstance(one, str | int) and not isinstance(one, bool):
            pieces += str(one)[:_MAX_CHARS].replace(";", ",").split(",")
        else:
            pieces.append(repr(one)[:40])
    numbers: dict[int, None] = {}
    problems: list[str] = []
    for piece in filter(None, (piece.strip(" \t\n[].") for piece in pieces)):
        low, dash, high = (end.strip() for end in piece.replace("–", "-").partition("-"))
        high = high if dash else low
        if not (_is_number(low) and _is_number(high)):
            problems.append(f"{piece[:40]!r} is no part; give numbers or ranges, as 3, 7-9")
        elif not 1 <= int(low) <= int(high) <= count:
            problems.append(f"there is no part {piece[:40]}; parts are 1 to {count}")
        else:
            numbers.update(dict.fromkeys(range(int(low), int(high) + 1)))
    if not numbers and not problems:
        problems.append("no part was named; give numbers or ranges, as 3, 7-9")
    return list(numbers), problems


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
