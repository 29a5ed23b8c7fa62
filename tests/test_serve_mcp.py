"""`octavo mcp` as an assistant uses it: through the SDK's own client."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKPOINT, TEXT
from mcp import Client

import octavo
from octavo.serve.mcp import make_server
from octavo.store import Store


def told(result: Any) -> Any:
    assert not result.is_error, result
    return json.loads(result.content[0].text)


def test_an_assistant_keeps_lists_asks_and_expands(
    fake_model: octavo.Model, tmp_path: Path
) -> None:
    (tmp_path / "note.md").write_text(f"# Ferry\n\n{TEXT}", encoding="utf-8")

    async def session() -> None:
        async with Client(make_server(Store(tmp_path / "store"), fake_model)) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == {"add", "list", "ask", "expand", "compress"}
            path = str(tmp_path / "note.md")
            made = told(await client.call_tool("add", {"path": path, "name": "note"}))
            again = told(await client.call_tool("add", {"path": path}))
            assert again["id"] == made["id"]
            found = told(await client.call_tool("ask", {"question": "who signed the lamp oil?"}))
            best = found["passages"][0]
            assert "lamp oil" in best["text"]
            asked = {"id": made["id"], "first": best["passage"]}
            assert told(await client.call_tool("expand", asked))["text"] == best["text"]
            wrong = await client.call_tool("expand", {"id": made["id"], "first": 999})
            assert wrong.is_error
            folded = told(await client.call_tool("compress", {"text": TEXT * 2}))
            assert 0 < folded["latents"] < folded["source_tokens"]

    asyncio.run(session())


@pytest.mark.slow
def test_the_command_speaks_over_stdio(tmp_path: Path) -> None:
    from mcp import StdioServerParameters, stdio_client

    line = ["-m", "octavo", "mcp", "--engine", "fake", "--model", str(CHECKPOINT)]
    store = ["--store", str(tmp_path / "store")]

    async def session() -> None:
        server = StdioServerParameters(
            command=sys.executable, args=[*line, *store], env=dict(os.environ)
        )
        async with Client(stdio_client(server)) as client:
            made = told(await client.call_tool("add", {"text": TEXT}))
            assert made["latents"]

    asyncio.run(session())
