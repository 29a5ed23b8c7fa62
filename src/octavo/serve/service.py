"""What all routes share: the backend, the store, what is remembered, and what is measured."""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from octavo.errors import OctavoError
from octavo.ingest import read_document
from octavo.serve.backends.agent import AGENT_NAME
from octavo.serve.backends.base import Answering, AnswerJob, Backend, Piece
from octavo.serve.backends.local import LocalBackend
from octavo.serve.compaction import Seal
from octavo.serve.database import Database
from octavo.serve.limits import Limits
from octavo.serve.parts import Reader
from octavo.serve.requests import CompressPolicy
from octavo.serve.wire import RequestError
from octavo.store import Store

log = logging.getLogger("octavo.serve")


class Service:
    """One server's parts."""

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        limits: Limits,
        policy: CompressPolicy | None = None,
    ) -> None:
        """Open the store and what is remembered beside it."""
        self.backend, self.limits, self.policy = backend, limits, policy
        self.store = Store(folder)
        self.database = Database(folder / "serve.sqlite")
        self.seal = Seal(folder / "serve.key", backend.fingerprint)
        self.metrics = Metrics(backend)

    def model_of(self, asked: str | None) -> str:
        """Return the model's name; raises 404 for another one's."""
        if asked == AGENT_NAME and self.backend.model is not None:
            return AGENT_NAME
        if asked and asked != self.backend.name:
            raise RequestError(
                f"the model {asked[:80]!r} is not here; ask for {self.backend.name!r}, or none",
                status=404, code="model_not_found", param="model",
            )  # fmt: skip
        return self.backend.name

    def reader(self, owner: str) -> Reader:
        """Return what reads the messages of one caller."""
        return Reader(
            lambda id: self.memory_of(id, owner), lambda id: self.file_text(id, owner), extract
        )

    def check_context(self, id: str, owner: str) -> None:
        """Raise 404 for a context that is not the caller's; without keys all of the store is."""
        is_there = self.database.get("context", id, owner) is not None if owner else True
        try:
            if is_there and id:
                self.store.entry(id)
                return
        except OctavoError:
            pass
        raise RequestError(
            f"no context {id[:80]!r}; list yours with GET /v1/contexts",
            status=404, code="context_not_found",
        )  # fmt: skip

    def memory_of(self, id: str, owner: str) -> Mapping[str, Any]:
        """Return the memory part of a stored context."""
        self.check_context(id, owner)
        entry = self.store.entry(id)
        if self.backend.model is not None and entry.latents and entry.parts == 1:
            return {"context": self.store.context(id)}
        return {"text": self.store.text(id)}

    def file_text(self, id: str, owner: str) -> str:
        """Return the text of an uploaded file."""
        found, data = self.database.get("file", id, owner), self.database.data("file", id, owner)
        if found is None or data is None:
            raise no_file(id)
        return extract(data, found["filename"])

    async def open(self, job: AnswerJob) -> Answering:
        """Let the backend begin, and count it."""
        self.metrics.requests.inc()
        return await self.backend.open(job)

    async def pieces(self, opened: Answering) -> AsyncIterator[Piece]:
        """Yield a reply's pieces, measured, and ended where it takes too long."""
        started, is_first = time.perf_counter(), True
        pieces = opened.pieces()
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                async for piece in pieces:
                    if is_first:
                        self.metrics.first_token.observe(time.perf_counter() - started)
                        is_first = False
                    yield piece
        except TimeoutError:
            raise RequestError(
                f"the answer took more than {self.limits.answer_seconds:.0f} s and was ended; ask "
                "for a shorter one", status=503,
            ) from None  # fmt: skip
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
            self.metrics.count(opened)

    async def release(self, opened: Answering) -> None:
        """Free what a reply holds, also if nobody read it."""
        await opened.aclose()

    def note(self, error: Exception) -> None:
        """Log an error that is not the client's; never its text, which may hold a user's."""
        if not isinstance(error, OctavoError):
            log.error("failed: %s", type(error).__name__, exc_info=error)

    async def close(self) -> None:
        """Let go of everything."""
        await self.backend.close()
        self.database.close()


class Metrics:
    """What `/metrics` shows."""

    def __init__(self, backend: Backend) -> None:
        """Make a registry of this server's own."""
        self.registry = CollectorRegistry()
        new: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("octavo_requests", "Jobs given to the backend.", **new)
        self.first_token = Histogram(
            "octavo_first_token_seconds", "From the queue to the first token.", **new,
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
        )  # fmt: skip
        self._tokens = Counter("octavo_tokens", "Tokens, by what became of them.", ["kind"], **new)
        for kind in ("prompt", "completion", "cached", "source", "latent"):
            self._tokens.labels(kind)
        if isinstance(backend, LocalBackend):
            for name in backend.load:
                gauge = Gauge(f"octavo_{name}", f"The backend's {name} now.", **new)
                gauge.set_function(partial(_load_of, backend, name))

    def count(self, opened: Answering) -> None:
        """Add what a job took."""
        tally = opened.tally
        self._tokens.labels("prompt").inc(tally.prompt_tokens)
        self._tokens.labels("completion").inc(tally.completion_tokens)
        self._tokens.labels("cached").inc(tally.cached_tokens)
        self._tokens.labels("source").inc(tally.source_tokens)
        self._tokens.labels("latent").inc(tally.latents)


def _load_of(backend: LocalBackend, name: str) -> float:
    return backend.load[name]


def extract(data: bytes, name: str) -> str:
    """Return a document's text as `octavo.ingest` reads files of that name."""
    suffix = Path(name.replace("\0", "").replace("/", "_")).suffix[:12]
    suffix = suffix.encode("ascii", "ignore").decode()
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        path = Path(folder) / f"document{suffix or '.txt'}"
        path.write_bytes(data)
        try:
            return read_document(path).text
        except OctavoError as error:
            raise RequestError(str(error).replace(str(path), "the file")) from error


def service_of(request: Request) -> Service:
    """Return the service of the app that a request came to."""
    found: Service = request.app.state.service
    return found


def owner_of(request: Request) -> str:
    """Return whose key a request came with."""
    return str(request.scope["octavo.caller"].owner)


def no_file(id: str) -> RequestError:
    """Return the refusal of a file that is not the caller's, or not there."""
    return RequestError(
        f"no file {id[:80]!r}: it was never uploaded, or is gone; list yours with GET /v1/files",
        status=404, code="file_not_found",
    )  # fmt: skip
