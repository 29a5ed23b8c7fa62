"""Items of `/v1/responses`: read into chat messages, and said as clients expect them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from octavo.serve.backends.base import TokenTally
from octavo.serve.compaction import digest
from octavo.serve.routes.chat import compression_of
from octavo.serve.service import Service
from octavo.serve.wire import RequestError, new_id

Events = Iterator[tuple[str, dict[str, Any]]]
MAX_CHAIN = 1000
"""Items that a conversation goes on from, and responses that a reference is looked up in."""


def usage_of(tally: TokenTally) -> dict[str, Any]:
    """Return the usage of a response."""
    return {
        "input_tokens": tally.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tally.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": tally.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        "compression": compression_of(tally),
    }


def text_part(text: str) -> dict[str, Any]:
    """Return a part of a message that was said."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_events(call: Any, output: list[dict[str, Any]]) -> Events:
    """Yield the events of one whole tool call."""
    function = call["function"]
    item = {
        "type": "function_call", "id": new_id("fc"), "call_id": call["id"],
        "name": function["name"], "arguments": "", "status": "in_progress",
    }  # fmt: skip
    place = {"output_index": len(output), "item_id": item["id"]}
    yield "response.output_item.added", {"output_index": len(output), "item": dict(item)}
    said = function["arguments"]
    yield "response.function_call_arguments.delta", {**place, "delta": said}
    named = {"name": item["name"], "arguments": said}
    yield "response.function_call_arguments.done", {**place, **named}
    item |= {"arguments": said, "status": "completed"}
    yield "response.output_item.done", {"output_index": len(output), "item": item}
    output.append(item)


def own_items(given: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the items of an `input`."""
    if given is None:
        return []
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def thought_events(text: str, output: list[dict[str, Any]]) -> Events:
    """Yield the events of a thought that grows, which is the last item of `output`."""
    if not _is_thinking(output):
        item: dict[str, Any] = {
            "type": "reasoning", "id": new_id("rs"), "status": "in_progress", "summary": [],
            "content": [],
        }  # fmt: skip
        output.append(item)
        yield "response.output_item.added", {"output_index": len(output) - 1, "item": {**item}}
        item["content"] = [{"type": "reasoning_text", "text": ""}]
    item = output[-1]
    item["content"][0]["text"] += text
    yield "response.reasoning_text.delta", {**_place(output), "delta": text}


def thought_over(output: list[dict[str, Any]]) -> Events:
    """Yield the events that end a thought, if `output` ends with one."""
    if _is_thinking(output):
        item = output[-1]
        item["status"] = "completed"
        said = item["content"][0]["text"]
        yield "response.reasoning_text.done", {**_place(output), "text": said}
        yield "response.output_item.done", {"output_index": len(output) - 1, "item": item}


def _is_thinking(output: list[dict[str, Any]]) -> bool:
    last = output[-1] if output else {}
    return (last.get("type"), last.get("status")) == ("reasoning", "in_progress")


def _place(output: list[dict[str, Any]]) -> dict[str, Any]:
    return {"item_id": output[-1]["id"], "output_index": len(output) - 1, "content_index": 0}


def said_by(item: dict[str, Any], service: Service, owner: str) -> list[dict[str, Any]]:
    """Return the chat messages of an item."""
    kind = item.get("type", "message")
    if kind == "message" and "role" in item:
        return [{"role": item["role"], "content": item.get("content")}]
    if kind in ("function_call", "custom_tool_call"):
        said = item.get("arguments") if kind == "function_call" else item.get("input")
        function = {"name": item.get("name"), "arguments": said}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]
    if kind in ("function_call_output", "custom_tool_call_output"):
        told = item.get("output")
        content = told if isinstance(told, str | list) else json.dumps(told)
        return [{"role": "tool", "tool_call_id": item.get("call_id"), "content": content}]
    if kind == "item_reference":
        return said_by(_referenced(str(item.get("id")), service, owner), service, owner)
    if kind in ("reasoning", "compaction_trigger"):
        return []
    # Something of a newer client: the model reads it as it is.
    return [{"role": "assistant", "content": json.dumps(item)}]


def _referenced(id: str, service: Service, owner: str) -> dict[str, Any]:
    """Return a stored item by its id, out of the latest responses."""
    found, _ = service.database.page(
        "response", owner, after=None, limit=MAX_CHAIN, is_newest_first=True
    )
    for kept in found:
        for item in [*kept["response"]["output"], *kept["items"]]:
            if item.get("id") == id and item.get("type") != "item_reference":
                return dict(item)
    raise RequestError(f"no item {id[:80]!r} is stored; send it whole", param="input")


def is_in(message: dict[str, Any], covered: set[str], reader: Any) -> bool:
    """Whether a compacted conversation holds a message."""
    return digest(reader.read([message])[0]) in covered


def merged(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join a message that is memory alone with the user's next one: most templates alternate."""
    done: list[dict[str, Any]] = []
    for message in messages:
        before = done[-1] if done else {}
        if message["role"] == "user" == before.get("role") and not isinstance(
            before["content"], str
        ):
            said = message["content"]
            parts = [{"type": "text", "text": said}] if isinstance(said, str) else said
            between = {"type": "text", "text": "\n\n"}
            done[-1] = {**before, "content": [*before["content"], between, *parts]}
        else:
            done.append(message)
    return done


def threshold_of(settings: Sequence[dict[str, Any]] | None) -> int | None:
    """Return at how many tokens a conversation is to be folded, if it is."""
    for one in settings or ():
        if one.get("type") == "compaction":
            limit = one.get("compact_threshold")
            if limit is not None and (type(limit) is not int or limit < 1):
                raise RequestError("compact_threshold is no number", param="context_management")
            return limit
    return None
