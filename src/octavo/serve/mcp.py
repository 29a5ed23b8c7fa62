"""The store as tools of the Model Context Protocol, over stdio: for coding agents and desktops.

Passages with their places come first, since those are what a reader can trust.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import MCPServer

import octavo
from octavo.ask.sources import TextSource, find_passages
from octavo.ingest import read_document
from octavo.model import Model
from octavo.store import Store, StoreEntry


def make_server(store: Store, model: Model | None) -> MCPServer:
    """Return the tools; without a model, texts are indexed and not folded."""
    server = MCPServer(
        "octavo",
        version=octavo.__version__,
        instructions="Keep long texts here once, then ask for the passages that matter.",
        log_level="ERROR",
    )

    @server.tool()
    async def add(text: str = "", path: str = "", name: str = "") -> dict[str, Any]:
        """Keep a text, or the document at a path; returns its id. The same text is kept once."""
        given = await asyncio.to_thread(read_document, Path(path)) if path else text
        entry = await asyncio.to_thread(store.add, given, model=model, name=name or None)
        return _shown(entry)

    @server.tool(name="list")
    def list_entries(tag: str = "") -> list[dict[str, Any]]:
        """List what is kept."""
        return [_shown(entry) for entry in store.list(tag=tag or None)]

    @server.tool()
    async def ask(question: str, ids: list[str] | None = None, passages: int = 5) -> dict[str, Any]:
        """Find the passages that answer a question, in some texts or in all, with their places."""
        kept = [store.entry(id) for id in ids] if ids else list(store.list())
        sources = [
            TextSource(
                title=one.title, index=store.open_index(one), read=partial(store.text, one.id)
            )
            for one in kept
            if one.has_text
        ]
        found = await asyncio.to_thread(find_passages, question, sources, max(1, min(passages, 50)))
        return {
            "passages": [
                {
                    "id": kept[one.source].id, "title": one.title, "passage": one.passage.index,
                    "line": one.passage.line, "heading": one.passage.heading,
                    "start": one.passage.start, "end": one.passage.end, "text": one.text,
                }
                for one in found
            ]
        }  # fmt: skip

    @server.tool()
    def expand(id: str, first: int, last: int | None = None) -> dict[str, Any]:
        """Return passages `first` to `last` of a text, word for word."""
        index, text = store.index(id), store.text(id)
        stop = min(len(index), (first if last is None else last) + 1)
        pieces = [index.passage(at) for at in range(max(0, first), stop)]
        if not pieces:
            raise ValueError(f"{id} has passages 0 to {len(index) - 1}; {first} is not one of them")
        return {
            "id": id, "start": pieces[0].start, "end": pieces[-1].end,
            "text": text[pieces[0].start : pieces[-1].end],
        }  # fmt: skip

    @server.tool()
    async def compress(text: str, ratio: int | None = None) -> dict[str, Any]:
        """Fold a text into latents, keep it, and say what that saves."""
        if model is None:
            raise ValueError("this server runs without a model; start it with --model")
        entry = await asyncio.to_thread(store.add, text, model=model, ratio=ratio)
        return _shown(entry)

    return server


def _shown(entry: StoreEntry) -> dict[str, Any]:
    return {
        "id": entry.id, "title": entry.title, "characters": entry.characters,
        "passages": entry.passages, "source_tokens": entry.source_tokens,
        "latents": entry.latents, "ratio": entry.ratio, "tags": list(entry.tags),
    }  # fmt: skip
