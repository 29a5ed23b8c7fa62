"""LCLM without its output layer, for those who want hidden states or the loss in their own way."""

from typing import Any, Unpack

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import TransformersKwargs

from octavo.nn.config import LCLMConfig


class LCLMBody(PreTrainedModel):  # type: ignore[misc]
    """An LCLM without its output layer: what TRL and others call the base model."""

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

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's token embeddings."""
        return self.lclm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embeddings."""
        self.lclm.set_input_embeddings(value)

    def get_output_embeddings(self) -> None:
        """Return None: it has no output layer of its own."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        latents: Tensor | None = None,
        memory_ids: Tensor | None = None,
        memory_lengths: Tensor | None = None,
        memory_ratios: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> BaseModelOutputWithPast:
        """Return the decoder's hidden states `BTD`; the arguments are those of `LCLM.forward`."""
        inputs = self.lclm.decoder_inputs(
            input_ids, inputs_embeds, past_key_values, cache,
            latents, memory_ids, memory_lengths, memory_ratios,
        )  # fmt: skip
        output: BaseModelOutputWithPast = self.lclm.get_decoder()(**inputs, **kwargs)
        return output


AutoModel.register(LCLMConfig, LCLMBody)
