"""Compare the settings of work that is continued with those it began with."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from octavo.errors import OctavoError


def flatten(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names, `section.field`; an empty section has none."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat


def refuse_change(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    error: type[OctavoError],
    *,
    what: str,
    cure: str,
    may_change: Callable[[str], bool] = lambda name: False,
) -> None:
    """Raise `error` for the first setting that differs, unless it `may_change`.

    `before` was read from JSON, and `now` is compared as it would be read back. The message is
    `NAME is NOW, but WHAT with BEFORE; CURE`.
    """
    old, new = flatten(before), flatten(json.loads(json.dumps(now)))
    for name in [*old, *(name for name in new if name not in old)]:
        was, found = old.get(name), new.get(name)
        if was != found and not may_change(name):
            raise error(f"{name} is {found!r}, but {what} with {was!r}; {cure}")
