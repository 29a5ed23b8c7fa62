"""LCLM: an encoder LM, an adapter and a decoder LM as one Hugging Face model.

Shapes: B prompts, T prompt tokens, M spans of the whole batch, L source tokens of the longest span,
S slots of the whole batch, D decoder width, V vocabulary.

Shaped as transformers shapes its vision-language models, with spans in the place of images: a
prompt holds one `<|memory|>` token (a slot) per latent, `memory_ids_ML` holds the source tokens.
`forward`, `generate`, PEFT and Trainer work as on any causal LM. It knows nothing of text.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from octavo.config import Extension, ModelConfig, Rotary, resolve_ratio
from octavo.errors import ConfigError, PromptError
from octavo.nn.adapter import Adapter
from octavo.nn.encoder import Encoder
from octavo.nn.residual import BlockSum
from octavo.nn.rotary import round_rotary
from octavo.nn.splice import splice


class LCLMConfig(PretrainedConfig):  # type: ignore[misc]
    """What `LCLM` is built from: two Hugging Face configs and the published settings."""

    model_type = "lclm"
    sub_configs = {"text_config": AutoConfig, "encoder_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: Any = None,
        encoder_config: Any = None,
        model_config: dict[str, Any] | None = None,
        extension: dict[str, Any] | None = None,
        memory_token_ids: Sequence[int] = (-1, -1, -1),
        encoder_pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        """Take the decoder's config as `text_config`, as transformers names it everywhere.

        `memory_token_ids` are those of start, end and slot, in this order.
        """
        self.text_config = _as_config(text_config)
        self.encoder_config = _as_config(encoder_config)
        self.model_config = dict(model_config or {})
        self.extension = dict(extension or {})
        self.memory_token_ids = list(memory_token_ids)
        self.encoder_pad_token_id = encoder_pad_token_id
        kwargs.setdefault("tie_word_embeddings", False)  # the decoder ties its own
        super().__init__(**kwargs)


class LCLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A decoder that reads latents, and the encoder and adapter that make them."""

    config_class = LCLMConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        config: LCLMConfig,
        encoder: PreTrainedModel | None = None,
        decoder: PreTrainedModel | None = None,
    ) -> None:
        """Build from `config`, around the given headless `encoder` and causal `decoder` if any."""
        super().__init__(config)
        given = [part for part in (encoder, decoder) if part is not None]
        if encoder is None:
            encoder = AutoModel.from_config(config.encoder_config)
        if decoder is None:
            decoder = AutoModelForCausalLM.from_config(config.text_config)
        self.settings = ModelConfig(**config.model_config)
        extension = dict(config.extension)
        extension["ratios"] = tuple(extension.get("ratios", ()))
        self.extension = Extension(**extension)
        self.memory_token_id = config.memory_token_ids[-1]
        self.decoder = decoder
        self.encoder = Encoder(encoder, self.settings, config.encoder_pad_token_id)
        self.adapter = Adapter(self.settings, encoder, decoder.base_model)
        self.residual = None
        if self.extension.residual == "sum":
            widest = max(self.settings.compression_ratio, *self.extension.ratios, 1)
            self.residual = BlockSum(decoder.config.hidden_size, widest)
        self.generation_config = GenerationConfig.from_model_config(decoder.config)
        if getattr(decoder, "generation_config", None) is not None:
            self.generation_config = decoder.generation_config
        # transformers initialises what it has not seen initialised: not pretrained parts, and not
        # our own modules, which did it themselves.
        for module in (m for part in [*given, self.adapter] for m in part.modules()):
            module._is_hf_initialized = True
        self.post_init()

    # -- what transformers asks of a causal LM ---------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's token embeddings."""
        embeddings: nn.Module = self.decoder.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embeddings."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder's output layer."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's output layer."""
        self.decoder.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the decoder without its output layer; LoRA layers in it stay active."""
        is_peft = hasattr(self.decoder, "peft_config")
        decoder = self.decoder.get_base_model() if is_peft else self.decoder
        body: nn.Module = decoder.get_decoder()
        return body

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Hand the spans over in the first step only: later steps find them in the KV cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            for name in ("memory_ids", "memory_lengths", "memory_ratios", "latents"):
                inputs.pop(name, None)
        return inputs

    # -- what is ours ----------------------------------------------------------------------------

    def encode(self, spans: Sequence[Any], ratio: int | None = None) -> list[Tensor]:
        """Return the `latents_KD` of each span of source token ids, K = ceil(tokens / ratio)."""
        ratio = resolve_ratio(self.settings, self.extension, ratio)
        return self.adapt(self.encoder(spans, ratio), spans, ratio)

    def adapt(self, pooled: Sequence[Tensor], spans: Sequence[Any], ratio: int) -> list[Tensor]:
        """Lift pooled states to latents, adding the order-preserving sum where the model has it."""
        latents = self.adapter(pooled)
        if self.residual is not None:
            table = self.get_input_embeddings()
            for index, span in enumerate(spans):
                ids = torch.as_tensor(span, dtype=torch.long, device=latents[index].device)
                latents[index] = latents[index] + self.residual(table(ids), ratio)
        return list(latents)

    def embed(self, input_ids_BT: Tensor, latents_SD: Tensor | None) -> Tensor:
        """Return the decoder's input `BTD`: token embeddings with the latents in their slots."""
        embeds_BTD: Tensor = self.get_input_embeddings()(input_ids_BT)
        if latents_SD is None:
            latents_SD = embeds_BTD.new_zeros(0, embeds_BTD.shape[-1])
        return splice(embeds_BTD, input_ids_BT == self.memory_token_id, latents_SD)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        memory_ids: Tensor | None = None,
        memory_lengths: Tensor | None = None,
        memory_ratios: Tensor | None = None,
        latents: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the decoder over `input_ids` `BT` with latents in its slots.

        The latents are given (`latents` `SD`), or made from `memory_ids` `ML`, right-padded rows of
        source tokens with `memory_lengths` `M` in the order of their slots, at the model's ratio or
        at `memory_ratios` `M`. `labels` `BT` hold -100 where nothing is scored. Logits are `BTV`.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise PromptError("forward needs input_ids or inputs_embeds; neither was given")
            if latents is None and memory_ids is not None:
                latents = self.span_latents(memory_ids, memory_lengths, memory_ratios)
            if latents is None and past_key_values is not None and past_key_values.get_seq_length():
                # A continuation: a `<|memory|>` in it was generated, and is a word like any other.
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.embed(input_ids, latents)
        output: CausalLMOutputWithPast = self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        return output

    def span_latents(
        self, memory_ids_ML: Tensor, lengths_M: Tensor | None, ratios_M: Tensor | None
    ) -> Tensor:
        """Return the latents `SD` of a padded batch of spans, each at its own ratio."""
        if lengths_M is None:
            lengths_M = torch.full((len(memory_ids_ML),), memory_ids_ML.shape[1])
        lengths = lengths_M.tolist()
        spans = [row[:length] for row, length in zip(memory_ids_ML, lengths, strict=True)]
        default = self.settings.compression_ratio
        ratios = [default] * len(spans) if ratios_M is None else ratios_M.tolist()
        found: dict[int, Tensor] = {}
        for ratio in sorted(set(ratios)):
            members = [index for index, its_ratio in enumerate(ratios) if its_ratio == ratio]
            encoded = self.encode([spans[index] for index in members], ratio)
            found.update(zip(members, encoded, strict=True))
        return torch.cat([found[index] for index in range(len(spans))])

    def round_rotary(self, rotary: Rotary) -> None:
        """Round rotary frequencies of the encoding half, or of both halves, to bf16 for good."""
        if rotary in ("bf16", "bf16_encoder"):
            round_rotary(self.encoder)
            round_rotary(self.adapter)
        if rotary == "bf16":
            round_rotary(self.decoder)


def _as_config(value: Any) -> Any:
    """Accept a Hugging Face config or the dictionary it was saved as."""
    if isinstance(value, dict):
        values = dict(value)
        if (kind := values.pop("model_type", None)) is None:
            raise ConfigError("a nested config lacks model_type; save it with transformers")
        return AutoConfig.for_model(kind, **values)
    return value


AutoConfig.register("lclm", LCLMConfig)
AutoModelForCausalLM.register(LCLMConfig, LCLM)
