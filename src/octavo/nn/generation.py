"""Let the `generate` of transformers read spans, however it cuts a prompt into passes.

Shapes: B prompts, T positions of a prompt, S slots of the whole batch, D decoder width.

A prompt may be read at once, in chunks, behind a cache that an earlier call returned, or once for
each of several beams. So the latents are made once, each is given the column that its slot has in
the whole prompt, and a pass gets those whose columns it reads.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from octavo.nn.cache import find_cache
from octavo.nn.splice import check_counts


class MemoryGenerationMixin(GenerationMixin):  # type: ignore[misc]
    """What `LCLM` adds to the generation of transformers."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        slot_columns: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Hand over the latents `SD` whose slots are in this pass, and not in the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        if latents is not None and slot_columns is not None:
            read = inputs.get("inputs_embeds")
            num_read = (inputs["input_ids"] if read is None else read).shape[1]
            past = 0 if (cache := find_cache(inputs)) is None else cache.get_seq_length()
            is_read = (slot_columns >= past) & (slot_columns < past + num_read)
            if bool(is_read.any()):
                inputs["latents"] = latents[is_read]
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Make the latents, and give every copy of a prompt its own.

        Behind a cache, the spans are those of the whole prompt or those of its new part alone.
        """
        self_: Any = self
        mask = kwargs.get("attention_mask")
        self_.refuse_if_closed("generate")
        if mask is not None and mask.dim() == 2 and not bool(mask.all()):
            self_.refuse_if_closed("padding")
        if expand_size > 1:
            self_.refuse_if_closed("beams")
        # Without a batch axis: spans of all prompts lie end to end.
        names = ("latents", "memory_ids", "memory_lengths", "memory_ratios")
        latents_SD = self_.latents_of(*(kwargs.pop(name, None) for name in names))
        added: dict[str, Tensor] = {}
        if latents_SD is not None:
            embeds = kwargs.get("inputs_embeds")
            is_slot_BT = self_.find_slots(input_ids if embeds is None else None, embeds)
            past = 0 if (cache := find_cache(kwargs)) is None else cache.get_seq_length()
            num_given = is_slot_BT.shape[1]
            # Newer transformers drop a mask of ones, and always count positions.
            whole = [kwargs.get(name) for name in ("attention_mask", "position_ids")]
            is_new = any(one is not None and one.shape[-1] > num_given for one in whole)
            columns_BT = torch.arange(num_given, device=is_slot_BT.device).expand_as(is_slot_BT)
            columns_BT = columns_BT + past if is_new else columns_BT
            if past and int(is_slot_BT.sum()) != len(latents_SD):
                is_slot_BT = is_slot_BT & (columns_BT >= past)
            counts = is_slot_BT.sum(1).tolist()
            check_counts(sum(counts), len(latents_SD))
            for name, flat in (("latents", latents_SD), ("slot_columns", columns_BT[is_slot_BT])):
                parts = [part for part in flat.split(counts) for _ in range(expand_size)]
                added[name] = torch.cat(parts)
        ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return ids, {**kwargs, **added}
