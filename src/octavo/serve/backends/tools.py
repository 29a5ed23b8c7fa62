"""Tool calls as text, shown to models whose template knows none, and found in what they say.

The format is the one that most open models were taught (Hermes, Qwen): a JSON object with `name`
and `arguments` between `<tool_call>` and `</tool_call>`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.serve.wire import new_id
from octavo.text import overlap

THINK, THOUGHT = "<think>", "</think>"
"""Between these, models that were taught to think first (Qwen3, DeepSeek-R1) do so."""
OPEN, CLOSE = "<tool_call>", "</tool_call>"


def knows_tools(template: Any) -> bool:
    """Whether a chat template shows tools itself."""
    return "tools" in str(template or "")


def described(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return what a system message says of tools."""
    listed = "\n".join(json.dumps(tool) for tool in tools)
    return (
        f"You can call these tools:\n{listed}\nTo call one, answer with {OPEN}"
        f'{{"name": NAME, "arguments": {{...}}}}{CLOSE} and nothing else.'
    )


def spelled_out(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose tool calls, or whose being a tool's result, are words in it."""
    read = dict(message)
    if calls := read.pop("tool_calls", None):
        said = [
            f"{OPEN}{json.dumps({k: call['function'][k] for k in ('name', 'arguments')})}{CLOSE}"
            for call in calls
        ]
        content = read.get("content") or ""
        if not isinstance(content, str):
            read["content"] = [*content, {"type": "text", "text": "\n".join(said)}]
        else:
            read["content"] = "\n".join([*([content] if content else []), *said])
    read.pop("tool_call_id", None)
    if read["role"] in ("tool", "function"):
        read["role"] = "user"
        content = read.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        read["content"] = [
            {"type": "text", "text": "<tool_response>\n"},
            *parts,
            {"type": "text", "text": "\n</tool_response>"},
        ]
    return read


class CallReader:
    """Takes the calls out of an answer as it grows; what is no call stays text."""

    def __init__(self) -> None:
        """Begin outside of any call."""
        self._held, self._is_inside = "", False
        self.num_calls = 0

    def push(self, piece: str, *, is_last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """Add a piece and return the text that is certain, and the calls that are whole."""
        self._held += piece
        text, calls = "", []
        while True:
            tag = CLOSE if self._is_inside else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            if not self._is_inside:
                text += before
            elif (call := self._call(before)) is not None:
                calls.append(call)
            else:
                text += OPEN + before + CLOSE
            self._held, self._is_inside = after, not self._is_inside
        if is_last:
            text += (OPEN if self._is_inside else "") + self._held
            self._held = ""
        elif not self._is_inside:
            certain = len(self._held) - overlap(self._held, OPEN)
            text, self._held = text + self._held[:certain], self._held[certain:]
        return text, calls

    def _call(self, said: str) -> dict[str, Any] | None:
        try:
            asked = json.loads(said)
            name, arguments = asked["name"], asked.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if not isinstance(name, str):
            return None
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        self.num_calls += 1
        return {
            "index": self.num_calls - 1,
            "id": new_id("call"),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }


class ThoughtReader:
    """Takes what a model thinks first out of its answer, as the answer grows."""

    def __init__(self, is_thinking: bool) -> None:
        """Begin; `is_thinking` where the prompt itself ends with the opening tag."""
        self._held, self._is_thinking, self._may_begin = "", is_thinking, not is_thinking
        self._is_after = False

    def push(self, piece: str, *, is_last: bool = False) -> tuple[str, str]:
        """Add a piece; return what is certainly thought, and what is certainly said."""
        self._held += piece
        if self._may_begin:
            begun = self._held.lstrip()
            if begun.startswith(THINK):
                self._held, self._is_thinking = begun.removeprefix(THINK), True
            elif THINK.startswith(begun) and not is_last:
                return "", ""
            self._may_begin = False
        thought = ""
        if self._is_thinking:
            thought, found, after = self._held.partition(THOUGHT)
            if found:
                self._is_thinking, self._is_after, self._held = False, True, after
        if not self._is_thinking:
            said, self._held = self._held.lstrip() if self._is_after else self._held, ""
            self._is_after = self._is_after and not said
            return thought, said
        certain = len(self._held) - (0 if is_last else overlap(self._held, THOUGHT))
        thought, self._held = self._held[:certain], self._held[certain:]
        return thought, ""
