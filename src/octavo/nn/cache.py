"""What transformers calls a KV cache: 5.24 renamed `past_key_values` to `cache`; we serve both."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from octavo.errors import ConfigError

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


def is_empty(cache: Any) -> bool:
    """Return whether nothing was read yet; compiled code must not look, and says no."""
    return cache is None or not (torch.compiler.is_compiling() or cache.get_seq_length())


def output_cache(output: Any) -> tuple[str, Any]:
    """Return the KV cache or recurrent state of a decoder's output, and what it is called."""
    for name in (KEYWORD, "cache", "past_key_values", "cache_params", "state"):
        if (cache := output.get(name)) is not None:
            return name, cache
    raise ConfigError(
        f"{type(output).__name__} holds no cache, so this decoder cannot continue a prompt"
    )


def bytes_of(cache: Any) -> int:
    """Return what the keys and values of a cache hold, spare room left out."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        if layer.keys is not None
        for tensor in (layer.keys, layer.values)
    )


def fresh_cache(decoder: Any) -> Any:
    """Return an empty cache of the kind a decoder asks for, or None where it makes its own."""
    decoder = decoder.get_base_model() if hasattr(decoder, "peft_config") else decoder
    if KEYWORD not in inspect.signature(decoder.forward).parameters:
        return None
    if not decoder._supports_default_dynamic_cache():
        return None
    return DynamicCache(config=decoder.config.get_text_config(decoder=True))


def places(decoder: Any, first: int, count: int, device: Any) -> dict[str, Any]:
    """Return the arguments that tell a decoder where new positions are, as far as it takes them.

    Some count from 0 in every pass if nobody says, Bamba for one.
    """
    decoder = decoder.get_base_model() if hasattr(decoder, "peft_config") else decoder
    known = inspect.signature(decoder.forward).parameters
    positions_T = torch.arange(first, first + count, device=device)
    given = {"cache_position": positions_T, "position_ids": positions_T[None]}
    return {name: value for name, value in given.items() if name in known}


def has_plain_cache(decoder: Any) -> bool:
    """Return whether every layer of a decoder keeps keys and values, and nothing else.

    Such a cache can be cut back and laid beside others. Recurrent layers keep a state instead,
    which has no positions: transformers calls those models stateful, or gives their layers other
    types.
    """
    if getattr(decoder, "_is_stateful", False):
        return False
    config = decoder.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not set(kinds or ()) <= {"full_attention", "sliding_attention", "chunked_attention"}:
        return False
    return all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        for layer in DynamicCache(config=decoder.config).layers
    )
