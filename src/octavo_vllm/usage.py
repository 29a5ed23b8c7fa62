"""Say in the usage of an answer how many source tokens were read, and as how many latents.

vLLM has no place for these counts. `--middleware octavo_vllm.usage.MemoryUsage` adds them:

    "usage": {"prompt_tokens": 540, "completion_tokens": 9, "source_tokens": 8048, "latents": 503}
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

Message = MutableMapping[str, Any]
_counts: ContextVar[dict[str, int] | None] = ContextVar("counts", default=None)


def count(source_tokens: int, latents: int) -> None:
    """Add to the counts of the request that is being answered, where somebody wants to know."""
    if (counts := _counts.get()) is not None:
        counts["source_tokens"] += source_tokens
        counts["latents"] += latents


class MemoryUsage:
    """An ASGI middleware; it changes `usage`, and passes everything else on as it is."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        counts = {"source_tokens": 0, "latents": 0}
        _counts.set(counts)
        await self._app(scope, receive, _Answer(send, counts).send)


class _Answer:
    """Rewrites one answer on its way out: JSON once it is whole, events as they come."""

    def __init__(self, send: Any, counts: dict[str, int]) -> None:
        self._send, self._counts = send, counts
        self._start: Message | None = None
        self._body, self._kind = b"", ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            self._kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0]
            if self._kind == "application/json" and message["status"] == 200:
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _with_counts(self._body, self._counts)
            rest = [one for one in self._start["headers"] if one[0].lower() != b"content-length"]
            size = (b"content-length", str(len(body)).encode())
            await self._send({**self._start, "headers": [*rest, size]})
            message = {**message, "body": body}
        elif message["type"] == "http.response.body" and self._kind == "text/event-stream":
            lines = message.get("body", b"").split(b"\n")
            for at, line in enumerate(lines):  # vLLM sends every event in a message of its own
                if line.startswith(b"data: {") and b'"usage"' in line:
                    lines[at] = b"data: " + _with_counts(line[6:], self._counts)
            message = {**message, "body": b"\n".join(lines)}
        await self._send(message)


def _with_counts(body: bytes, counts: dict[str, int]) -> bytes:
    """Return JSON with the counts in its `usage`, or in that of its `response`."""
    try:
        values = json.loads(body)
    except ValueError:
        return body
    if not isinstance(values, dict):
        return body
    for holder in (values, values.get("response")):
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            holder["usage"] |= counts
            return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return body
