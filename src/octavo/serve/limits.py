"""Who may ask, for what, and how much: keys from a file, and a guard in front of every route.

The key file is TOML, one table a key:

    [[key]]
    name = "laptop"                  # owns what is made with it; keep it when you change the key
    sha256 = "9f86d081…"             # of the key; or `key = "sk-…"` itself
    scopes = ["answer", "store"]     # by default all: answer, store, metrics
"""

import asyncio
import hashlib
import hmac
import logging
import time
import tomllib
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zstandard
from starlette.exceptions import HTTPException

from octavo.errors import ConfigError
from octavo.serve.wire import RequestError, error_body, new_id, reply

SCOPES = ("answer", "store", "metrics")
OPEN_PATHS = ("/", "/health", "/ready", "/docs", "/openapi.json")
log = logging.getLogger("octavo.serve")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one server takes on."""

    max_body_bytes: int = 64 << 20
    """Of a request, uploads included, after it is unpacked."""
    body_seconds: float = 30.0
    """A client that sends nothing for so long, in the middle of its request, is let go."""
    answer_seconds: float = 600.0
    """An answer that takes longer is ended; the official client waits no longer either."""
    max_rows: int = 32
    """Answers that are made at once."""
    max_waiting: int = 256
    """Requests at work or waiting; more are told to come again (429)."""
    max_new_tokens: int = 1024
    """Longest answer where a request names no limit."""
    heartbeat: bool = True
    """Whether streams hold comments while nothing comes; a few parsers cannot read them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from."""

    owner: str
    scopes: frozenset[str]


ANYBODY = Caller("", frozenset(SCOPES))
"""On a server without keys, which listens to this machine alone."""


class Keys:
    """The keys of a file, each with its scopes."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises `ConfigError` for whatever is not as it should be."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))["key"]
            self._callers = [_caller(table) for table in tables]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the key file {path} cannot be used ({type(error).__name__}: {error}); write one "
                f"[[key]] table a key, with name, sha256 (or key) and scopes out of {SCOPES}"
            ) from error
        names = [caller.owner for _, caller in self._callers]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the key file {path} has no key, or two of one name; name each once")

    def find(self, key: str) -> Caller | None:
        """Return whose key it is; every key is compared, and each in constant time."""
        digest, found = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest(), None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def _caller(table: dict[str, Any]) -> tuple[str, Caller]:
    """Read one table of the key file."""
    scopes = frozenset(table.get("scopes", SCOPES))
    if not table["name"] or not scopes <= set(SCOPES):
        raise ValueError(f"the scopes of {table['name']!r} are {sorted(scopes)}")
    if "key" in table:
        return hashlib.sha256(table["key"].encode()).hexdigest(), Caller(table["name"], scopes)
    digest = table["sha256"].lower()
    if len(bytes.fromhex(digest)) != 32:
        raise ValueError(f"the sha256 of {table['name']!r} has not 64 hex digits")
    return digest, Caller(table["name"], scopes)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def scope_of(path: str) -> str | None:
    """Return which scope a path needs; None for those open to all."""
    if path in OPEN_PATHS:
        return None
    if path == "/metrics":
        return "metrics"
    is_store = path.startswith(("/v1/contexts", "/v1/files")) and path != "/v1/contexts/ask"
    return "store" if is_store else "answer"


