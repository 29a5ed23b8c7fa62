"""Presses that need no kvpress: one that does nothing, and one that throws most of a cache away."""

import contextlib
from collections.abc import Iterator
from typing import Any

from octavo.nn.cache import find_cache


def nothing(decoder: Any) -> Any:
    """Press nothing."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def last_quarter(decoder: Any) -> Iterator[None]:
    """Keep the last quarter of the cache, as a press does after a prefill."""
    seen: dict[str, Any] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen["cache"] = find_cache(kwargs)

    hook = decoder.model.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
    for layer in seen["cache"].layers:
        kept = layer.keys.shape[2] // 4
        layer.keys, layer.values = layer.keys[:, :, -kept:], layer.values[:, :, -kept:]
