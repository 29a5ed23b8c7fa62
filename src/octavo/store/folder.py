"""Write the folder of an entry: the text folded in parts, its index, its description."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.ask.index import PassageIndex
from octavo.ask.passages import Kind, Passage, cut_passages
from octavo.store.entry import (
    ENTRY_FILE,
    INDEX_FILE,
    TEXT_FILE,
    StoreEntry,
    describe,
    digest_of_file,
    id_of,
    part_file,
)
from octavo.text import sha256_of

if TYPE_CHECKING:
    from octavo.model import Model

_ROOM = 1024
"""Positions that a part leaves to questions and answers, or a quarter of the decoder's."""


def write_folder(
    folder: Path,
    text: str,
    *,
    model: "Model | None",
    ratio: int,
    kind: Kind,
    source: str,
    keep_text: bool,
    precision: str,
    names: tuple[str, ...],
    tags: tuple[str, ...],
    on_tokens: Callable[[int, int], None] | None,
) -> StoreEntry:
    """Fold a text into a folder and return what it is."""
    passages = cut_passages(text, kind=kind)
    tokens = latents = parts = 0
    loss = 0.0
    if model is not None:
        from octavo.store.latents import save_part

        for piece in pieces_that_fit(model, text, passages, ratio):
            context = model.compress(piece, ratio, keep_text=False, on_tokens=on_tokens)
            loss = max(loss, save_part(context, folder / part_file(parts), precision))
            tokens, latents = tokens + context.source_tokens, latents + context.num_latents
            parts += 1
    PassageIndex.build(text, passages).save(folder / INDEX_FILE)
    if keep_text:
        (folder / TEXT_FILE).write_bytes(text.encode("utf-8"))
    files = sorted(one for one in folder.iterdir() if one.is_file())
    digest, fingerprint = sha256_of(text), model.fingerprint if model is not None else ""
    now = time.time()
    entry = StoreEntry(
        id=id_of(fingerprint, ratio, digest), text_sha256=digest, fingerprint=fingerprint,
        model=model.name if model is not None else "", ratio=ratio, kind=kind,
        characters=len(text), passages=len(passages), source_tokens=tokens, latents=latents,
        parts=parts, precision=precision, loss=loss, source=source,
        num_bytes=sum(one.stat().st_size for one in files), created=now, used=now,
        digests={one.name: digest_of_file(one) for one in files}, names=names, tags=tags,
    )  # fmt: skip
    (folder / ENTRY_FILE).write_text(describe(entry), encoding="utf-8")
    return entry


def pieces_that_fit(
    model: "Model", text: str, passages: Sequence[Passage], ratio: int
) -> Iterator[str]:
    """Yield pieces of whole passages that the decoder holds with a question; one, if all fits."""
    room = model.engine.max_positions - min(_ROOM, model.engine.max_positions // 4)
    limit = room * ratio
    counts = [len(model.prompts.source(text[one.start : one.end]).ids) for one in passages]
    start = size = 0
    for passage, count in zip(passages, counts, strict=True):
        if size and size + count > limit:
            yield text[start : passage.start]
            start, size = passage.start, 0
        size += count
    yield text[start:]
