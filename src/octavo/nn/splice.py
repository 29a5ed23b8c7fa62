"""Put latents where the prompt left room for them.

Shapes: B prompts, T prompt tokens, S slots (`<|memory|>` positions) over all prompts, D width.

Training and every engine build their decoder input here, so a prompt means the same in each.
"""

import torch
from torch import Tensor

from octavo.errors import PromptError


def splice(embeds_BTD: Tensor, is_slot_BT: Tensor, latents_SD: Tensor) -> Tensor:
    """Return a copy of `embeds_BTD` whose i-th slot holds the i-th latent.

    Gradients reach both the embeddings (outside the slots) and the latents. Compiled code trusts
    the counts: looking at them would cut its graph in two.
    """
    if not torch.compiler.is_compiling():
        check_counts(int(is_slot_BT.sum()), len(latents_SD))
    mask = is_slot_BT.unsqueeze(-1)
    return embeds_BTD.masked_scatter(mask, latents_SD.to(embeds_BTD.device, embeds_BTD.dtype))


def check_counts(num_slots: int, num_latents: int) -> None:
    """Refuse latents that are more or fewer than the slots they are for."""
    if num_slots != num_latents:
        raise PromptError(
            f"the prompt has {num_slots} memory slots but {num_latents} latents were given; "
            "was the context compressed at another ratio?"
        )
