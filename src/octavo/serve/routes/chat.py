"""`/v1/chat/completions` and `/v1/completions`: jobs made of requests, chunks made of pieces."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.serve.backends.agent import AGENT_NAME
from octavo.serve.backends.base import Answering, AnswerJob, Piece, TokenTally
from octavo.serve.parts import fold_long
from octavo.serve.requests import ChatRequest, CompletionRequest
from octavo.serve.service import Service, owner_of, service_of
from octavo.serve.wire import (
    RequestError,
    error_body,
    event,
    new_id,
    now,
    reply,
    shape,
    stream,
    unless_gone,
)

router = APIRouter(prefix="/v1", tags=["answers"])
SHAPE = ("id", "object", "created", "model", "choices", "usage")


@router.post("/chat/completions", responses=shape("The answer.", *SHAPE, streams=True))
async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    form = _Chat(service.model_of(body.model))
    work = _chat_job(service, owner_of(request), body)
    return await _answer(request, service, work, form, body)


@router.post("/completions", responses=shape("The text that follows.", *SHAPE, streams=True))
async def complete(request: Request, body: CompletionRequest) -> Response:
    """Continue a plain text."""
    service = service_of(request)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) != 1 or body.echo or body.suffix:
        raise RequestError(
            "give one prompt, without echo and suffix", param="prompt", code="unsupported_parameter"
        )
    job = AnswerJob(prompt=prompts[0], num_alternatives=body.logprobs, **_drawing(service, body))

    form = _Text(service.model_of(body.model))

    async def made() -> tuple[AnswerJob, int]:
        return job, 0

    return await _answer(request, service, made(), form, body)


async def _chat_job(service: Service, owner: str, body: ChatRequest) -> tuple[AnswerJob, int]:
    """Return the job of a request, and how many messages a policy folded for it."""
    keeps = service.backend.capabilities
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text" and "response_format" not in keeps:
        raise RequestError(
            "this model's answers cannot be held to a response_format; ask for it in words",
            param="response_format", code="unsupported_parameter",
        )  # fmt: skip
    choice = body.tool_choice or "auto"
    if choice not in ("auto", "none") and "tool_choice" not in keeps:
        raise RequestError(
            "this model cannot be made to call a tool; leave tool_choice at auto or none",
            param="tool_choice", code="unsupported_parameter",
        )  # fmt: skip
    messages = await asyncio.to_thread(service.reader(owner).read, body.messages)
    policy = body.compress or service.policy
    messages, folded = await fold_long(messages, policy, service.backend)
    named = {"response_format": body.response_format, "tool_choice": body.tool_choice}
    job = AnswerJob(
        messages=messages,
        tools=checked_tools(body.tools) if choice != "none" else (),
        num_alternatives=(body.top_logprobs or 0) if body.logprobs else None,
        fields={name: value for name, value in named.items() if value is not None},
        **_drawing(service, body),
    )
    return job, folded


def checked_tools(tools: Any) -> list[Any]:
    """Return tools that are functions as chat has them; others are the client's own business."""
    found = []
    for tool in tools or ():
        function = tool.get("function", tool)
        if tool.get("type", "function") != "function":
            continue
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError("a tool needs function.name, a string", param="tools")
        kept = {k: function[k] for k in ("name", "description", "parameters") if k in function}
        found.append({"type": "function", "function": kept})
    return found


def _drawing(service: Service, body: Any) -> dict[str, Any]:
    """Return what both kinds of request say of who answers, and of how tokens are drawn."""
    asked = (body.presence_penalty, body.frequency_penalty, body.logit_bias)
    if any(asked) and "penalties" not in service.backend.capabilities:
        raise RequestError(
            "presence_penalty, frequency_penalty and logit_bias are not served here; leave them "
            "out", code="unsupported_parameter", param="presence_penalty",
        )  # fmt: skip
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    limit = getattr(body, "max_completion_tokens", None) or body.max_tokens
    return {
        "is_agents": body.model == AGENT_NAME,
        "ratio": body.ratio, "n": body.n or 1, "max_new_tokens": limit, "seed": body.seed,
        "temperature": body.temperature or 0.0, "top_p": body.top_p or 1.0,
        "stop": tuple(stop for stop in stops if stop),
    }  # fmt: skip


async def _answer(request: Request, service: Service, work: Any, form: Any, body: Any) -> Response:
    async def begin() -> tuple[Answering, int]:
        job, folded = await work
        return await service.open(job), folded

    opened, folded = await unless_gone(request, begin())
    opened.tally.folded_messages = folded
    if body.stream:
        with_usage = bool((body.stream_options or {}).get("include_usage"))
        events = _chunks(service, opened, form, body.n or 1, with_usage)
        return stream(request, events, service.limits.heartbeat)
    choices = [Choice() for _ in range(body.n or 1)]

    async def whole() -> None:
        async for piece in service.pieces(opened):
            choices[piece.index].add(piece)

    await unless_gone(request, whole())
    return reply(
        {
            **form.head(),
            "object": form.kind,
            "choices": [form.choice(at, choice) for at, choice in enumerate(choices)],
            "usage": usage_of(opened.tally),
        }
    )


