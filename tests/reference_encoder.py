"""Slow, obvious twins of the encoding half: one window, one block, one latent at a time."""

from typing import Any

import torch
from torch import Tensor

from octavo.nn import LCLM


def encode_span(model: LCLM, ids: list[int], ratio: int) -> tuple[Tensor, Tensor]:
    """Return pooled states and latents of one span, following the specification word for word."""
    settings = model.settings
    window, overlap = settings.encoder_window_size, settings.boundary_overlap
    is_causal = settings.encoder_mask_type == "causal"
    pooled: list[Tensor] = []
    for start in range(0, len(ids), window):
        stop = min(len(ids), start + window)
        left = ids[max(0, start - overlap) : start]
        right = [] if is_causal else ids[stop : stop + overlap]
        blocks = [ids[i : min(i + ratio, stop)] for i in range(start, stop, ratio)]
        markers = [model.encoder.pad_token_id] * len(blocks) if settings.pooling == "eos" else []
        read = [*left, *ids[start:stop], *right, *markers]
        hidden = _hidden_states(model.encoder.body, read, is_causal)
        place = len(left)
        for index, block in enumerate(blocks):
            states = hidden[place : place + len(block)]
            place += len(block)
            if settings.pooling == "mean":
                pooled.append(sum(states) / len(block))
            elif settings.pooling == "concat":
                missing = torch.zeros(ratio - len(block), hidden.shape[1])
                pooled.append(torch.cat([states, missing]).flatten())
            else:
                pooled.append(hidden[len(read) - len(markers) + index])
    return torch.stack(pooled), _adapt(model, torch.stack(pooled))


def _hidden_states(body: Any, ids: list[int], is_causal: bool) -> Tensor:
    """Run the encoder over one window alone, with its mask written out."""
    length = len(ids)
    mask = torch.zeros(1, 1, length, length)
    if is_causal:
        mask = mask.masked_fill(torch.ones(length, length).triu(1).bool(), torch.finfo().min)
    output = body(
        input_ids=torch.tensor([ids]),
        attention_mask=mask,
        position_ids=torch.arange(length).unsqueeze(0),
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def _adapt(model: LCLM, rows: Tensor) -> Tensor:
    adapter = model.adapter
    if adapter.adapter_type == "attn_mlp":
        rows = _attend(adapter, rows)
    lifted = []
    for row in rows:
        normed = row * torch.rsqrt(row.pow(2).mean() + 1e-6) * adapter.norm.weight
        inner = adapter.fc1.weight @ normed + adapter.fc1.bias
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        lifted.append(adapter.fc2.weight @ inner + adapter.fc2.bias)
    rows = torch.stack(lifted)
    return _attend(adapter, rows) if adapter.adapter_type == "mlp_attn" else rows


def _attend(adapter: Any, rows: Tensor) -> Tensor:
    """Qwen3's layer from its parameters: no cache, no mask, every latent sees every other."""
    for layer in adapter.attention_layers:
        part = layer.decoder_layer
        attention, length = part.self_attn, len(rows)
        width = attention.head_dim

        normed = _rms(rows, part.input_layernorm)
        queries = _rms(
            (normed @ attention.q_proj.weight.T).view(length, -1, width), attention.q_norm
        )
        keys = _rms((normed @ attention.k_proj.weight.T).view(length, -1, width), attention.k_norm)
        values = (normed @ attention.v_proj.weight.T).view(length, -1, width)
        angles = torch.outer(torch.arange(length).float(), layer.rotary_emb.inv_freq)
        cos, sin = torch.cat([angles] * 2, 1).cos(), torch.cat([angles] * 2, 1).sin()
        heads = []
        for head in range(queries.shape[1]):
            group = head * keys.shape[1] // queries.shape[1]
            query = _turn(queries[:, head], cos, sin)
            key = _turn(keys[:, group], cos, sin)
            weights = (query @ key.T / width**0.5).softmax(-1)
            heads.append(weights @ values[:, group])
        rows = rows + torch.cat(heads, 1) @ attention.o_proj.weight.T
        normed = _rms(rows, part.post_attention_layernorm)
        gate = normed @ part.mlp.gate_proj.weight.T
        inner = gate * torch.sigmoid(gate) * (normed @ part.mlp.up_proj.weight.T)
        rows = rows + inner @ part.mlp.down_proj.weight.T
    return rows


def _rms(rows: Tensor, norm: Any) -> Tensor:
    return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.weight


def _turn(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = rows.shape[-1] // 2
    return rows * cos + torch.cat([-rows[:, half:], rows[:, :half]], -1) * sin
