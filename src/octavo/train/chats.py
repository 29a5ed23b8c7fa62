"""Turn chats with memory parts into batches for Trainer, PEFT and TRL.

Shapes: B chats, T positions of the longest, M spans of the batch, L source tokens of the longest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.data.examples import ExampleMaker
from octavo.data.rows import Row
from octavo.errors import TrainingError
from octavo.prompt import PromptEncoder
from octavo.train.batch import collate


class ChatCollator:
    """A `data_collator`: rows `{"messages": [...]}` become what `LCLM.forward` takes.

    Messages are those of `Model.generate`, with parts `{"type": "memory", "text": ...}`. What the
    assistant says is scored. Set `remove_unused_columns=False`, or Trainer drops the messages.
    """

    def __init__(self, prompts: PromptEncoder, ratio: int | None = None) -> None:
        """Take `Model.prompts`, and fold spans at `ratio`, by default the model's own."""
        self.ratio = ratio or prompts.config.compression_ratio
        self._maker, self._slot_id = ExampleMaker(prompts), prompts.slot_id

    def __call__(self, chats: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `BT` and `memory_*` `M` or `ML`.

        Raises `TrainingError` for a chat of which nothing can be learned.
        """
        rows = []
        for chat in chats:
            example = self._maker.from_chat("chat", chat["messages"], "a chat")
            if example is None:
                raise TrainingError(
                    f"nothing can be learned from the chat {str(chat['messages'])[:70]!r}; it "
                    "needs a question, then an answer, and words in each memory part"
                )
            rows.append(Row("", self.ratio, [example]))
        lengths_B1 = torch.tensor([[row.examples[0].length(self.ratio)] for row in rows])
        longest = int(lengths_B1.max())
        batch = collate(rows, row_tokens=longest, slot_id=self._slot_id)
        return {
            "input_ids": batch.input_ids_BT,
            "attention_mask": (torch.arange(longest) < lengths_B1).long(),
            "labels": batch.labels_BT,
            "memory_ids": batch.memory_ids_ML,
            "memory_lengths": batch.memory_lengths_M,
            "memory_ratios": batch.memory_ratios_M,
        }
