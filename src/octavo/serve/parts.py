"""From the messages of a request to messages as `octavo.prompt` reads them.

Documents become memory parts: files, stored contexts, text marked `"memory": true`, and what a
policy folds by itself because it is long.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.errors import PromptError
from octavo.prompt import asks_for_latents
from octavo.serve.backends.base import Backend
from octavo.serve.requests import CompressPolicy
from octavo.serve.wire import RequestError

KEPT_TAIL = 600
"""Characters at the end of the last user message that a policy leaves as they are: questions stand
behind what they are about."""
FindContext = Callable[[str], Mapping[str, Any]]
"""Returns the memory part of a stored context."""
FindFile = Callable[[str], str]
"""Returns the text of an uploaded file."""


class Reader:
    """Reads messages for one caller."""

    def __init__(self, find_context: FindContext, find_file: FindFile, extract: Any) -> None:
        """Look ids up by what the caller owns; `extract(data, name)` turns documents into text."""
        self._find_context, self._find_file, self._extract = find_context, find_file, extract

    def read(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with plain parts, all system messages as one, at the front."""
        found = [self._message(message, f"messages[{at}]") for at, message in enumerate(messages)]
        system = [message for message in found if message["role"] == "system"]
        others = [message for message in found if message["role"] != "system"]
        if not system:
            return others
        parts: list[Any] = []
        for message in system:
            content = message["content"]
            between = [{"type": "text", "text": "\n\n"}] if parts else []
            said = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts += [*between, *said]
        if all(part["type"] == "text" for part in parts):
            return [{"role": "system", "content": "".join(p["text"] for p in parts)}, *others]
        return [{"role": "system", "content": parts}, *others]

    def _message(self, message: Mapping[str, Any], param: str) -> dict[str, Any]:
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise RequestError(f"a message has the role {role!r}; give a word", param=param)
        read: dict[str, Any] = {"role": "system" if role == "developer" else role}
        content = message.get("content")
        if content is None:
            read["content"] = ""
        elif isinstance(content, str):
            read["content"] = content
        elif isinstance(content, Sequence):
            read["content"] = [self._part(part, param) for part in content]
        else:
            raise RequestError(
                f"a content is {type(content).__name__}; give a string or parts", param=param
            )
        if calls := message.get("tool_calls"):
            read["tool_calls"] = [_call(call, param) for call in _listed(calls, param)]
        if isinstance(message.get("tool_call_id"), str):
            read["tool_call_id"] = message["tool_call_id"]
        return read

    def _part(self, part: Any, param: str) -> dict[str, Any]:
        if not isinstance(part, Mapping) or not isinstance(kind := part.get("type"), str):
            raise RequestError('a content part needs a "type"', param=param)
        if kind in ("text", "input_text", "output_text", "refusal", "memory"):
            text = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str):
                raise RequestError(f"a {kind} part holds no text", param=param)
            return _text_or_memory(text, part, param)
        if kind == "context":
            return {"type": "memory", **self._find_context(_string(part, "context_id", param))}
        if kind in ("file", "input_file"):
            given = part.get("file") if kind == "file" else part
            if not isinstance(given, Mapping):
                raise RequestError("a file part holds no file", param=param)
            return _text_or_memory(self._file_text(given, param), part, param)
        raise RequestError(
            f"content parts of type {kind[:40]!r} cannot be read here; give text, file or context",
            param=param, code="unsupported_content",
        )  # fmt: skip

    def _file_text(self, given: Mapping[str, Any], param: str) -> str:
        if given.get("file_id") is not None:
            return self._find_file(_string(given, "file_id", param))
        if given.get("file_url") is not None:
            raise RequestError("files are not fetched from elsewhere; send file_data", param=param)
        data = _string(given, "file_data", param)
        encoded = data.partition(",")[2] if data.startswith("data:") else data
        try:
            raw = base64.b64decode(encoded.encode(), validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("file_data is neither base64 nor a data URI", param=param) from error
        name = given.get("filename")
        return str(self._extract(raw, name if isinstance(name, str) else "file.txt"))


def _text_or_memory(text: str, part: Mapping[str, Any], param: str) -> dict[str, Any]:
    try:
        is_memory, ratio = asks_for_latents(part)
    except PromptError as error:
        raise RequestError(str(error), param=param) from error
    if not is_memory:
        return {"type": "text", "text": text}
    if ratio is not None and (type(ratio) is not int or ratio < 1):
        raise RequestError(f"a part's ratio is {ratio!r}; give a number", param=param)
    return {"type": "memory", "text": text, **({"ratio": ratio} if ratio else {})}


def _string(part: Mapping[str, Any], name: str, param: str) -> str:
    value = part.get(name)
    if not isinstance(value, str) or not value:
        raise RequestError(f"a part lacks {name}, a string", param=param)
    return value


def _listed(value: Any, param: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RequestError("tool_calls is no list", param=param)
    return value


def _call(call: Any, param: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object where they are one."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError("a tool call needs function.name", param=param)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
        except (ValueError, RecursionError):
            pass  # what a model made up stays as it said it
    made = {"name": function["name"], "arguments": arguments}
    return {"id": str(call.get("id") or ""), "type": "function", "function": made}


async def fold_long(
    messages: Sequence[dict[str, Any]], policy: CompressPolicy | None, backend: Backend
) -> tuple[list[dict[str, Any]], int]:
    """Return messages whose long ones are memory, as a policy says, and how many those are."""
    if policy is None:
        return list(messages), 0
    done, folded = [], 0
    users = [at for at, message in enumerate(messages) if message["role"] == "user"]
    for at, message in enumerate(messages):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] in policy.roles:
            made: list[Any] = []
            for number, part in enumerate(parts):
                is_last = at == users[-1] and number == len(parts) - 1 if users else False
                made += await _folded(part, policy, backend, keep_tail=is_last)
            if made != parts:
                folded += 1
                message = {**message, "content": made}
        done.append(message)
    return done, folded


async def _folded(
    part: dict[str, Any], policy: CompressPolicy, backend: Backend, *, keep_tail: bool
) -> list[dict[str, Any]]:
    """Return the parts that a text part becomes: memory if it is long, and maybe its end."""
    text = part.get("text", "")
    if part["type"] != "text" or len(text) <= policy.over_tokens or not text.strip():
        return [part]
    if await backend.count(text) <= policy.over_tokens:
        return [part]
    cut = len(text)
    if keep_tail:
        breaks = [m.end() for m in re.finditer(r"\n+", text[-KEPT_TAIL:])]
        cut = len(text) - KEPT_TAIL + (breaks[0] if breaks else 0)
    if not text[:cut].strip():
        return [part]
    memory = {"type": "memory", "text": text[:cut]}
    if policy.ratio is not None:
        memory["ratio"] = policy.ratio
    rest = [{"type": "text", "text": f"\n\n{text[cut:]}"}] if text[cut:].strip() else []
    return [memory, *rest]
