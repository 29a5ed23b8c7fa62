"""Count what a model must cost at least: arithmetic to train and to read, bytes to decode.

    training    2 FLOPs forward per parameter and token, 2 more to pass the gradient on, and 2 more
                where the weight itself is trained; the output layer at scored positions only. The
                share of a device's peak that it makes is the MFU (arXiv 2204.02311, appendix B);
                attention scores and what checkpointing computes twice are left out of it.
    weights     2 FLOPs per parameter and position that multiplies it; look-ups are free, and the
                output layer runs at one position per question
    attention   4 * heads * head width * layers FLOPs per pair of positions that see each other:
                two for the score and two for the value; n(n + 1)/2 pairs in a causal sequence
    decoding    all weights and the whole KV cache are read once per token

Norms, rotary angles, activations and the order-preserving sum are left out, and so is the adapter's
own attention where it has some: a floor is not an estimate. Halves are taken to be dense.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from octavo.nn import LCLM
from octavo.nn.encoder import plan_windows

MARKS = 2
"""The positions before and after the latents of a context: `<|memory_start|>`, `<|memory_end|>`."""

KNOWN_PEAKS = {
    "NVIDIA H100 80GB HBM3": (989.0, 3350.0),
    "NVIDIA H200": (989.0, 4800.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 2039.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 1555.0),
}
"""Dense bf16 TFLOP/s and GB/s of the SXM cards, by their full device name: the PCIe and NVL cards
called alike are slower. From nvidia.com/en-us/data-center/h100 and /h200, where TFLOP/s are given
with sparsity, twice the dense rate."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device could do at best, as far as anybody knows."""

    tflops: float | None = None
    gbps: float | None = None
    """Bytes read from memory, in 10^9 per second."""


def find_peaks(
    device: torch.device, dtype: torch.dtype, tflops: float | None = None, gbps: float | None = None
) -> Peaks:
    """Return the given peaks, and for those not given what is known of the card."""
    known: tuple[float | None, float | None] = (None, None)
    if device.type == "cuda":
        known = KNOWN_PEAKS.get(torch.cuda.get_device_name(device), known)
    if dtype.itemsize != 2:
        known = (None, known[1])
    return Peaks(tflops or known[0], gbps or known[1])


class Work:
    """FLOPs per token of each part of a model, as it is set to train now."""

    def __init__(self, model: LCLM) -> None:
        """Count the parameters of each part once."""
        embeddings = {
            id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
        }
        # Not its `weight`: with trained memory rows peft merges them on access, which sharded
        # weights do not allow.
        head = max(model.get_output_embeddings().parameters(), key=torch.numel)
        self.per_source_token = _per_token(model.encoder, embeddings)
        self.per_latent = _per_token(model.adapter, embeddings)
        self.per_position = _per_token(model.get_decoder(), embeddings)
        self.per_scored = (6 if head.requires_grad else 4) * head.numel()

    def of(self, *, source_tokens: int, latents: int, positions: int, scored: int) -> float:
        """Return the FLOPs of forward and backward over so many tokens."""
        return (
            self.per_source_token * source_tokens
            + self.per_latent * latents
            + self.per_position * positions
            + self.per_scored * scored
        )


class Floor:
    """The costs of one model, counted from its parameters; one on `meta` will do."""

    def __init__(self, lclm: LCLM) -> None:
        """Count each part once."""
        self._settings = lclm.settings
        looked_up = {id(p) for m in lclm.modules() if isinstance(m, nn.Embedding) for p in _own(m)}
        self._encoder = _multiplied(lclm.encoder, looked_up)
        self._adapter = _multiplied(lclm.adapter, looked_up)
        self._decoder = _multiplied(lclm.get_decoder(), looked_up)
        head: torch.Tensor = next(lclm.get_output_embeddings().parameters())
        self._head = head.numel()
        self._encoder_pair = 4 * _attention_width(lclm.encoder.body.config)
        self._decoder_pair = 4 * _attention_width(lclm.decoder.config)
        value_bytes = head.element_size()
        self._read_bytes = (self._decoder + self._head) * value_bytes
        self.parameters = sum(p.numel() for p in lclm.parameters())
        self.weight_bytes = self.parameters * value_bytes
        config: Any = lclm.decoder.config
        key_bytes = config.num_key_value_heads * _head_dim(config) * value_bytes
        self.kv_bytes: int = 2 * config.num_hidden_layers * key_bytes
        """KV cache per position."""

    def compress_flops(self, source_tokens: int, ratio: int) -> int:
        """Return the FLOPs of turning a context into latents."""
        markers = self._settings.pooling == "eos"
        windows = [
            window.input_length(window.num_blocks if markers else 0)
            for window in plan_windows(source_tokens, self._settings, ratio=ratio)
        ]
        sees_all = self._settings.encoder_mask_type == "bidirectional"
        pairs = sum(n * n if sees_all else n * (n + 1) // 2 for n in windows)
        return (
            2 * self._encoder * sum(windows)
            + self._encoder_pair * pairs
            + 2 * self._adapter * self._settings.num_latents(source_tokens, ratio)
        )

    def read_flops(self, positions: int, *, past: int = 0) -> int:
        """Return the FLOPs of reading positions behind `past` others, without an output."""
        pairs = positions * past + positions * (positions + 1) // 2
        return 2 * self._decoder * positions + self._decoder_pair * pairs

    def question_flops(self, positions: int, *, past: int) -> int:
        """Return the FLOPs of reading a question behind a kept context, up to its first token."""
        return self.read_flops(positions, past=past) + 2 * self._head

    def decode_bytes(self, past: int) -> int:
        """Return the bytes read to decode one token behind `past` positions."""
        return self._read_bytes + self.kv_bytes * past


def _own(module: nn.Module) -> Iterable[nn.Parameter]:
    return module.parameters(recurse=False)


def _multiplied(module: nn.Module, looked_up: set[int]) -> int:
    """Return how many parameters of a module are matrices that multiply every position."""
    return sum(p.numel() for p in module.parameters() if id(p) not in looked_up and p.dim() > 1)


def _attention_width(config: Any) -> int:
    return int(config.num_hidden_layers * config.num_attention_heads * _head_dim(config))


def _head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _per_token(module: nn.Module, left_out: set[int]) -> int:
    counted = [p for p in module.parameters() if id(p) not in left_out and p.dim() > 1]
    return sum((6 if p.requires_grad else 4) * p.numel() for p in counted)
