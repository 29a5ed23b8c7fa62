"""What goes over the wire whatever the route: ids, JSON, error bodies, event streams.

Error bodies are `{"error": {message, type, param, code}}`, for the official client reads no other.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from octavo.errors import OctavoError, PromptTooLongError

T = TypeVar("T")
HEARTBEAT_SECONDS = 15.0
"""Clients time out an idle stream after 300 s, proxies after 60."""


class RequestError(OctavoError):
    """A request that is refused, with the status and code that clients act on."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what was given, what was expected and what to do."""
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})


def new_id(kind: str) -> str:
    """Return an id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(16)}"


def now() -> int:
    """Return the Unix time in seconds."""
    return int(time.time())


def to_json(content: Any) -> str:
    """Return JSON in ASCII: half a surrogate pair from a request goes back escaped, as it came."""
    return json.dumps(content, separators=(",", ":"))


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(to_json(content), status, headers, media_type="application/json")


def error_body(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, body and headers that say an error; ours in full, others as a 500."""
    status, kind, code, param = 400, "invalid_request_error", None, None
    message, headers = str(error), {}
    if isinstance(error, RequestError):
        status, code, param, headers = error.status, error.code, error.param, error.headers
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "server_error" if status >= 500 else kind)
    elif isinstance(error, PromptTooLongError):
        code, param = "context_length_exceeded", "messages"
    elif not isinstance(error, OctavoError):
        status, kind = 500, "server_error"
        message = f"the server failed ({type(error).__name__}); its log says more"
    return (
        status,
        {"error": {"message": message, "type": kind, "param": param, "code": code}},
        headers,
    )


def event(content: Any, name: str | None = None) -> bytes:
    """Return one server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {to_json(content)}\n\n".encode()


async def gone(request: Request) -> None:
    """Wait until the client has left; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Any) -> Any:
    """Return what a coroutine returns, but cancel it as soon as the client leaves."""
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    leaving: asyncio.Future[Any] = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError("the client left", status=499)
        return task.result()
    finally:
        await _surely(_cancelled(task, leaving))


_cleaning: set[asyncio.Future[Any]] = set()
"""What ends in the background; the event loop itself keeps no task alive."""


async def _surely(work: Any) -> None:
    """Run a coroutine to its end, whoever cancels the caller, be it at every `await` again.

    A client that leaves cancels a response's scope so, and what it held must be freed all the same.
    """
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    _cleaning.add(task)
    task.add_done_callback(_cleaning.discard)
    await asyncio.shield(task)


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _closed(events: AsyncIterator[bytes], *tasks: asyncio.Future[Any]) -> None:
    await _cancelled(*tasks)
    await events.aclose()  # type: ignore[attr-defined]


def stream(request: Request, events: AsyncIterator[bytes], heartbeat: bool) -> StreamingResponse:
    """Return a response that sends events, with comments between where they are long in coming.

    When the client leaves, the iterator is closed at once, which must free its work.
    """

    async def sent() -> AsyncIterator[bytes]:
        leaving: asyncio.Future[Any] = asyncio.ensure_future(gone(request))
        coming: asyncio.Future[Any] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events))
                await asyncio.wait(
                    {coming, leaving},
                    timeout=HEARTBEAT_SECONDS if heartbeat else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if coming.done():
                    try:
                        piece = coming.result()
                    except StopAsyncIteration:
                        return
                    coming = None
                    yield piece
                elif leaving.done():
                    return
                else:
                    yield b": still at work\n\n"
        finally:
            await _surely(_closed(events, leaving, *([coming] if coming else [])))

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(sent(), media_type="text/event-stream", headers=headers)


def shape(description: str, *required: str, streams: bool = False) -> dict[int | str, Any]:
    """Return what the OpenAPI page says of a route's answer: the fields that are always there."""
    schema = {"type": "object", "required": list(required)}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if streams:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for a schema of each event
    return {200: {"description": description, "content": content}}


ERRORS: dict[int | str, Any] = {
    "4XX": {
        "description": "Refused; the message says what to do.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["message", "type", "param", "code"],
                        }
                    },
                }
            }
        },
    }
}
