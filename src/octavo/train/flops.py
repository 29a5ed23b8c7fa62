"""Count the arithmetic of training, for the share of a device's peak that a run reaches (MFU).

    forward            2 FLOPs per parameter and token
    backward           2 more to pass the gradient on, and 2 more where the weight itself is trained

Embedding look-ups are free; the output layer counts at scored positions only, because it runs only
there. Attention scores are left out, and so is what activation checkpointing computes twice: the
MFU is the useful work (arXiv 2204.02311, appendix B), and a little understated.
"""

import torch
from torch import nn

from octavo.nn import LCLM

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bf16 peaks of the SXM cards, from NVIDIA's data sheets, by a part of the device's name."""


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """Return what the device could do, if anybody knows."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


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


def _per_token(module: nn.Module, left_out: set[int]) -> int:
    counted = [p for p in module.parameters() if id(p) not in left_out and p.dim() > 1]
    return sum((6 if p.requires_grad else 4) * p.numel() for p in counted)
