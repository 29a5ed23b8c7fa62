"""Find the tool calls in what a model said, in the form its chat template taught it.

    Hermes, Qwen     <tool_call>{"name": …, "arguments": {…}}</tool_call>
    Qwen-Coder       <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function>…
    Llama 3          <|python_tag|>{"name": …, "parameters": {…}}      or without the tag
    Mistral          [TOOL_CALLS][{…}, {…}]      or  [TOOL_CALLS]NAME[ARGS]{…}
    no form at all   a line EXPAND: 3, 7-9       or  CALL NAME {…}

Only a model's own words are looked at, never a document's. Nothing is repaired or guessed; faults
are named. What is thought between <think> tags is no call; thought without an end says nothing.
Everything is found by scanning once.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.expand import NAME, WORD

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAG, _CALLS, _ARGS, _ID = "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MAX_CALLS = 16
"""Of one turn; the rest is not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call, or what is wrong with it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a model said, in its parts."""

    text: str
    """Without calls and thoughts: the answer, where there is no call."""
    calls: tuple[Call, ...]


def read_calls(said: str) -> Said:
    """Return the calls of a turn and the text around them."""
    text = _without_thoughts(said)
    for marker, read in ((_OPEN, _tagged), (_CALLS, _mistral), (_TAG, _llama)):
        if marker in text:
            before, _, rest = text.partition(marker)
            return Said(text=before.strip(), calls=tuple(_some(read(rest))))
    if text.lstrip().startswith('{"name"') and '"parameters"' in text:
        return Said(text="", calls=tuple(_some(_llama(text))))
    lines, calls = [], []
    for line in text.splitlines():
        word = line.strip()
        if word[: len(WORD)].upper() == WORD:
            calls.append(Call(name=NAME, arguments={"ids": word[len(WORD) :]}))
        elif word.startswith("CALL "):
            name, _, arguments = word[5:].strip().partition(" ")
            calls.append(_with_arguments(name, arguments or "{}"))
        else:
            lines.append(line)
    return Said(text="\n".join(lines).strip(), calls=tuple(calls[:MAX_CALLS]))


def check_arguments(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with arguments by a JSON schema's names, needs and plain types."""
    known = schema.get("properties", {})
    if missing := [name for name in schema.get("required", ()) if name not in arguments]:
        return f"the argument {missing[0]!r} is missing; give {', '.join(known) or 'none'}"
    for name, value in arguments.items():
        if name not in known:
            return f"there is no argument {str(name)[:40]!r}; give {', '.join(known) or 'none'}"
        kinds: Mapping[str, tuple[type, ...]] = {
            "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
            "array": (list,), "object": (dict,), "null": (type(None),),
        }  # fmt: skip
        wanted = known[name].get("type")
        is_odd_bool = isinstance(value, bool) and wanted in ("integer", "number")
        if wanted in kinds and (is_odd_bool or not isinstance(value, kinds[wanted])):
            return f"the argument {name!r} is {type(value).__name__}, expected {wanted}"
    return None


def _without_thoughts(text: str) -> str:
    """Return a text without <think> … </think>; an end without a beginning ends a thought too."""
    kept: list[str] = []
    at = 0
    if 0 <= (end := text.find("</think>")) and not 0 <= text.find("<think>") < end:
        at = end + len("</think>")  # the template wrote the beginning
    while at >= 0:
        start = text.find("<think>", at)
        kept.append(text[at : start if start >= 0 else None])
        end = text.find("</think>", start) if start >= 0 else -1
        at = end + len("</think>") if end >= 0 else -1
    return "".join(kept)


def _some(calls: Iterator[Call]) -> Iterator[Call]:
    for _, call in zip(range(MAX_CALLS), calls, strict=False):
        yield call


def _tagged(rest: str) -> Iterator[Call]:
    """Yield the calls of Hermes and Qwen, in JSON or in tags; `rest` begins inside the first."""
    while rest:
        body, closed, rest = rest.partition(_CLOSE)
        if not closed and _OPEN in body:  # never closed, and another begins
            body, _, rest = body.partition(_OPEN)
        else:
            rest = rest.partition(_OPEN)[2]
        body = body.strip()
        yield _in_tags(body) if body.startswith("<function=") else _in_json(body, "arguments")


def _in_tags(body: str) -> Call:
    name, ended, rest = body[len("<function=") :].partition(">")
    if not ended or not name:
        return Call(name=name[:40], problem="the call has no name; write <function=NAME>")
    arguments: dict[str, Any] = {}
    while "<parameter=" in rest:
        key, _, rest = rest.partition("<parameter=")[2].partition(">")
        value, closed, rest = rest.partition("</parameter>")
        if not closed:
            return Call(name=name, problem=f"the parameter {key[:40]!r} does not end")
        try:
            arguments[key] = _load(value.strip())[0]
        except ValueError:  # a plain text
            arguments[key] = value.strip("\n")
    return Call(name=name, arguments=arguments)


def _llama(rest: str) -> Iterator[Call]:
    """Yield the calls of Llama 3: objects, one behind another."""
    rest = rest.lstrip()
    while True:
        try:
            value, end = _load(rest)
        except ValueError as error:
            yield Call(name="", problem=f"the call is not JSON ({error})")
            return
        yield _of_object(value, "parameters")
        rest = rest[end:].lstrip("; \n")
        if not rest.startswith("{"):
            return


def _mistral(rest: str) -> Iterator[Call]:
    """Yield the calls of both of Mistral's forms."""
    if rest.lstrip().startswith("["):
        try:
            listed, _ = _load(rest.lstrip())
        except ValueError as error:
            yield Call(name="", problem=f"the call is not JSON ({error})")
            return
        for one in listed:
            yield _of_object(one, "arguments")
        return
    for piece in rest.split(_CALLS):
        name, _, arguments = piece.partition(_ARGS)
        yield _with_arguments(name.partition(_ID)[0].strip(), arguments.strip())


def _in_json(body: str, key: str) -> Call:
    try:
        return _of_object(_load(body)[0], key)
    except ValueError as error:
        return Call(name="", problem=f"the call is not JSON ({error})")


def _of_object(value: Any, key: str) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Call(name="", problem=f'a call is {{"name": …, "{key}": {{…}}}}')
    arguments = value.get(key, value.get("arguments", {}))
    if isinstance(arguments, str):
        return _with_arguments(value["name"], arguments)
    if not isinstance(arguments, dict):
        return Call(name=value["name"], problem=f"{key} are no object")
    return Call(name=value["name"], arguments=arguments)


def _with_arguments(name: str, text: str) -> Call:
    try:
        arguments, _ = _load(text)
    except ValueError as error:
        return Call(name=name[:80], problem=f"the arguments are not JSON ({error})")
    if not isinstance(arguments, dict):
        return Call(name=name[:80], problem="the arguments are no object")
    return Call(name=name[:80], arguments=arguments)


def _load(text: str) -> tuple[Any, int]:
    """Read the JSON value that a text begins with; what follows it is left alone.

    Raises `ValueError` for what JSON has not: NaN, a name given twice, nesting without end.
    """
    try:
        return _DECODER.raw_decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is given twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_once)
