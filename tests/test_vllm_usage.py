"""The counts that are added to the usage of answers; this part of the plugin needs no vLLM."""

import asyncio
import json
from typing import Any

from octavo_vllm.usage import MemoryUsage, count


def run(
    messages: list[dict[str, Any]], *, method: str = "POST", tokens: int = 0
) -> list[dict[str, Any]]:
    """Return what leaves the middleware when an application sends these messages."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        # As vLLM does: prompts are read in tasks of their own.
        await asyncio.gather(asyncio.to_thread(lambda: None), counted())
        for message in messages:
            await send(message)

    async def counted() -> None:
        count(tokens, tokens // 16)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(MemoryUsage(application)({"type": "http", "method": method}, None, send))
    return sent


def start(kind: str, status: int = 200, **headers: str) -> dict[str, Any]:
    fields = [(b"content-type", kind.encode())]
    fields += [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": fields}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def test_a_whole_answer_says_what_was_read() -> None:
    raw = json.dumps({"choices": ["é"], "usage": {"prompt_tokens": 9}}).encode()
    head, tail = run(
        [
            start("application/json", **{"Content-Length": str(len(raw)), "x-id": "1"}),
            body(raw[:7], more=True),
            body(raw[7:]),
        ],
        tokens=160,
    )
    answer = json.loads(tail["body"])
    assert answer["usage"] == {"prompt_tokens": 9, "source_tokens": 160, "latents": 10}
    assert answer["choices"] == ["é"]
    assert dict(head["headers"])[b"content-length"] == str(len(tail["body"])).encode()
    assert len(head["headers"]) == 3


def test_the_last_event_of_a_stream_says_what_was_read() -> None:
    text = b'data: {"choices":[{"delta":{"content":"the \\"usage\\" of"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9}}\n\n'
    responses = b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":9}}}\n\n'
    done = b"data: [DONE]\n\n"
    sent = run(
        [
            start("text/event-stream; charset=utf-8"),
            *(body(one, more=True) for one in (text, usage, responses, done)),
        ],
        tokens=32,
    )
    assert sent[1]["body"] == text
    assert json.loads(sent[2]["body"][6:])["usage"]["source_tokens"] == 32
    lines = sent[3]["body"].split(b"\n")
    assert lines[0] == b"event: response.completed"
    assert json.loads(lines[1][6:])["response"]["usage"]["latents"] == 2
    assert sent[4]["body"] == done


def test_everything_else_passes_as_it_is() -> None:
    for messages in (
        [start("application/json", 400), body(b'{"usage": {}}')],
        [start("text/plain"), body(b'{"usage": {}}')],
        [start("application/json"), body(b"not json")],
        [start("application/json"), body(b'["usage"]')],
    ):
        sent = run(messages, tokens=5)
        assert [one.get("body") for one in sent] == [one.get("body") for one in messages]
    messages = [start("application/json"), body(b'{"usage": {}}')]
    assert run(messages, method="GET", tokens=5) == messages


def test_counts_of_one_request_are_not_those_of_the_next() -> None:
    answers = [start("application/json"), body(b'{"usage": {}}')]
    for tokens in (48, 0):
        usage = json.loads(run(answers, tokens=tokens)[1]["body"])["usage"]
        assert usage == {"source_tokens": tokens, "latents": tokens // 16}
