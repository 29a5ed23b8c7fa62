"""Gather the documents that examples are cut from, by source, and draw from them."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from octavo.data.documents import Document, Use, read_records
from octavo.errors import TrainingError
from octavo.recipe import DataSection, RunConfig, SourceSection


class Asked(NamedTuple):
    """A text and everything that is asked about it."""

    context: str
    turns: list[tuple[str, tuple[str, ...]]]
    """Questions, each with its acceptable answers."""
    origin: str


class Library:
    """Documents by source, to draw from: the same draws for the same random state."""

    def __init__(
        self,
        sources: Mapping[str, Sequence[Document]],
        weights: Mapping[str, float | None] | None = None,
    ) -> None:
        """Sort documents by what they can serve as; a source without a weight counts its own."""
        self.sources = {name: list(sources[name]) for name in sorted(sources)}
        self.weights = dict(weights or {})
        self._of: dict[Use, dict[str, list[Any]]] = {use: {} for use in get_args(Use)}
        for name, documents in self.sources.items():
            for document in documents:
                if document.use is not None:
                    self._of[document.use].setdefault(name, []).append(document)
        asked = self._of["questions"]
        asked.update({name: _asked(documents) for name, documents in asked.items()})

    def __len__(self) -> int:
        """Return the number of documents."""
        return sum(map(len, self.sources.values()))

    def has(self, use: Use) -> bool:
        """Whether anything of that use can be drawn."""
        return any(weight > 0 for weight in self._weights(use))

    def prose(self, rng: random.Random) -> Document:
        """Draw a text of more than `MIN_CHARS` characters."""
        document: Document = self._draw(rng, "prose")
        return document

    def questions(self, rng: random.Random) -> Asked:
        """Draw a text with everything that is asked about it."""
        asked: Asked = self._draw(rng, "questions")
        return asked

    def chats(self, rng: random.Random) -> Document:
        """Draw a chat."""
        document: Document = self._draw(rng, "chats")
        return document

    def pairs(self, rng: random.Random) -> Document:
        """Draw a prompt with its target."""
        document: Document = self._draw(rng, "pairs")
        return document

    def _weights(self, use: Use) -> list[float]:
        given = {name: self.weights.get(name) for name in self._of[use]}
        return [len(self._of[use][n]) if w is None else w for n, w in given.items()]

    def _draw(self, rng: random.Random, use: Use) -> Any:
        name = rng.choices(list(self._of[use]), self._weights(use))[0]
        return rng.choice(self._of[use][name])


def _asked(documents: Sequence[Document]) -> list[Asked]:
    """Group questions by their context, in the order the contexts first appear."""
    groups: dict[str, Asked] = {}
    for document in documents:
        group = groups.setdefault(document.text, Asked(document.text, [], document.origin))
        group.turns.append((document.question, document.answers))
    return list(groups.values())


def fingerprint(*libraries: Library) -> str:
    """Identify the contents of libraries, in their order."""
    digest = hashlib.sha256()
    for library in libraries:
        for name, documents in library.sources.items():
            digest.update(f"{name}/{len(documents)}\n".encode())
            for document in documents:
                contents = replace(document, origin="")
                digest.update(json.dumps(astuple(contents)).encode())
    return digest.hexdigest()[:16]


def read_libraries(config: RunConfig, root: Path) -> tuple[Library, Library]:
    """Read what a run trains on, and what it is measured on; `data.root` starts from `root`.

    Raises `TrainingError` when a held-out text is also trained on.
    """
    folder = root / Path(config.data.root).expanduser()
    library = read_library(config.sources(), config.data, folder)
    if not config.data.held_out:
        return split_held_out(library)
    section = SourceSection(files=config.data.held_out)
    held_out = read_library({"held_out": section}, config.data, folder)
    refuse_shared(library, held_out)
    return library, held_out


def read_library(sources: Mapping[str, SourceSection], data: DataSection, root: Path) -> Library:
    """Read every source; files are looked for from `root`."""
    return Library(
        {name: read_source(name, section, data, root) for name, section in sources.items()},
        {name: section.weight for name, section in sources.items()},
    )


def split_held_out(library: Library) -> tuple[Library, Library]:
    """Put every fiftieth document aside, for recipes that name no held-out texts.

    Questions about one context stay together. A single text gives its last twentieth.
    """
    keys = {d.key: None for documents in library.sources.values() for d in documents}
    if len(keys) == 1 and (lone := _lone_text(library)):
        name, document = lone
        cut = len(document.text) * 19 // 20
        parts = (document.text[:cut], document.text[cut:])
        first, last = ([replace(document, text=text)] for text in parts)
        return Library({name: first}, library.weights), Library({name: last}, library.weights)
    step = min(50, len(keys))
    aside = {key for i, key in enumerate(keys) if i % step == step - 1}
    train, held_out = dict[str, list[Document]](), dict[str, list[Document]]()
    for name, documents in library.sources.items():
        train[name] = [d for d in documents if d.key not in aside]
        held_out[name] = [d for d in documents if d.key in aside]
    return Library(train, library.weights), Library(held_out, library.weights)


def _lone_text(library: Library) -> tuple[str, Document] | None:
    """Return the only document, with its source, if it is one that can be cut in two."""
    for name, documents in library.sources.items():
        for document in documents:
            return (name, document) if document.text and not document.question else None
    return None


def refuse_shared(train: Library, held_out: Library) -> None:
    """Raise `TrainingError` when a held-out document is also trained on."""
    trained_on = {d.key for documents in train.sources.values() for d in documents}
    keys = [d.key for documents in held_out.sources.values() for d in documents]
    if shared := sum(key in trained_on for key in keys):
        raise TrainingError(
            f"{shared} of {len(keys)} held-out texts are trained on too; take them out of "
            "data.train (or data.sources) or of data.held_out"
        )


def read_source(name: str, source: SourceSection, data: DataSection, root: Path) -> list[Document]:
    """Read every file of a source, at most `max_documents` of each, spread evenly over it.

    Of a hub dataset, the first so many are read. Raises `TrainingError` for a pattern without a
    file, and for a file or dataset without a record of a known form.
    """
    most = source.max_documents or data.max_documents
    documents: list[Document] = []
    for pattern in source.files:
        for where, records in read_records(pattern, root, data.max_document_chars):
            found = (
                replace(d, text=d.text[: data.max_document_chars])
                for d in records
                if not d.is_empty
            )
            is_stream = pattern.startswith("hf:")
            kept = list(itertools.islice(found, most)) if is_stream else _spread(found, most)
            if not kept:
                raise TrainingError(
                    f'{where} holds no text: records need a "text"; a "context" with its '
                    '"question" and "answers"; "messages"; or a "prompt" and its "target"; fix '
                    "it or remove it from the recipe"
                )
            documents += kept
    return [replace(d, origin=f"{name}:{number}") for number, d in enumerate(documents)]


def _spread(documents: Iterable[Document], most: int) -> list[Document]:
    """Keep at most `most` documents, spread evenly, never holding more than twice as many."""
    kept: list[Document] = []
    stride = 1
    for number, document in enumerate(documents):
        if number % stride == 0:
            kept.append(document)
            if len(kept) > 2 * most:
                kept, stride = kept[::2], 2 * stride
    count = min(len(kept), most)
    return [kept[i * len(kept) // count] for i in range(count)]