async def _chunks(
    service: Service, opened: Answering, form: Any, n: int, with_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream; whatever fails is a chunk too, and the stream then ends."""
    head = {**form.head(), "object": form.chunk_kind}
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    try:
        for index in range(n):
            if (first := form.first(index)) is not None:
                yield event({**head, "choices": [first], **extra})
        async for piece in service.pieces(opened):
            for choice in form.parts(piece):
                yield event({**head, "choices": [choice], **extra})
        if with_usage:
            yield event({**head, "choices": [], "usage": usage_of(opened.tally)})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        service.note(error)
        yield event(error_body(error)[1])
    finally:
        await service.release(opened)


def usage_of(tally: TokenTally) -> dict[str, Any]:
    """Return the usage of chat, with what was compressed."""
    return {
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tally.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "compression": compression_of(tally),
    }


def compression_of(tally: TokenTally) -> dict[str, Any]:
    """Return how much text stands behind the prompt's latents."""
    return {
        "source_tokens": tally.source_tokens,
        "latents": tally.latents,
        "saved_tokens": tally.source_tokens - tally.latents,
        "folded_messages": tally.folded_messages,
    }


@dataclass(slots=True)
class Choice:
    """One answer, put together."""

    text: str = ""
    reasoning: str = ""
    citations: list[Any] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Add a piece."""
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.citations += piece.citations
        for call in piece.calls:
            if call["index"] < len(self.calls):  # another server sends arguments in parts
                whole = self.calls[call["index"]]["function"]
                whole["arguments"] += call.get("function", {}).get("arguments") or ""
            else:
                whole = {k: v for k, v in call.items() if k != "index"}
                self.calls.append({**whole, "function": dict(whole.get("function", {}))})
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish


class _Chat:
    """How chat says it."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str) -> None:
        self._model, self._id, self._created = model, new_id("chatcmpl"), now()

    def head(self) -> dict[str, Any]:
        """Return what every chunk holds."""
        return {"id": self._id, "created": self._created, "model": self._model}

    def first(self, index: int) -> dict[str, Any] | None:
        """Return the chunk that says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the choices of a piece's chunks: what it says, then that it ends."""
        found: list[dict[str, Any]] = []
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.calls:
            delta["tool_calls"] = list(piece.calls)
        delta |= _beside(piece.reasoning, piece.citations)
        logprobs = {"content": list(piece.logprobs), "refusal": None} if piece.logprobs else None
        if delta or logprobs:
            said: dict[str, Any] = {"delta": delta, "logprobs": logprobs, "finish_reason": None}
            found.append({"index": piece.index, **said})
        if piece.finish:
            end: dict[str, Any] = {"delta": {}, "logprobs": None, "finish_reason": piece.finish}
            found.append({"index": piece.index, **end})
        return found

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        message: dict[str, Any] = {
            "role": "assistant", "content": choice.text, "refusal": None, "annotations": [],
        }  # fmt: skip
        message |= _beside(choice.reasoning, choice.citations)
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        logprobs = {"content": choice.logprobs, "refusal": None} if choice.logprobs else None
        return {
            "index": index, "message": message, "logprobs": logprobs,
            "finish_reason": choice.finish or "stop",
        }  # fmt: skip


def _beside(reasoning: str, citations: Sequence[Any]) -> dict[str, Any]:
    """Return what stands beside an answer; clients read the first under either name."""
    said = {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}
    return {**said, "citations": list(citations)} if citations else said


class _Text(_Chat):
    """How the older completions say it."""

    kind = chunk_kind = "text_completion"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._offset: dict[int, int] = {}

    def first(self, index: int) -> dict[str, Any] | None:
        """Nobody speaks."""
        return None

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the choice of a piece's chunk."""
        logprobs = self._logprobs(piece.index, piece.logprobs)
        return [
            {"index": piece.index, "text": piece.text, "logprobs": logprobs,
             "finish_reason": piece.finish}
        ]  # fmt: skip

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a whole text."""
        return {
            "index": index, "text": choice.text, "finish_reason": choice.finish or "stop",
            "logprobs": self._logprobs(index, choice.logprobs),
        }  # fmt: skip

    def _logprobs(self, index: int, entries: Any) -> dict[str, Any] | None:
        if not entries:
            return None
        offsets = []
        for entry in entries:
            offsets.append(self._offset.get(index, 0))
            self._offset[index] = offsets[-1] + len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries
            ],
            "text_offset": offsets,
        }
