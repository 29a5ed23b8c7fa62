"""One encoder window is one multimodal item of vLLM, which hashes, caches and schedules it.

    {"ids": tokens with margins, "left": margin, "right": margin, "ratio": tokens per latent}

A window that was read before is found again wherever it stands. Adapters whose latents attend to
each other need the whole span: there one item is one span.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from octavo.config import MEMORY, Extension, ModelConfig
from octavo.nn.encoder import plan_windows

MODALITY = "memory"
Item = Mapping[str, Any]


def cut_items(ids: np.ndarray, config: ModelConfig, ratio: int) -> list[Item]:
    """Cut the source tokens of one span into items."""
    if config.adapter_type != "mlp":
        return [{"ids": ids, "left": 0, "right": 0, "ratio": ratio}]
    return [
        {
            "ids": ids[one.start - one.left : one.stop + one.right],
            "left": one.left,
            "right": one.right,
            "ratio": ratio,
        }
        for one in plan_windows(len(ids), config, ratio=ratio)
    ]


def count_tokens(item: Item) -> int:
    """Return how many source tokens of an item are its own, not margins."""
    return len(item["ids"]) - int(item["left"]) - int(item["right"])


def count_latents(item: Item) -> int:
    """Return how many latents an item makes."""
    return -(-count_tokens(item) // int(item["ratio"]))


class MemoryParser(MultiModalDataParser):
    """Takes items as they are."""

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {
            MODALITY: lambda data: ProcessorBatchItems(
                data if isinstance(data, list) else [data], MODALITY
            )
        }


class MemoryInfo(BaseProcessingInfo):
    """Sizes of items."""

    @property
    def settings(self) -> ModelConfig:
        """The published settings."""
        return ModelConfig(**self.get_hf_config().model_config)

    def get_data_parser(self) -> MultiModalDataParser:
        """Return what reads `multi_modal_data`."""
        return MemoryParser()

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """Return nothing: there is no processor of transformers."""
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Allow any number of windows."""
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return the latents of the largest item: a window at the lowest ratio, or a prompt."""
        if self.settings.adapter_type != "mlp":
            return {MODALITY: seq_len}
        return {MODALITY: self.settings.encoder_window_size // self.lowest_ratio}

    @property
    def lowest_ratio(self) -> int:
        """The lowest ratio served."""
        extension = Extension.from_dict(self.get_hf_config().extension)
        return min(self.settings.compression_ratio, *extension.ratios, 1 << 30)


class MemoryDummies(BaseDummyInputsBuilder[MemoryInfo]):
    """Makes the largest items, with which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return a slot per item."""
        return MEMORY * mm_counts.get(MODALITY, 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return items of the largest size."""
        ratio = self.info.lowest_ratio
        latents = self.info.get_mm_max_tokens_per_item(seq_len, mm_counts)[MODALITY]
        ids = np.zeros(latents * ratio, np.int32)
        item = {"ids": ids, "left": 0, "right": 0, "ratio": ratio}
        return {MODALITY: [item] * mm_counts.get(MODALITY, 0)}


class MemoryProcessor(BaseMultiModalProcessor[MemoryInfo]):
    """Turns items into tensors, and each one's slot in the prompt into a slot per latent."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        items: Any = hf_data[f"{MODALITY}s"]
        shapes = [[item["left"], item["right"], item["ratio"]] for item in items]
        ids = [torch.as_tensor(item["ids"], dtype=torch.int32) for item in items]
        return BatchFeature({"memory_ids": ids, "memory_shapes": torch.tensor(shapes)})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        # On the CPU: lengths and ratios are looked at there, and a GPU would be waited for.
        field = MultiModalFieldConfig.batched(MODALITY, keep_on_cpu=True)
        return {"memory_ids": field, "memory_shapes": field}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        slot, items = self.info.get_hf_config().memory_token_ids[-1], mm_items.get(MODALITY)
        return [
            PromptReplacement(MODALITY, [slot], lambda at: [slot] * count_latents(items.get(at)))
        ]
