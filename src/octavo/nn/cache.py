"""What transformers calls a KV cache: 5.24 renamed `past_key_values` to `cache`; we serve both."""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationMixin

KEYWORD = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""The keyword of this transformers; the other one warns, or is not known at all."""


def as_keyword(cache: Any) -> dict[str, Any]:
    """Return the keyword argument that hands a KV cache to a model of transformers."""
    return {KEYWORD: cache}


def find_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the KV cache among keyword arguments, under either name; None if there is none."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache
