"""Turn chats with memory parts into batches for Trainer, PEFT and TRL.

Shapes: B chats, T positions of the longest, M spans of the batch, L source tokens of the longest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from octavo.data.examples import IGNORED, ExampleMaker
from octavo.errors import TrainingError
from octavo.prompt import PromptEncoder
from octavo.train.batch import lay_out


class ChatCollator:
    """A `data_collator`: rows `{"messages": [...]}` become what `LCLM.forward` takes.

    Messages are those of `Model.generate`, with parts `{"type": "memory", "text": ...}`. What the
    assistant says is scored. Set `remove_unused_columns=False`, or Trainer drops the messages.
    """

    def __init__(self, prompts: PromptEncoder, ratio: int | None = None) -> None:
        """Take `Model.prompts`, and fold spans at `ratio`, by default the model's own."""
        self.ratio = ratio or prompts.config.compression_ratio
        self._maker, self._slot_id = ExampleMaker(prompts), prompts.slot_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `BT` and `memory_*` `M` or `ML`.

        Raises `TrainingError` for a chat of which nothing can be learned.
        """
        ids, labels, spans = [], [], []
        for row in rows:
            example = self._maker.from_chat("chat", row["messages"], "a chat")
            if example is None:
                raise TrainingError(
                    f"nothing can be learned from the chat {str(row['messages'])[:80]!r}: it needs "
                    "a question, and then an answer that has words; so do its memory parts"
                )
            its_ids, its_labels = lay_out(example, self.ratio, self._slot_id)
            ids.append(torch.tensor(its_ids))
            labels.append(torch.tensor(its_labels))
            spans += [torch.tensor(span) for span in example.spans]
        ones = [torch.ones_like(one) for one in ids]
        lengths_M = torch.tensor([len(span) for span in spans], dtype=torch.long)
        no_spans_ML = torch.zeros(0, 0, dtype=torch.long)
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence(ones, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "memory_ids": pad_sequence(spans, batch_first=True) if spans else no_spans_ML,
            "memory_lengths": lengths_M,
            "memory_ratios": torch.full_like(lengths_M, self.ratio),
        }
