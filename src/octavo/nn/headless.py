"""LCLM without its output layer, for those who want hidden states or a loss of their own."""

from typing import Any, Unpack

from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import TransformersKwargs

from octavo.nn.config import LCLMConfig


class LCLMBody(PreTrainedModel):  # type: ignore[misc]
    """What TRL and others call the base model of an LCLM."""

    config_class = LCLMConfig
    base_model_prefix = "lclm"
    supports_gradient_checkpointing = True
    _supports_flash_attn = _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: LCLMConfig, lclm: Any = None) -> None:
        """Build from `config`, or stand for the given `lclm` without holding it."""
        super().__init__(config)
        if lclm is None:
            self.lclm: Any = AutoModelForCausalLM.from_config(config)
            self.post_init()
        else:
            self.__dict__["lclm"] = lclm

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Any = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> BaseModelOutputWithPast:
        """Return the decoder's hidden states `BTD`; the arguments are those of `LCLM.forward`."""
        return self.lclm(
            input_ids, inputs_embeds=inputs_embeds, cache=cache, headless=True, **kwargs
        )


AutoModel.register(LCLMConfig, LCLMBody)