class Guard:
    """The outermost layer: who asks, from where, how much; and what is logged of it."""

    def __init__(self, app: Any, *, keys: Keys | None, limits: Limits) -> None:
        """Stand before `app`."""
        self._app, self._keys, self._limits = app, keys, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        request_id, started, status = new_id("req"), time.perf_counter(), 0
        origin = headers.get("origin")
        own = [(b"x-request-id", request_id.encode())]
        if origin is not None and self._trusts(origin):
            own += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", b"x-request-id, retry-after"),
                (b"vary", b"origin"),
            ]

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight(headers)(scope, receive, answer)
            else:
                scope["octavo.caller"] = self._admit(scope["path"], headers)
                await self._app(scope, _Body(receive, headers, self._limits), answer)
        except RequestError as error:
            if not status:
                code, body, extra = error_body(error)
                await reply(body, code, {**extra, "connection": "close"})(scope, receive, answer)
        finally:
            log.info(
                "%s %s %s %d %.3f s", request_id, scope["method"], _route(scope), status,
                time.perf_counter() - started,
            )  # fmt: skip

    def _trusts(self, origin: str) -> bool:
        """Whether a page of that origin may talk to us: with keys any, without one of here."""
        return self._keys is not None or is_loopback(urlsplit(origin).hostname or "")

    def _admit(self, path: str, headers: dict[str, str]) -> Caller:
        """Return who asks, or refuse."""
        if self._keys is None:
            # A page elsewhere must not reach a server that trusts whoever is here.
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
            if not is_loopback(host) or not self._trusts(headers.get("origin", "//localhost")):
                raise RequestError(
                    "a server without keys answers this machine's own pages and programs only; "
                    "ask for it by localhost, or start it with --api-key-file", status=403,
                )  # fmt: skip
            return ANYBODY
        needed = scope_of(path)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        caller = self._keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if needed is None:
            return caller or Caller("", frozenset())
        if caller is None:
            raise RequestError(
                "no key, or one that is not known; send it as `Authorization: Bearer KEY`",
                status=401, code="invalid_api_key", headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        if needed not in caller.scopes:
            raise RequestError(
                f"this key lacks the scope {needed!r}; use another, or add it in the key file",
                status=403, code="insufficient_scope",
            )  # fmt: skip
        return caller


def _route(scope: Scope) -> str:
    """Return a path as its route has it: without ids and names, which may be somebody's."""
    return str(getattr(scope.get("route"), "path", "-"))


def _preflight(headers: dict[str, str]) -> Any:
    """Answer a browser that asks what it may send; the guard says whether."""
    allowed = {
        "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
        "access-control-allow-headers": headers.get("access-control-request-headers", "*"),
        "access-control-max-age": "600",
    }
    return reply({}, 200, allowed)


class _Body:
    """The body of a request as it comes: unpacked, counted, and not waited for without end."""

    def __init__(self, receive: Receive, headers: dict[str, str], limits: Limits) -> None:
        self._receive, self._limits, self._size, self._is_whole = receive, limits, 0, False
        coding = headers.get("content-encoding", "identity").lower()
        self._unpack: Any = None
        self._is_zstd = coding == "zstd"
        if coding in ("gzip", "deflate"):
            self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif self._is_zstd:
            self._unpack = zstandard.ZstdDecompressor().decompressobj()
        elif coding != "identity":
            raise RequestError(
                f"the content encoding {coding[:40]!r} is not known; send gzip, zstd or none",
                status=415,
            )
        if headers.get("content-length", "0").isdigit():
            self._count(int(headers.get("content-length", "0")))
            self._size = 0

    async def __call__(self) -> dict[str, Any]:
        try:
            return await self._next()
        except RequestError as error:  # FastAPI would take any other kind for a broken body
            raise HTTPException(error.status, str(error)) from error

    async def _next(self) -> dict[str, Any]:
        if self._is_whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.body_seconds)
        except TimeoutError:
            raise RequestError("the request's body did not come in time", status=408) from None
        if message["type"] != "http.request":
            return message
        self._is_whole = not message.get("more_body")
        body = message.get("body", b"")
        if self._unpack is not None and body:
            body = self._unpacked(body)
        self._count(len(body))
        return {**message, "body": body}

    def _unpacked(self, body: bytes) -> bytes:
        try:
            if self._is_zstd:
                # It knows no bound of its own: small pieces keep what one may unpack to small.
                pieces = []
                for at in range(0, len(body), 1024):
                    pieces.append(self._unpack.decompress(body[at : at + 1024]))
                    self._count(len(pieces[-1]))
                self._size -= sum(map(len, pieces))
                return b"".join(pieces)
            found: bytes = self._unpack.decompress(body, self._limits.max_body_bytes + 1)
            return found
        except (zlib.error, zstandard.ZstdError) as error:
            raise RequestError("the body cannot be unpacked; send it as it says it is") from error

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.max_body_bytes:
            raise RequestError(
                f"the body is larger than {self._limits.max_body_bytes >> 20} MiB; send less, "
                "or start the server with a larger --max-body", status=413,
            )  # fmt: skip
