"""LCLM: an encoder LM, an adapter and a decoder LM as one Hugging Face model.

Shapes: B prompts, T prompt tokens, M spans of the whole batch, L source tokens of the longest span,
S slots of the whole batch, D decoder width, V vocabulary.

Shaped as transformers shapes its vision-language models, with spans in the place of images: a
prompt holds one `<|memory|>` token (a slot) per latent, `memory_ids_ML` holds the source tokens.
`forward`, `generate`, PEFT and Trainer work as on any causal LM. It knows nothing of text.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import TransformersKwargs

from octavo.config import Extension, ModelConfig, Rotary, resolve_ratio
from octavo.errors import ConfigError, PromptError
from octavo.nn.adapter import Adapter
from octavo.nn.blocks import Blocks, find_blocks, fold
from octavo.nn.body import decode_apart, headless, input_scale, own_rows, rescaled
from octavo.nn.cache import as_keyword, is_empty
from octavo.nn.config import LCLMConfig
from octavo.nn.encoder import Encoder, ratio_per_span
from octavo.nn.generation import MemoryGenerationMixin
from octavo.nn.headless import LCLMBody
from octavo.nn.residual import BlockSum, starting_weights
from octavo.nn.rotary import round_rotary
from octavo.nn.score import IGNORED, Scores, score_hidden
from octavo.nn.splice import splice


class LCLM(MemoryGenerationMixin, PreTrainedModel):  # type: ignore[misc]
    """A decoder that reads latents, and the encoder and adapter that make them."""

    config_class = LCLMConfig
    base_model_prefix = "lclm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012

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
        self.memory_token_id = config.memory_token_ids[-1]
        self.decoder = decoder
        self.encoder = Encoder(encoder, self.settings, config.encoder_pad_token_id)
        self.encoder.shares_rows = "encoder packing" not in config.closed
        self.adapter = Adapter(self.settings, encoder, decoder)
        self.residual = None
        if self.extension.residual == "sum":
            widest = max(self.settings.compression_ratio, *self.extension.ratios, 1)
            self.residual = BlockSum(decoder.get_input_embeddings().weight.shape[-1], widest)
        self.generation_config = GenerationConfig.from_model_config(decoder.config)
        if getattr(decoder, "generation_config", None) is not None:
            self.generation_config = decoder.generation_config
        # transformers initialises what it has not seen initialised: not pretrained parts, nor what
        # is fresh beside them. Without such parts it builds on no device, and fills in the rest.
        if given:
            own = [part for part in (self.adapter, self.residual) if part is not None]
            for module in (m for part in [*given, *own] for m in part.modules()):
                module._is_hf_initialized = True
        self._is_given = bool(given)
        self.write_beside: Callable[[Path], None] | None = None
        """What `save_pretrained` calls to add tokenizers and settings; they are `weights/`'s."""
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what no checkpoint gave."""
        super()._init_weights(module)
        if isinstance(module, BlockSum):
            init.copy_(module.weight_RD, starting_weights(*reversed(module.weight_RD.shape)))

    def _initialize_weights(self, module: nn.Module, *args: Any) -> None:
        """Restore what no checkpoint keeps, last, when all else is there."""
        super()._initialize_weights(module, *args)
        if module is self and not self._is_given:
            self.round_rotary(self.extension.rotary or "exact")

    @property
    def extension(self) -> Extension:
        """Our own settings, which the config holds."""
        return Extension.from_dict(self.config.extension)

    @extension.setter
    def extension(self, value: Extension) -> None:
        self.config.extension = value.to_dict()

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

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with all that `octavo.load` needs if this was loaded by it."""
        own_rows(self.encoder.body, self.decoder)
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.write_beside is not None:
            self.write_beside(Path(save_directory))

    def train(self, mode: bool = True) -> Self:
        """Switch to training, for which the halves share no weights, or back."""
        if mode:
            own_rows(self.encoder.body, self.decoder)
        return super().train(mode)

    @property
    def base_model(self) -> nn.Module:
        """The model without its output layer; it holds no weights of its own, and reads spans."""
        return LCLMBody(self.config, self)

    def get_decoder(self) -> nn.Module:
        """Return the decoder without its output layer; LoRA layers in it stay active."""
        is_peft = hasattr(self.decoder, "peft_config")
        decoder = self.decoder.get_base_model() if is_peft else self.decoder
        body: nn.Module = headless(decoder)
        return body

    # -- what is ours ----------------------------------------------------------------------------

    def refuse_if_closed(self, door: str) -> None:
        """Raise `ConfigError` for what this architecture was seen to do wrong."""
        if door in self.config.closed:
            raise ConfigError(self.config.closed[door])

    def close(self, door: str, message: str) -> None:
        """Refuse something from now on, also when saved and loaded."""
        self.config.closed[door] = message
        self.encoder.shares_rows = "encoder packing" not in self.config.closed

    def embed_tokens(self, input_ids_BT: Tensor) -> Tensor:
        """Return token embeddings `BTD` as the decoder has them where it looks them up itself."""
        embeds_BTD: Tensor = self.get_input_embeddings()(input_ids_BT)
        scale = input_scale(self.config.text_config)
        return embeds_BTD if scale == 1 else embeds_BTD * scale

    def encode(
        self,
        spans: Sequence[Any],
        ratio: int | Sequence[int] | None = None,
        *,
        one_pass: bool = False,
    ) -> list[Tensor]:
        """Return the `latents_KD` of each span of source token ids, K = ceil(tokens / ratio).

        The ratio is one for all spans or one for each. `one_pass` is the encoder's.
        """
        given = [ratio] if ratio is None or isinstance(ratio, int) else ratio
        resolved = [resolve_ratio(self.settings, self.extension, one) for one in given]
        ratios = resolved * len(spans) if given is not ratio else resolved
        pooled = self.encoder(spans, ratios, one_pass=one_pass)
        return self.adapt(pooled, spans, ratios)

    def adapt(
        self, pooled: Sequence[Tensor], spans: Sequence[Any], ratio: int | Sequence[int]
    ) -> list[Tensor]:
        """Lift pooled states to latents, adding the order-preserving sum where the model has it."""
        latents = self.adapter(pooled)
        if self.residual is None:
            return list(latents)
        ratios = ratio_per_span(ratio, len(spans))
        ids = [torch.as_tensor(span, dtype=torch.long, device=latents[0].device) for span in spans]
        if torch.is_grad_enabled():
            sums_KD = self._block_sums(ids, ratios)
            return list((torch.cat(latents) + sums_KD).split([len(one) for one in latents]))
        for index, its_ratio in enumerate(ratios):
            self.residual.add_to(latents[index], ids[index], its_ratio, self._embed_row)
        return list(latents)

    def _embed_row(self, ids_T: Tensor) -> Tensor:
        embeds_TD: Tensor = self.embed_tokens(ids_T[None])[0]
        return embeds_TD

    def _block_sums(self, ids: Sequence[Tensor], ratios: Sequence[int]) -> Tensor:
        """Return the order-preserving sums of all spans' blocks, without a loop over them."""
        assert self.residual is not None
        residual, joined = self.residual, torch.cat(list(ids))
        lengths_M = torch.tensor([len(span) for span in ids])

        def one_ratio(blocks: Blocks) -> Tensor:
            ids_KR = joined[blocks.index_KR.to(joined.device)]
            # A row of one batch, as noise on embeddings expects.
            embeds_KRD = self.embed_tokens(ids_KR.view(1, -1)).view(*ids_KR.shape, -1)
            is_token_KR1 = blocks.is_token_KR[:, :, None].to(embeds_KRD)
            return residual.sum_blocks(embeds_KRD * is_token_KR1)

        starts_M = lengths_M.cumsum(0) - lengths_M
        return fold(find_blocks(starts_M, lengths_M, torch.tensor(ratios)), one_ratio)

    def find_slots(self, input_ids_BT: Tensor | None, embeds_BTD: Tensor | None) -> Tensor:
        """Return which positions `BT` are slots; without ids, those that embed as one does."""
        if input_ids_BT is not None:
            return input_ids_BT == self.memory_token_id
        assert embeds_BTD is not None
        slot_11 = torch.tensor([[self.memory_token_id]], device=embeds_BTD.device)
        slot_11D = self.embed_tokens(slot_11)
        return (embeds_BTD == slot_11D).all(-1)

    def embed(
        self,
        input_ids_BT: Tensor | None,
        latents_SD: Tensor | None,
        embeds_BTD: Tensor | None = None,
    ) -> Tensor:
        """Return the decoder's input `BTD`: token embeddings with the latents in their slots."""
        is_slot_BT = self.find_slots(input_ids_BT, embeds_BTD)
        if embeds_BTD is None:
            assert input_ids_BT is not None
            embeds_BTD = self.embed_tokens(input_ids_BT)
        if latents_SD is None:
            latents_SD = embeds_BTD.new_zeros(0, embeds_BTD.shape[-1])
        return splice(embeds_BTD, is_slot_BT, latents_SD)

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
        cache: Any = None,
        headless: bool = False,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> CausalLMOutputWithPast:
        """Run the decoder over `input_ids` `BT` with latents in its slots.

        The latents are given (`latents` `SD`), or made from `memory_ids` `ML`, right-padded rows of
        source tokens with `memory_lengths` `M` in the order of their slots, at the model's ratio or
        at `memory_ratios` `M`. `inputs_embeds` `BTD` may stand for `input_ids`. `labels` `BT` hold
        -100 where nothing is scored. Logits are `BTV`; a `headless` pass returns hidden states.
        `cache` is the name of `past_key_values` from transformers 5.24 on; either is taken.
        """
        if input_ids is None and inputs_embeds is None:
            raise PromptError("forward needs input_ids or inputs_embeds; neither was given")
        latents = self.latents_of(latents, memory_ids, memory_lengths, memory_ratios)
        past = cache if past_key_values is None else past_key_values
        if latents is not None or (inputs_embeds is None and is_empty(past)):
            inputs_embeds = self.embed(input_ids, latents, inputs_embeds)
        elif inputs_embeds is None:
            # A continuation: a `<|memory|>` in it was generated, and is a word like any other.
            assert input_ids is not None
            inputs_embeds = self.embed_tokens(input_ids)
        given = as_keyword(cache)
        if past_key_values is not None:
            given = {"past_key_values": past_key_values}
        if not headless:
            given |= {"labels": labels, "logits_to_keep": logits_to_keep}
        reader: Any = self.get_decoder() if headless else self.decoder
        output: CausalLMOutputWithPast = reader(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **given,
            **kwargs,
        )
        return output

    def latents_of(
        self, latents_SD: Tensor | None, memory_ids_ML: Tensor | None, *of_spans: Tensor | None
    ) -> Tensor | None:
        """Return latents that were given or that spans make, or None where there are neither."""
        if latents_SD is None and memory_ids_ML is not None and len(memory_ids_ML) > 0:
            return self.span_latents(memory_ids_ML, *of_spans)
        return latents_SD

    def span_latents(
        self,
        memory_ids_ML: Tensor,
        lengths_M: Tensor | None,
        ratios_M: Tensor | None,
        *,
        one_pass: bool = False,
    ) -> Tensor:
        """Return the latents `SD` of a padded batch of spans, each at its own ratio."""
        spans = list(memory_ids_ML)
        if lengths_M is not None:
            spans = [row[:n] for row, n in zip(spans, lengths_M.tolist(), strict=True)]
        ratios = None if ratios_M is None else ratios_M.tolist()
        return torch.cat(self.encode(spans, ratios, one_pass=one_pass))

    def score(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        position_ids_BT: Tensor | None = None,
        memory_ids_ML: Tensor | None = None,
        memory_lengths_M: Tensor | None = None,
        memory_ratios_M: Tensor | None = None,
    ) -> Scores:
        """Return loss and greedy hit of every token that `labels_BT` score, and nothing else.

        Positions that restart within a row tell its packed examples apart: none sees another. The
        first token of an example must not be scored. Without positions, a row is one example,
        padded on the right. The encoder runs exactly once, also for a batch without spans, whose
        loss then has a gradient of zero for it: under sharding, all ranks run the same modules.
        """
        self.refuse_if_closed("scoring")
        has_spans = memory_ids_ML is not None and len(memory_ids_ML) > 0
        if has_spans:
            assert memory_ids_ML is not None
            latents_SD = self.span_latents(
                memory_ids_ML, memory_lengths_M, memory_ratios_M, one_pass=True
            )
        else:
            latents_SD = torch.cat(self.encode([[self.encoder.pad_token_id]], one_pass=True))
        embeds_BTD = self.embed(input_ids_BT, latents_SD if has_spans else None)
        hidden_BTD = self._decode_packed(embeds_BTD, position_ids_BT)
        is_scored_BT = labels_BT[:, 1:] != IGNORED
        head = self.get_output_embeddings()
        loss_P, is_hit_P = score_hidden(
            lambda hidden_CD: rescaled(self.config.text_config, head(hidden_CD)),
            hidden_BTD[:, :-1][is_scored_BT],
            labels_BT[:, 1:][is_scored_BT],
        )
        if not has_spans:
            loss_P = loss_P + 0 * latents_SD.float().sum()
        return Scores(loss_P, is_hit_P, is_scored_BT.nonzero()[:, 0])

    def _decode_packed(self, embeds_BTD: Tensor, position_ids_BT: Tensor | None) -> Tensor:
        """Return the decoder's hidden states `BTD` of rows whose examples do not see each other.

        There is no mask: transformers builds one from the restarts, if no cache is in use. Its
        flash attention looks for restarts only in a batch of one row, so rows are laid end to end.
        """
        body: Any = self.get_decoder()
        if position_ids_BT is not None and "packing" in self.config.closed:
            return decode_apart(body, embeds_BTD, position_ids_BT)
        is_flash = "flash" in str(getattr(body.config, "_attn_implementation", ""))
        shape = embeds_BTD.shape
        if is_flash and position_ids_BT is not None:
            embeds_BTD = embeds_BTD.reshape(1, -1, shape[-1])
            position_ids_BT = position_ids_BT.reshape(1, -1)
        output = body(inputs_embeds=embeds_BTD, position_ids=position_ids_BT, use_cache=False)
        hidden_BTD: Tensor = output.last_hidden_state
        return hidden_BTD.reshape(shape)

    def round_rotary(self, rotary: Rotary) -> None:
        """Round rotary frequencies of the encoding half, or of both halves, to bf16 for good.

        `save_pretrained` keeps the choice, since it does not keep the frequencies.
        """
        self.config.extension = {**self.config.extension, "rotary": rotary}
        if rotary in ("bf16", "bf16_encoder"):
            round_rotary(self.encoder)
            round_rotary(self.adapter)
        if rotary == "bf16":
            round_rotary(self.decoder)


AutoConfig.register("lclm", LCLMConfig)
AutoModelForCausalLM.register(LCLMConfig, LCLM)
