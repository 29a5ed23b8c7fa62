"""Turn the values of a TOML file into nested dataclasses, naming the key that does not fit."""

import dataclasses
import difflib
import tomllib
import types
import typing
from typing import Any, Literal

from octavo.errors import TrainingError


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value, given as `section.field=value` in TOML, where a bare word is a string."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise TrainingError(f"--set {override!r} is not section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, last = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise TrainingError(f"--set {override!r}: {section!r} is a value, not a section")
    values[last] = value


def build(kind: Any, values: Any, where: str) -> Any:
    """Turn a TOML value into `kind`, naming the key that does not fit."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(values, dict):
            raise TrainingError(f"{where} is {values!r}, expected a section")
        hints = typing.get_type_hints(kind)
        for name in values:
            if name not in hints:
                raise TrainingError(
                    f"unknown key {f'{where}.{name}'.lstrip('.')!r}{did_you_mean(name, hints)}"
                )
        built = {n: build(hints[n], v, f"{where}.{n}".lstrip(".")) for n, v in values.items()}
        return kind(**built)  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return build(next(a for a in arguments if a is not type(None)), values, where)
    if origin is Literal:
        if values not in arguments:
            raise TrainingError(f"{where} is {values!r}, expected one of {', '.join(arguments)}")
        return values
    if origin is list:  # one value may stand for a list of one: --set data.train=book.txt
        values = values if isinstance(values, list) else [values]
        return [build(arguments[0], value, where) for value in values]
    if origin is dict and isinstance(values, dict):
        return {name: build(arguments[1], v, f"{where}.{name}") for name, v in values.items()}
    if kind is float and isinstance(values, int) and not isinstance(values, bool):
        return float(values)
    wanted = origin or kind
    if not isinstance(values, wanted) or (isinstance(values, bool) and wanted is not bool):
        raise TrainingError(f"{where} is {values!r}, expected {wanted.__name__}")
    return values


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """Return the end of a message about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
