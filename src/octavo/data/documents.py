"""Read records out of files of every format, or out of a streamed hub dataset.

{"text": …}                                      prose
{"context": …, "question": …, "answers": […]}    a question about a text
{"messages": [{"role": …, "content": …}, …]}     a chat
{"prompt": …, "target": …}                       a pair; or {"compression_prompt": […],
                                                 "target": …}, the released code's own rows
"""

import glob
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.config import MEMORY_END, MEMORY_START
from octavo.errors import TrainingError
from octavo.records import read_dataset, stream_hub

MIN_CHARS = 200
"""Shorter documents make no prose examples."""
TEXTS = Path(__file__).parents[1] / "assets" / "texts"
"""Texts in the package, named `octavo:NAME`: one in the public domain, for rehearsals."""
CONTINUAL = "NA_string_only"
"""The target of a released row that is one text with spans, not a chat (released data format)."""
_SPANS = re.compile(f"{re.escape(MEMORY_START)}(.*?){re.escape(MEMORY_END)}", re.DOTALL)
_ROLES = ("system", "user", "assistant")

Use = Literal["prose", "questions", "chats", "pairs"]
"""What a document can serve as."""


@dataclass(frozen=True, slots=True)
class Document:
    """One record of a source: prose, a question about a text, a chat, or a prompt and a target."""

    text: str = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    """A chat; or, with a `target`, a prompt whose spans are memory parts."""
    prompt: str = ""
    target: str = ""
    """The answer to `prompt` or `messages`; `CONTINUAL` for one message that is all there is."""
    origin: str = ""
    """`SOURCE:document number`."""

    @property
    def use(self) -> Use | None:
        """What it can serve as; None for nothing."""
        if self.target:
            return "pairs" if self.prompt.strip() or self.messages else None
        if self.messages:
            return "chats"
        if self.question:
            return "questions" if self.answers and self.text.strip() else None
        return "prose" if len(self.text) > MIN_CHARS else None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it, as in a record of no known form."""
        return not (self.text.strip() or self.messages or self.prompt.strip())

    @property
    def key(self) -> str:
        """What makes it the same document as another: a context with two questions is one."""
        if self.text:
            return self.text
        return json.dumps([self.messages, self.prompt, self.target])


def read_records(
    pattern: str, root: Path, max_chars: int
) -> Iterator[tuple[str, Iterator[Document]]]:
    """Yield the name and the records of every file a pattern names, or of a hub dataset.

    A `.txt` file longer than `max_chars` becomes several records. A record of no known form has
    no text. Raises `TrainingError` for a pattern without a file and, while records are taken, for
    a file that cannot be read.
    """
    if pattern.startswith("hf:"):
        yield pattern, map(_document, stream_hub(pattern))
        return
    wanted = root / Path(pattern).expanduser()
    if pattern.startswith("octavo:"):
        wanted = TEXTS / f"{pattern.removeprefix('octavo:')}.txt"
    paths = [wanted] if wanted.is_file() else _matches(pattern, root)
    if not paths:
        raise TrainingError(f"no file matches {pattern!r} (looked from {root})")
    for path in paths:
        yield str(path), _read_file(path, max_chars)


def _matches(pattern: str, root: Path) -> list[Path]:
    """Return the files of a glob; `root` itself may hold brackets."""
    names = glob.glob(str(Path(pattern).expanduser()), root_dir=root, recursive=True)
    return sorted(root / name for name in names if (root / name).is_file())


def _read_file(path: Path, max_chars: int) -> Iterator[Document]:
    """Yield the documents of one file, whatever its format."""
    for row in read_dataset(path):
        document = _document(row)
        if path.suffix != ".txt":
            yield document
        else:
            for first in range(0, len(document.text), max_chars):
                yield Document(document.text[first : first + max_chars])


def _document(row: Any) -> Document:
    """Read a record; one of no known form has no text."""
    if not isinstance(row, dict):
        return Document()
    target = row.get("target")
    if isinstance(target, str) and target.strip():
        if messages := _messages(row.get("compression_prompt"), has_tags=True):
            return Document(messages=messages, target=target)
        if isinstance(prompt := row.get("prompt"), str):
            return Document(prompt=prompt, target=target)
    if messages := _messages(row.get("messages")):
        roles = [message["role"] for message in messages]
        return Document(messages=messages if "assistant" in roles[1:] else ())
    text = row.get("text") or row.get("context") or ""
    answers = row.get("answers") or row.get("answer") or ()
    if isinstance(answers, dict):  # as SQuAD has them on the hub
        answers = answers.get("text")
    answers = [answers] if isinstance(answers, str) else answers
    return Document(
        text if isinstance(text, str) else "",
        str(row.get("question") or ""),
        tuple(a for a in _list(answers) if isinstance(a, str) and a.strip()),
    )


def _messages(value: Any, *, has_tags: bool = False) -> tuple[Mapping[str, Any], ...]:
    """Read the messages of a record; none at all when one is not of a known form."""
    messages = []
    for message in _list(value):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if role in _ROLES else None
        if isinstance(content, str):
            parts: Any = _parts(content) if has_tags else content
        elif isinstance(content, list) and content and all(map(_is_part, content)):
            parts = [{"type": part["type"], "text": part["text"]} for part in content]
        else:
            return ()
        messages.append({"role": role, "content": parts})
    return tuple(messages)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in ("text", "memory")
        and isinstance(part.get("text"), str)
    )


def _parts(content: str) -> list[dict[str, str]]:
    """Turn a text with tags into parts; a tag without its other half stays ordinary text."""
    pieces = _SPANS.split(content)  # text, span, text, span, …, text
    kinds = itertools.cycle(("text", "memory"))
    return [{"type": kind, "text": piece} for kind, piece in zip(kinds, pieces, strict=False)]
