"""Servers that run in a thread of the test's process, and a small stand-in for `vllm serve`."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import uvicorn

import octavo
from octavo.serve.app import make_app
from octavo.serve.backends.base import Backend
from octavo.serve.backends.local import LocalBackend
from octavo.serve.limits import Keys, Limits
from octavo.serve.requests import CompressPolicy
from octavo.serve.service import Service

KEYS = """
[[key]]
name = "ada"
key = "sk-ada"
[[key]]
name = "bob"
key = "sk-bob"
[[key]]
name = "reader"
key = "sk-reader"
scopes = ["answer"]
"""

# The library's own five seconds are short of what a busy machine may take.
http_get, http_post = partial(httpx.get, timeout=60), partial(httpx.post, timeout=60)


@contextlib.contextmanager
def serving(
    model: octavo.Model | None,
    folder: Path,
    *,
    backend: Backend | None = None,
    keys: bool = False,
    policy: CompressPolicy | None = None,
    **limits: Any,
) -> Iterator[str]:
    """Serve a model, or a backend; yield the address with its /v1."""
    bounds = Limits(**limits)
    if backend is None:
        assert model is not None
        backend = LocalBackend(model, bounds)
    known = None
    if keys:
        (folder / "keys.toml").write_text(KEYS, encoding="utf-8")
        known = Keys(folder / "keys.toml")
    service = Service(backend, folder / "store", bounds, policy)
    app = make_app(service, known)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(app, port=port, log_config=None, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


def wait_for(url: str, line: str) -> None:
    """Wait until a line stands in the metrics of a server at `url`, which ends with /v1."""
    for _ in range(3000):
        if line in http_get(url.removesuffix("v1") + "metrics").text:
            return
        time.sleep(0.02)
    raise AssertionError(f"{line} never came")


class Upstream(BaseHTTPRequestHandler):
    """Answers as vLLM does; what it was sent stands in `sent`."""

    sent: list[dict[str, Any]]
    refuses = False
    calls = False

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": "far", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.sent.append(body)
        if body.get("max_tokens") == 99:
            error = {"message": "maximum context length is 10", "code": 400}
            self._say({"error": error}, 400)
            return
        self.send_response(200)
        self.end_headers()
        if self.calls:
            self._chunk({"choices": [{"index": 0, "delta": {"reasoning": "Let me look."}}]})
            for part in (
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": ""}},
                {"function": {"arguments": '{"at"'}},
                {"function": {"arguments": ": 1}"}},
            ):
                delta = {"tool_calls": [{"index": 0, **part}]}
                self._chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        for piece in () if self.calls else ("three", " crates"):
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            self._chunk({"choices": [choice]})
        reason = "tool_calls" if self.calls else "stop"
        self._chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        details = {"cached_tokens": 4}
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": details}
        usage |= {"source_tokens": 30, "latents": 7}  # as the plugin's middleware says it
        self._chunk({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, content: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _say(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def upstream(calls: bool = False) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run the stand-in; yield its address and what it is sent."""
    sent: list[dict[str, Any]] = []
    kind = type("Handler", (Upstream,), {"sent": sent, "calls": calls})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
