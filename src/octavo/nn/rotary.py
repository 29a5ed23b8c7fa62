"""Round rotary frequencies to bf16, as the published checkpoints were very probably trained.

The public loader casts whole models with `.to(bfloat16)`, which also rounds the `inv_freq` buffers;
at position 1023 that turns angles by up to a radian (wire-format §1.5). A checkpoint trained that
way reads best that way, so the rounding is a named option here instead of an accident.
"""

import torch
from torch import nn


def round_rotary(module: nn.Module) -> None:
    """Round every `inv_freq` buffer below `module` to bf16 values, kept as fp32.

    Cosines and sines are then computed in fp32 from the rounded frequencies, which is what the
    reference computes from its bf16 buffers.
    """
    for part in module.modules():
        for name in ("inv_freq", "original_inv_freq"):
            frequencies = getattr(part, name, None)
            if isinstance(frequencies, torch.Tensor):
                setattr(part, name, frequencies.to(torch.bfloat16).to(torch.float32))
