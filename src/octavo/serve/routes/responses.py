"""`/v1/responses`: conversations that the server remembers, and folds when they grow long."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from octavo.serve.backends.agent import AGENT_NAME
from octavo.serve.backends.base import Answering, AnswerJob, TokenTally
from octavo.serve.compaction import digest, plain_text, written_down
from octavo.serve.parts import fold_long
from octavo.serve.requests import ResponseRequest
from octavo.serve.routes.chat import Choice, checked_tools
from octavo.serve.routes.contexts import PAGE, page_of
from octavo.serve.routes.items import (
    MAX_CHAIN,
    call_events,
    is_in,
    merged,
    own_items,
    said_by,
    text_part,
    thought_events,
    thought_over,
    threshold_of,
    usage_of,
)
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

router = APIRouter(prefix="/v1", tags=["responses"])
SHAPE = (
    "id", "object", "created_at", "model", "output", "parallel_tool_calls", "tool_choice", "tools",
    "status",
)  # fmt: skip


@router.post("/responses", responses=shape("The response.", *SHAPE, streams=True))
async def respond(request: Request, body: ResponseRequest) -> Response:
    """Answer, remember, and fold the conversation where it has grown past a threshold."""
    service, owner = service_of(request), owner_of(request)
    turn = Turn(service, owner, body)
    if body.background:
        raise RequestError("background responses are not served; stream", param="background")
    kind = ((body.text or {}).get("format") or {}).get("type", "text")
    if kind != "text" and "response_format" not in service.backend.capabilities:
        raise RequestError(
            "this model's answers cannot be held to a format", param="text",
            code="unsupported_parameter",
        )  # fmt: skip
    await unless_gone(request, turn.prepare())
    if body.stream:
        return stream(request, _sent(turn), service.limits.heartbeat)

    async def whole() -> dict[str, Any]:
        return dict([made async for _, made in turn.events()][-1]["response"])

    done = await unless_gone(request, whole())
    return reply(done)


async def _sent(turn: "Turn") -> AsyncIterator[bytes]:
    number = 0
    events = turn.events()
    try:
        async for name, content in events:
            yield event({"type": name, "sequence_number": number, **content}, name)
            number += 1
    except Exception as error:
        turn.service.note(error)
        said = error_body(error)[1]["error"]
        failed = turn.body_of("failed", [], None)
        failed["error"] = {"code": "server_error", "message": said["message"]}
        name = "response.failed"
        yield event({"type": name, "sequence_number": number, "response": failed}, name)
    finally:
        await events.aclose()  # type: ignore[attr-defined]


class Turn:
    """One response on its way."""

    def __init__(self, service: Service, owner: str, body: ResponseRequest) -> None:
        """Take a request."""
        self.service, self.owner, self.request = service, owner, body
        self.id, self.created, self.model = new_id("resp"), now(), service.model_of(body.model)
        self.items: list[dict[str, Any]] = []
        self.own: list[dict[str, Any]] = []
        self.job = AnswerJob()
        self.opened: Answering | None = None
        self.compaction: dict[str, Any] | None = None
        self.folded = 0

    async def prepare(self) -> None:
        """Read the conversation, fold it where it is long, and let the backend begin."""
        self.own = own_items(self.request.input)
        self.items = [*self._before(), *self.own]
        is_asked = bool(self.own) and self.own[-1].get("type") == "compaction_trigger"
        messages = await asyncio.to_thread(self._messages, self.items)
        threshold = threshold_of(self.request.context_management)
        is_long = False
        if threshold is not None and not is_asked:
            tally = await self.service.backend.measure(self._job(messages))
            is_long = tally.prompt_tokens >= threshold
        if is_asked or is_long:
            self.compaction, messages = self._compact(messages, keep_last=not is_asked)
        if not is_asked:
            messages, self.folded = await fold_long(
                messages, self.request.compress or self.service.policy, self.service.backend
            )
            self.job = self._job(messages)
            self.opened = await self.service.open(self.job)
            self.opened.tally.folded_messages = self.folded

    def _job(self, messages: Sequence[Any]) -> AnswerJob:
        body = self.request
        return AnswerJob(
            messages=messages, ratio=body.ratio, max_new_tokens=body.max_output_tokens,
            temperature=body.temperature or 0.0, top_p=body.top_p or 1.0,
            tools=checked_tools(body.tools) if body.tool_choice != "none" else (),
            is_agents=self.model == AGENT_NAME,
        )  # fmt: skip

    def _before(self) -> list[dict[str, Any]]:
        """Return the items of the conversation that this one continues."""
        id = self.request.previous_response_id
        found = self.service.database.get("response", id, self.owner) if id else None
        if id and found is None:
            raise RequestError(
                f"no response {id[:80]!r}: it was never stored, or is gone; send the items again",
                code="previous_response_not_found", param="previous_response_id",
            )  # fmt: skip
        return [*found["items"], *found["response"]["output"]] if found else []

    def _messages(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what the items say, with compacted parts as memory."""
        wire: list[dict[str, Any]] = []
        if self.request.instructions:
            wire.append({"role": "system", "content": self.request.instructions})
        reader = self.service.reader(self.owner)
        for item in items:
            if item.get("type") == "compaction":
                text, covered = self.service.seal.open(item.get("encrypted_content"), self.owner)
                # What the compacted part holds is read there; what it does not stays.
                kept = [m for m in wire if m["role"] == "system" or not is_in(m, covered, reader)]
                memory = {"type": "text", "text": text, "memory": True}
                wire = [*kept, {"role": "user", "content": [memory]}]
            else:
                wire += said_by(item, self.service, self.owner)
        return merged(reader.read(wire))

    def _compact(
        self, messages: list[dict[str, Any]], *, keep_last: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the compaction item of a conversation, and the messages that go on from it."""
        system = [message for message in messages if message["role"] == "system"]
        others = [message for message in messages if message["role"] != "system"]
        users = [at for at, message in enumerate(others) if message["role"] == "user"]
        cut = users[-1] if keep_last and users else len(others)
        folded, rest = others[:cut], others[cut:]
        if not folded and keep_last:  # one long message: nothing stands before it
            return {}, messages
        text = written_down(folded) or "(nothing was said)"
        item = self.service.seal.close(text, [digest(one) for one in folded], self.owner)
        memory = {"role": "user", "content": [{"type": "memory", "text": text}]}
        return item, merged([*system, memory, *rest])

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield every event in the order that clients rely on; the last holds the response."""
        output: list[dict[str, Any]] = []
        yield "response.created", {"response": self.body_of("in_progress", [], None)}
        yield "response.in_progress", {"response": self.body_of("in_progress", [], None)}
        try:
            if self.compaction:
                for name in ("response.output_item.added", "response.output_item.done"):
                    yield name, {"output_index": 0, "item": self.compaction}
                output.append(self.compaction)
            status = "completed"
            if self.opened is not None:
                async for name, content in self._spoken(output):
                    if name:
                        yield name, content
                    else:
                        status = content["status"]
        finally:
            if self.opened is not None:
                await self.service.release(self.opened)
        tally = self.opened.tally if self.opened is not None else TokenTally()
        done = self.body_of(status, output, tally)
        if self.request.store is not False:
            kept = {"id": self.id, "response": done, "items": self._kept_items()}
            self.service.database.put("response", self.id, self.owner, kept)
        yield f"response.{status}", {"response": done}

    def _kept_items(self) -> list[dict[str, Any]]:
        """Return what a later response reads before this one's output."""
        if self.compaction and self.own:
            own = [item for item in self.own if item.get("type") != "compaction_trigger"]
            last = [item for item in own if item.get("role") == "user"][-1:]
            return [] if self.opened is None else last
        return self.items[-MAX_CHAIN:]

    async def _spoken(
        self, output: list[dict[str, Any]]
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield the events of a message and of calls; at the end, unnamed, the status."""
        message: dict[str, Any] | None = None
        said = Choice()
        place: dict[str, Any] = {}
        assert self.opened is not None
        async for piece in self.service.pieces(self.opened):
            if piece.reasoning:
                for one in thought_events(piece.reasoning, output):
                    yield one
            if piece.text or piece.calls or piece.finish:
                for one in thought_over(output):
                    yield one
            if piece.text and message is None:
                message = {
                    "type": "message", "id": new_id("msg"), "role": "assistant",
                    "status": "in_progress", "content": [],
                }  # fmt: skip
                place = {"output_index": len(output), "item_id": message["id"], "content_index": 0}
                output.append(message)
                added = {"output_index": place["output_index"], "item": dict(message)}
                yield "response.output_item.added", added
                yield "response.content_part.added", {**place, "part": text_part("")}
            if piece.text:
                delta = {**place, "delta": piece.text, "logprobs": []}
                yield "response.output_text.delta", delta
            said.add(piece)
        if message is not None:
            yield "response.output_text.done", {**place, "text": said.text, "logprobs": []}
            yield "response.content_part.done", {**place, "part": text_part(said.text)}
            message |= {"status": "completed", "content": [text_part(said.text)]}
            message |= {"citations": said.citations} if said.citations else {}
            yield "response.output_item.done", {
                "output_index": place["output_index"], "item": dict(message),
            }  # fmt: skip
        for call in said.calls:
            for one in call_events(call, output):
                yield one
        yield "", {"status": "incomplete" if said.finish == "length" else "completed"}

    def body_of(self, status: str, output: list[Any], tally: TokenTally | None) -> dict[str, Any]:
        """Return the response as it stands."""
        body = self.request
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "error": None, "incomplete_details": reason, "model": self.model, "output": output,
            "parallel_tool_calls": True, "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [], "instructions": body.instructions, "background": False,
            "previous_response_id": body.previous_response_id, "metadata": body.metadata or {},
            "temperature": body.temperature or 0.0, "top_p": body.top_p or 1.0,
            "max_output_tokens": body.max_output_tokens, "text": {"format": {"type": "text"}},
            "usage": None if tally is None else usage_of(tally),
        }  # fmt: skip


# -- the other routes ----------------------------------------------------------------------------


@router.post("/responses/compact", responses=shape("Folded.", "id", "object", "output", "usage"))
async def compact(request: Request, body: ResponseRequest) -> Response:
    """Fold a conversation into one item, which stands for it from then on."""
    service, owner = service_of(request), owner_of(request)
    turn = Turn(service, owner, body)
    items = [*turn._before(), *own_items(body.input)]
    messages = await asyncio.to_thread(turn._messages, items)
    others = [message for message in messages if message["role"] != "system"]
    if not others:
        raise RequestError("there is nothing to compact; give input", param="input")
    tally = await unless_gone(request, service.backend.measure(turn._job(messages)))
    item, _ = turn._compact(messages, keep_last=False)
    users = [
        {"type": "message", "id": new_id("msg"), "role": "user", "status": "completed",
         "content": [{"type": "input_text", "text": plain_text(message)}]}
        for message in others
        if message["role"] == "user" and isinstance(message["content"], str)
    ]  # fmt: skip
    return reply(
        {
            "id": new_id("resp"), "object": "response.compaction", "created_at": now(),
            "model": turn.model, "output": [*users, item], "usage": usage_of(tally),
        }
    )  # fmt: skip


@router.post("/responses/input_tokens", responses=shape("A count.", "object", "input_tokens"))
async def count_input(request: Request, body: ResponseRequest) -> Response:
    """Count what a response would read."""
    turn = Turn(service_of(request), owner_of(request), body)
    items = [*turn._before(), *own_items(body.input)]
    messages = await asyncio.to_thread(turn._messages, items)
    tally = await unless_gone(request, turn.service.backend.measure(turn._job(messages)))
    return reply({"object": "response.input_tokens", "input_tokens": tally.prompt_tokens})


def _stored(request: Request, id: str) -> dict[str, Any]:
    found = service_of(request).database.get("response", id, owner_of(request))
    if found is None:
        raise RequestError(f"no response {id[:80]!r}", status=404, code="response_not_found")
    return dict(found)


@router.get("/responses/{response_id}", responses=shape("The response.", *SHAPE, streams=True))
async def get_response(request: Request, response_id: str, stream: bool = False) -> Response:
    """Show a response, or play it again as the events it was."""
    kept = _stored(request, response_id)["response"]
    if not stream:
        return reply(kept)
    begun = {**kept, "status": "in_progress", "output": []}
    names = [("response.created", begun), ("response.in_progress", begun)]
    names.append((f"response.{kept['status']}", kept))
    lines = [
        event({"type": name, "sequence_number": at, "response": body}, name)
        for at, (name, body) in enumerate(names)
    ]
    return Response(b"".join(lines), media_type="text/event-stream")


@router.delete("/responses/{response_id}", responses=shape("It is gone.", "id", "deleted"))
async def delete_response(request: Request, response_id: str) -> Response:
    """Forget a response."""
    _stored(request, response_id)
    service_of(request).database.delete("response", response_id, owner_of(request))
    return reply({"id": response_id, "object": "response.deleted", "deleted": True})


@router.post("/responses/{response_id}/cancel", responses=shape("The response.", *SHAPE))
async def cancel_response(request: Request, response_id: str) -> Response:
    """Return a response, which has ended already: none runs in the background."""
    return reply(_stored(request, response_id)["response"])


@router.get("/responses/{response_id}/input_items", responses=shape("A page.", *PAGE))
async def list_input_items(
    request: Request,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    order: str = "desc",
) -> Response:
    """List what a response read."""
    items = [
        {"type": "message", **item, "id": item.get("id") or f"{response_id}-{at}"}
        for at, item in enumerate(_stored(request, response_id)["items"])
    ]
    items = items if order == "asc" else items[::-1]
    places = [at for at, item in enumerate(items) if item["id"] == after]
    rest = items[places[0] + 1 :] if places else items
    return reply(page_of(rest[:limit], len(rest) > limit))
