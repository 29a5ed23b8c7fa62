"""Read spans of source tokens in windows and fold each block of a window into one vector.

Shapes: N windows of one batch, L tokens of a window's input, R tokens per block, K blocks of a
span, E encoder width.

Windows never see each other except for `boundary_overlap` tokens; positions restart at 0 in each
window input (wire-format §2). Windows of like length share a forward pass of bounded size and are
pooled at once, so peak memory does not grow with the text. Windows are padded on the right only, up
to a multiple of `BUCKET_TOKENS` that depends on nothing but their own length: latents do not depend
on what else is in the batch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.errors import PromptError
from octavo.nn.pooling import pool_concat, pool_mean

BUCKET_TOKENS = 64
"""Remainders are padded to a multiple of this: few distinct shapes, at most 63 wasted tokens."""

ENCODE_BATCH_TOKENS = 16_384
"""Source tokens per forward pass. 16 windows of 1024; the paper used 131,072 on an H200."""


@dataclass(frozen=True, slots=True)
class Window:
    """One encoder input: tokens `start..stop` of a span are pooled, the margins only looked at."""

    span: int
    start: int
    stop: int
    left: int
    right: int

    def input_length(self, num_markers: int) -> int:
        """Return the number of tokens the encoder reads for this window."""
        return self.left + self.stop - self.start + self.right + num_markers


def plan_windows(num_tokens: int, config: ModelConfig, *, span: int = 0) -> list[Window]:
    """Tile one span: full windows, then what is left over, each with its margins."""
    size, overlap = config.encoder_window_size, config.boundary_overlap
    windows = []
    for start in range(0, num_tokens, size):
        stop = min(start + size, num_tokens)
        sees_right = config.encoder_mask_type == "bidirectional"
        right = min(overlap, num_tokens - stop) if sees_right else 0
        windows.append(Window(span, start, stop, min(overlap, start), right))
    return windows


class Encoder(nn.Module):
    """Turn spans of source tokens into pooled hidden states, one vector per block."""

    def __init__(self, body: Any, config: ModelConfig, pad_token_id: int) -> None:
        """Wrap a headless Hugging Face model; `pad_token_id` pads and marks `eos` blocks."""
        super().__init__()
        self.body = body
        self.settings = config
        self.pad_token_id = pad_token_id
        self.encode_batch_tokens = ENCODE_BATCH_TOKENS
        if config.encoder_mask_type == "bidirectional":
            # For flash attention, which takes no 4-D mask; sdpa and eager get an explicit one.
            body.config.is_causal = False

    @property
    def device(self) -> torch.device:
        """Where source ids must be put."""
        return next(self.body.parameters()).device

    def forward(
        self,
        spans: Sequence[Sequence[int] | Tensor],
        ratio: int | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return one `pooled_KE` per span, K = ceil(tokens / ratio).

        `on_tokens` is called with the number of source tokens read after each forward pass.
        Raises `PromptError` for an empty span: it has no latent to stand for it.
        """
        ratio = ratio or self.settings.compression_ratio
        ids = [torch.as_tensor(span, dtype=torch.long, device=self.device) for span in spans]
        if empty := [index for index, span in enumerate(ids) if len(span) == 0]:
            raise PromptError(f"span {empty[0]} is empty; give it text or leave it out")
        windows = [
            window
            for index, span in enumerate(ids)
            for window in plan_windows(len(span), self.settings, span=index)
        ]
        pooled: dict[Window, Tensor] = {}
        for batch, length in self._batches(windows, ratio):
            hidden_NLE = self._read(batch, length, ids, ratio)
            pooled.update(zip(batch, self._pool(hidden_NLE, batch, ratio), strict=True))
            if on_tokens is not None:
                on_tokens(sum(window.stop - window.start for window in batch))
        per_span: list[list[Tensor]] = [[] for _ in ids]
        for window in windows:
            per_span[window.span].append(pooled[window])
        return [torch.cat(parts) for parts in per_span]

    def _num_markers(self, window: Window, ratio: int) -> int:
        is_eos = self.settings.pooling == "eos"
        return -(-(window.stop - window.start) // ratio) if is_eos else 0

    def _batches(self, windows: Sequence[Window], ratio: int) -> Iterator[tuple[list[Window], int]]:
        """Group windows by padded input length, and cut the groups to bounded batches."""
        full = self.settings.encoder_window_size
        buckets: dict[int, list[Window]] = defaultdict(list)
        for window in windows:
            length = window.input_length(self._num_markers(window, ratio))
            is_full = window.stop - window.start == full
            buckets[length if is_full else -(-length // BUCKET_TOKENS) * BUCKET_TOKENS].append(
                window
            )
        for length, members in sorted(buckets.items(), reverse=True):
            size = max(1, self.encode_batch_tokens // length)
            for first in range(0, len(members), size):
                yield members[first : first + size], length

    def _read(self, batch: Sequence[Window], length: int, ids: list[Tensor], ratio: int) -> Tensor:
        """Run the encoder over one batch of windows, padded on the right to `length`."""
        inputs_NL = torch.full((len(batch), length), self.pad_token_id, device=self.device)
        num_read = []
        for row, window in enumerate(batch):
            tokens = ids[window.span][window.start - window.left : window.stop + window.right]
            inputs_NL[row, : len(tokens)] = tokens
            num_read.append(window.input_length(self._num_markers(window, ratio)))
        mask = None  # causal: what follows a token, padding included, never reaches it
        if self.settings.encoder_mask_type == "bidirectional":
            mask = self._bidirectional_mask(torch.tensor(num_read, device=self.device), length)
        output = self.body(input_ids=inputs_NL, attention_mask=mask, use_cache=False)
        hidden_NLE: Tensor = output.last_hidden_state
        return hidden_NLE

    def _bidirectional_mask(self, num_read_N: Tensor, length: int) -> Tensor:
        """Let every token see every real token of its own row."""
        is_real_NL = torch.arange(length, device=self.device) < num_read_N[:, None]
        if "flash" in str(getattr(self.body.config, "_attn_implementation", "")):
            return is_real_NL.long()
        dtype = next(self.body.parameters()).dtype
        mask_N11L = torch.zeros(is_real_NL.shape, dtype=dtype, device=self.device)[:, None, None]
        mask_N11L = mask_N11L.masked_fill(~is_real_NL[:, None, None], torch.finfo(dtype).min)
        return mask_N11L.expand(-1, -1, length, -1)

    def _pool(self, hidden_NLE: Tensor, batch: Sequence[Window], ratio: int) -> list[Tensor]:
        """Fold each window's blocks; windows of one shape are folded together."""
        shapes = {(window.left, window.stop - window.start, window.right) for window in batch}
        if len(shapes) == 1:
            return list(self._fold(hidden_NLE, batch[0], ratio))
        rows = zip(hidden_NLE.split(1), batch, strict=True)
        return [self._fold(row_1LE, window, ratio)[0] for row_1LE, window in rows]

    def _fold(self, hidden_NLE: Tensor, window: Window, ratio: int) -> Tensor:
        """Return the blocks `NKE` of windows that all have the shape of `window`."""
        stop = window.left + window.stop - window.start
        if self.settings.pooling == "eos":
            first = stop + window.right
            return hidden_NLE[:, first : first + self._num_markers(window, ratio)]
        fold = pool_concat if self.settings.pooling == "concat" else pool_mean
        return fold(hidden_NLE[:, window.left : stop], ratio)
