"""LCLM in the shape that transformers' own common tests expect; `scripts/hf-suites` runs them.

They are not collected with our tests: their base classes come from the sdist of transformers.
Llava stands beside it, so that counts can be compared.
"""

import tempfile
import unittest
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.models.auto import modeling_auto as tables

from octavo.nn import LCLM, LCLMConfig
from octavo.nn.headless import LCLMBody
from tests import test_modeling_common as common

# The tests look up by name what kind of class they test; `register` does not fill these tables.
tables.MODEL_MAPPING_NAMES["lclm"] = "LCLMBody"
tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["lclm"] = "LCLM"
# Prompts drawn at random hold no slots (0): a model refuses slots without spans.
common.ids_tensor = lambda shape, vocab_size, *rest: ids_tensor(shape, vocab_size - 1) + 1

TEXT: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
}
RATIO, SLOTS, SLOT_ID = 4, 3, 0


class Tester:
    """What both testers share: a prompt that opens with slots, and its sizes."""

    batch_size, seq_length, slots = 7, 7 + SLOTS, SLOTS
    num_hidden_layers, num_attention_heads, hidden_size, vocab_size = 2, 4, 32, 99
    is_training, encoder_seq_length = True, 7 + SLOTS

    def prompt(self, slot_id: int) -> dict[str, torch.Tensor]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 2
        input_ids[:, : self.slots] = slot_id
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class LCLMTester(Tester):
    def get_config(self) -> LCLMConfig:
        return LCLMConfig(
            text_config=dict(TEXT),
            encoder_config=dict(TEXT),
            model_config={"compression_ratio": RATIO, "encoder_window_size": 16},
            memory_token_ids=[96, 97, SLOT_ID],
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LCLMConfig, dict[str, torch.Tensor]]:
        memory_ids = ids_tensor([self.batch_size, RATIO * SLOTS], self.vocab_size)
        return self.get_config(), {**self.prompt(SLOT_ID), "memory_ids": memory_ids}


class LlavaTester(Tester):
    slots = 16
    seq_length = encoder_seq_length = 7 + 16
    vision_config = VISION

    def get_config(self) -> LlavaConfig:
        return LlavaConfig(
            text_config=dict(TEXT), vision_config=dict(VISION), image_token_index=0,
            image_seq_length=self.slots, vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[LlavaConfig, dict[str, torch.Tensor]]:
        pixels = floats_tensor([self.batch_size, 3, VISION["image_size"], VISION["image_size"]])
        return self.get_config(), {**self.prompt(0), "pixel_values": pixels}


class LCLMCommonTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (LCLMBody, LCLM)
    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = ("memory_ids",)
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = LCLMTester()

    def test_sdpa_can_dispatch_composite_models(self) -> None:
        """As in the suite, whose own version looks for a vision tower."""
        lclm = LCLM(self.model_tester.get_config())
        with tempfile.TemporaryDirectory() as folder:
            lclm.save_pretrained(folder)
            for attention in ("sdpa", "eager"):
                read = LCLM.from_pretrained(folder, attn_implementation=attention)
                for part in (read.decoder, read.encoder.body):
                    assert part.config._attn_implementation == attention


class LlavaCommonTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (LlavaModel, LlavaForConditionalGeneration)
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = LlavaTester()


del ModelTesterMixin, GenerationTesterMixin  # pytest would collect them
