"""Put latents where the prompt left room for them.

Shapes: B prompts, T prompt tokens, S slots (`<|memory|>` positions) over all prompts, D width.

Training and every engine build their decoder input here, so a prompt means the same in each.
"""

from torch import Tensor

from octavo.errors import PromptError


def splice(embeds_BTD: Tensor, is_slot_BT: Tensor, latents_SD: Tensor) -> Tensor:
    """Return a copy of `embeds_BTD` whose i-th slot holds the i-th latent.

    Gradients reach both the embeddings (outside the slots) and the latents.
    """
    num_slots = int(is_slot_BT.sum())
    if num_slots != len(latents_SD):
        raise PromptError(
            f"the prompt has {num_slots} memory slots but {len(latents_SD)} latents were given; "
            "was the context compressed at another ratio?"
        )
    mask = is_slot_BT.unsqueeze(-1)
    return embeds_BTD.masked_scatter(mask, latents_SD.to(embeds_BTD.device, embeds_BTD.dtype))
