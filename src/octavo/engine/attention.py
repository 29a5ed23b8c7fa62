"""Let a decoder read several tokens behind a KV cache without a mask.

Shapes: B rows, H query heads, G key heads, T new positions, S all positions, W head width.

For new positions behind old ones transformers' own `sdpa` makes a mask of T x S values, with which
torch takes neither its flash kernel nor shared key heads.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

NAME = "octavo-sdpa"


def use_lower_right(decoder: Any) -> None:
    """Let a decoder that uses `sdpa` use ours; any other attention was somebody's choice."""
    if getattr(decoder.config, "_attn_implementation", None) == "sdpa":
        decoder.set_attn_implementation(NAME)


def make_mask(**asked: Any) -> Tensor | None:
    """Return the mask that `sdpa` would get, but none where new positions follow all that is kept.

    Packed examples, sliding windows, filled-up rows and caches with room at their end need one.
    """
    is_plain = asked.get("attention_mask") is None
    if is_plain and asked.get("mask_function", causal_mask_function) is causal_mask_function:
        if (places := asked.get("cache_position")) is not None:  # transformers before 5.3
            stop = int(places[-1]) + 1
        else:
            stop = int(asked["q_offset"]) + asked["q_length"]
        if stop == asked["kv_length"] and not asked.get("kv_offset"):
            return None
    mask: Tensor | None = sdpa_mask(**{**asked, "allow_is_causal_skip": False})
    return mask


def attend(
    module: Any,
    query_BHTW: Tensor,
    key_BGSW: Tensor,
    value_BGSW: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as `sdpa` does, whose arguments these are, also behind a cache without a mask."""
    heads, num_new = query_BHTW.shape[1:3]
    groups, num_all = key_BGSW.shape[1:3]
    if attention_mask is None and 1 < num_new < num_all:
        output_BHTW = torch.nn.functional.scaled_dot_product_attention(
            query_BHTW,
            key_BGSW,
            value_BGSW,
            attn_mask=causal_lower_right(num_new, num_all),
            scale=scaling,
            enable_gqa=heads != groups,
        )
        return output_BHTW.transpose(1, 2).contiguous(), None
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query_BHTW, key_BGSW, value_BGSW, attention_mask, dropout, scaling, **others
    )
    return attended


# Once, here: kvpress wraps every attention that is known when it is imported.
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, make_mask)
