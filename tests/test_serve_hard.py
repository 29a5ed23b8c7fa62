"""What a server survives: kills, hostile bodies, what a fuzzer makes of its own description."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import CHECKPOINT, TEXT
from servers import http_get, http_post, serving

import octavo


def started(store: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the command as a user does, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = ["-m", "octavo", "serve", "--engine", "fake", "--model", str(CHECKPOINT)]
    process = subprocess.Popen(
        [sys.executable, *line, "--store", str(store), "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            if http_get(f"{url}/ready").status_code == 200:
                return process, f"{url}/v1"
        except httpx.HTTPError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the server never came up")


@pytest.mark.slow
def test_what_was_stored_answers_after_a_kill(tmp_path: Path) -> None:
    process, url = started(tmp_path / "store")
    try:
        context = http_post(f"{url}/contexts", json={"text": TEXT * 3}).json()["id"]
        body = {"input": "Who signed?", "max_output_tokens": 4}
        response = http_post(f"{url}/responses", json=body).json()
        history = [{"role": "user", "content": TEXT}]
        blob = http_post(f"{url}/responses/compact", json={"input": history}).json()["output"]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process, url = started(tmp_path / "store")
    try:
        part = {"type": "context", "context_id": context}
        asked: Any = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
        made = http_post(f"{url}/chat/completions", json=asked).json()
        assert made["usage"]["compression"]["latents"] > 0
        assert http_get(f"{url}/responses/{response['id']}").json() == response
        more = {"input": "And?", "previous_response_id": response["id"], "max_output_tokens": 2}
        assert http_post(f"{url}/responses", json=more).status_code == 200
        folded = {"input": [blob[-1], {"role": "user", "content": "And?"}]}
        assert http_post(f"{url}/responses", json=folded).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) is not None


@pytest.mark.slow
@pytest.mark.parametrize("each", [4, 360])
def test_no_request_of_its_own_description_breaks_it(
    fake_model: octavo.Model, tmp_path: Path, each: int
) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = (
        not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )
    with serving(fake_model, tmp_path) as url:
        schema = schemathesis.openapi.from_url(url.removesuffix("v1") + "openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=each, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            def ask(case: Any) -> None:
                case.call_and_validate(checks=checks)

            ask()


def test_half_a_request_costs_nothing(fake_model: octavo.Model, tmp_path: Path) -> None:
    with serving(fake_model, tmp_path, body_seconds=0.3, max_body_bytes=1 << 20) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
        head += "content-type: application/json\r\ncontent-length: 900\r\n\r\n{"
        with socket.create_connection((host, int(port))) as link:
            link.sendall(head.encode())
            link.settimeout(20)
            assert b"408" in link.recv(100)
        with socket.create_connection((host, int(port))) as link:
            link.sendall(head.encode())
            link.shutdown(socket.SHUT_WR)
        too_long = head.replace("900", str(200 << 20)).encode()
        with socket.create_connection((host, int(port))) as link:
            link.sendall(too_long)
            link.settimeout(20)
            assert b"413" in link.recv(100)
        assert http_get(f"{url}/models").status_code == 200
