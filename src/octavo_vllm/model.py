"""The LCLM inside vLLM: octavo's encoder and adapter before a decoder of vLLM's own.

Shapes: N items of a step, L tokens of an item, K latents of an item, D decoder width.

The encoder runs whole on every rank of a tensor-parallel group: it is small, and its latents are
needed on each. The decoder is whatever vLLM has for the architecture of `decoder/config.json`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from octavo.config import MEMORY, Extension, ModelConfig
from octavo.errors import ConfigError
from octavo.nn.adapter import Adapter
from octavo.nn.config import LCLMConfig
from octavo.nn.encoder import Encoder, Window
from octavo.nn.residual import BlockSum
from octavo.nn.rotary import round_rotary
from octavo.weights.halves import HalfLoader
from octavo.weights.layout import load_adapter
from octavo_vllm.config import whole_folder
from octavo_vllm.processor import MODALITY, MemoryDummies, MemoryInfo, MemoryProcessor


class Compressor(nn.Module):
    """The encoder, the adapter and the order-preserving sum: all that comes before the decoder."""

    def __init__(self, config: LCLMConfig, dtype: torch.dtype) -> None:
        """Build without weights, in the precision that the decoder runs in."""
        super().__init__()
        self.settings = settings = ModelConfig(**config.model_config)
        extension = Extension.from_dict(config.extension)
        body = AutoModel.from_config(config.encoder_config, dtype=dtype)
        with torch.device("meta"):  # the adapter asks it for sizes and kinds of layers alone
            decoder = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype)
        self.encoder = Encoder(body, settings, config.encoder_pad_token_id)
        self.adapter = Adapter(settings, body, decoder).to(dtype)
        self.residual = None
        if extension.residual == "sum":
            widest = max(settings.compression_ratio, *extension.ratios, 1)
            self.residual = BlockSum(self.adapter.width, widest).to(dtype)
        # Published checkpoints in bf16 were read with rounded frequencies (nn/rotary.py).
        usual = "exact" if config.extension or dtype != torch.bfloat16 else "bf16_encoder"
        self.rotary = extension.rotary or usual
        if self.rotary == "bf16":
            raise ConfigError(
                "rotary 'bf16' also rounds the decoder's frequencies, which vLLM computes itself; "
                "set rotary to bf16_encoder or exact in octavo.json"
            )
        self._round_rotary()

    def _round_rotary(self) -> None:
        if self.rotary == "bf16_encoder":
            round_rotary(self.encoder)
            round_rotary(self.adapter)

    def load(self, folder: Path, dtype: torch.dtype) -> None:
        """Fill in the weights; raises `CheckpointError` for what is missing or does not fit."""
        body = HalfLoader(None, None, {"dtype": dtype}).half(folder / "encoder", AutoModel)
        self.encoder.body.load_state_dict(body.state_dict())
        load_adapter(self, folder)

    def forward(
        self, items: Sequence[Tensor], shapes: Tensor, embed: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """Return the `latents_KD` of each item; `embed` looks decoder embeddings up."""
        device = self.encoder.device
        ids = [one.to(device, torch.long) for one in items]
        margins = shapes.tolist()
        ratios = [ratio for _, _, ratio in margins]
        if self.settings.adapter_type != "mlp":
            latents = self.adapter(self.encoder(ids, ratios))
        else:
            windows = [
                Window(at, left, len(one) - right, left, right, ratio)
                for at, (one, (left, right, ratio)) in enumerate(zip(ids, margins, strict=True))
            ]
            joined_KE = self.encoder.read_windows(windows, ids)
            latents = self.adapter(joined_KE.split([one.num_blocks for one in windows]))
        if self.residual is not None:
            for latents_KD, one, (left, right, ratio) in zip(latents, ids, margins, strict=True):
                self.residual.add_to(latents_KD, one[left : len(one) - right], ratio, embed)
        return latents


@MULTIMODAL_REGISTRY.register_processor(
    MemoryProcessor, info=MemoryInfo, dummy_inputs=MemoryDummies
)
class ServedLCLM(nn.Module, SupportsMultiModal, SupportsPP):
    """A compressor, and a decoder of vLLM that reads its latents."""

    allow_patterns_overrides = ("decoder/*.safetensors",)
    """Where vLLM's loader looks for the decoder's weights."""

    num_encoded = 0
    """Items encoded by this process, for tests and benchmarks."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return the text that holds an item's place."""
        return MEMORY if modality == MODALITY else None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        """Build without weights."""
        super().__init__()
        own: Any = self
        model = vllm_config.model_config
        config = model.hf_config
        if not (names := config.text_config.architectures):
            raise ConfigError("decoder/config.json names no architectures; copy the original one")
        self._folder, self._dtype = whole_folder(model.model, model.revision), model.dtype
        self._is_merged = self._folder != Path(model.model)
        with own._mark_tower_model(vllm_config, MODALITY):
            self.compressor = Compressor(config, model.dtype)
        with own._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=names,
            )
        self.make_empty_intermediate_tensors = getattr(
            self.language_model, "make_empty_intermediate_tensors", None
        )

    @torch.inference_mode()
    def embed_multimodal(
        self, memory_ids: Any = None, memory_shapes: Any = None, **_: object
    ) -> list[Tensor]:
        """Return the latents of every item, in passes of bounded size."""
        if memory_ids is None:
            return []
        type(self).num_encoded += len(memory_ids)
        shapes = torch.stack(list(memory_shapes))
        return self.compressor(list(memory_ids), shapes, self.language_model.embed_input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Any:
        """Run the decoder."""
        return self.language_model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the decoder's logits."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Give the decoder its weights as vLLM reads them, and the compressor its own.

        Of a merged copy, vLLM's loader does not know.
        """
        if self._is_merged:
            files = [str(file) for file in sorted((self._folder / "decoder").glob("*.safetensors"))]
            weights = safetensors_weights_iterator(files, use_tqdm_on_load=False)
        named = ((f"language_model.{name}", tensor) for name, tensor in weights)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(named)
        self.compressor.load(self._folder, self._dtype)
        return loaded | {f"compressor.{name}" for name, _ in self.compressor.named_parameters()}
