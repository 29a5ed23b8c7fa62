"""Lift pooled encoder states to latents in the decoder's width.

Shapes: K latents of one span, E pooled width (ratio times the encoder's for concat), D decoder
width.

`mlp` treats each latent alone. `attn_mlp` and `mlp_attn` also run whole transformer layers, without
a causal mask, over all latents of one span: before the MLP in the encoder's width, or after it in
the decoder's. Parameter names and mathematics are those of the published `adapter.safetensors`
(wire-format §3).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.errors import ConfigError
from octavo.nn.body import headless, layers_of

NORM_EPS = 1e-6  # wire-format §3
NO_ADAPTER = "layers of a {} cannot be an adapter's; set adapter_type='mlp'"
LIFTED_AT_ONCE = 4_096
"""Vectors in one pass of the MLP: its activations then do not grow with the text."""


class AttentionLayer(nn.Module):
    """One decoder layer of the host model, seeing in both directions, with its own rotary."""

    def __init__(self, host: Any) -> None:
        """Build a fresh layer of the kind and size that the headless model `host` is made of."""
        super().__init__()
        try:
            # The host's own config: what is set on it, as another attention, must reach this too.
            self.decoder_layer = type(layers_of(host)[0])(host.config, layer_idx=0)
            # The flag, not a mask: with no mask at all, every attention implementation obeys it.
            self.decoder_layer.self_attn.is_causal = False
            self.rotary_emb = type(host.rotary_emb)(config=host.config)
        except (AttributeError, TypeError) as error:
            raise ConfigError(NO_ADAPTER.format(host.config.model_type)) from error

    def forward(self, hidden_KD: Tensor) -> Tensor:
        """Let the K latents of one span see each other; positions are 0..K-1."""
        hidden_1KD = hidden_KD.unsqueeze(0)
        positions_1K = torch.arange(len(hidden_KD), device=hidden_KD.device).unsqueeze(0)
        output = self.decoder_layer(
            hidden_1KD,
            attention_mask=None,
            position_ids=positions_1K,
            position_embeddings=self.rotary_emb(hidden_1KD, positions_1K),
        )
        # Older transformers return a tuple from a layer.
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result.squeeze(0)


class Adapter(nn.Module):
    """RMSNorm, two linear layers around an exact GELU, and optional attention around them."""

    def __init__(self, config: ModelConfig, encoder_body: Any, decoder: Any) -> None:
        """Size the adapter from its two neighbours, a headless model and a causal LM."""
        super().__init__()
        width = encoder_body.config.get_text_config().hidden_size
        self.width = lifted = decoder.get_input_embeddings().weight.shape[-1]
        if config.pooling == "concat":
            width *= config.compression_ratio
        self.adapter_type = config.adapter_type
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, lifted)
        self.fc2 = nn.Linear(lifted, lifted)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)
        if config.adapter_type != "mlp":
            host = encoder_body if config.adapter_type == "attn_mlp" else headless(decoder)
            self.attention_layers = nn.ModuleList(
                AttentionLayer(host) for _ in range(config.num_adapter_layers)
            )
            for layer in self.attention_layers.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)  # wire-format §3
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def forward(self, spans: Sequence[Tensor]) -> list[Tensor]:
        """Lift each span's `pooled_KE` to `latents_KD`. Spans never attend to each other."""
        if not spans:
            return []
        dtype = self.norm.weight.dtype  # that of the linear layers may be quantised
        lengths = [len(span) for span in spans]
        if self.adapter_type == "attn_mlp":
            spans = [self._attend(span.to(dtype)) for span in spans]
        joined = (torch.cat(list(spans)) if len(spans) > 1 else spans[0]).to(dtype)
        if torch.is_grad_enabled():
            lifted = self._lift(joined)
        else:
            lifted = joined.new_empty(len(joined), self.width)
            for start in range(0, len(joined), LIFTED_AT_ONCE):
                stop = start + LIFTED_AT_ONCE
                lifted[start:stop] = self._lift(joined[start:stop])
        spans = list(lifted.split(lengths))
        if self.adapter_type == "mlp_attn":
            spans = [self._attend(span) for span in spans]
        return list(spans)

    def _lift(self, pooled_KE: Tensor) -> Tensor:
        lifted_KD: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm(pooled_KE))))
        return lifted_KD

    def _attend(self, span: Tensor) -> Tensor:
        for layer in self.attention_layers:
            span = layer(span)
        return span
