"""Read spans of source tokens in windows and fold each block of a window into one vector.

Shapes: N windows of one batch, L tokens of a window's input, R tokens per block, K blocks of a
span, E encoder width.

Windows never see each other except for `boundary_overlap` tokens; positions restart at 0 in each
window input (wire-format §2). Windows of like length share a forward pass of bounded size and are
pooled at once, so peak memory does not grow with the text. Windows are padded on the right only, up
to a multiple of `BUCKET_TOKENS` that depends on nothing but their own length: latents do not depend
on what else is in the batch. Training reads everything in one pass instead (`one_pass`), where
short windows share a row: they are kept apart by positions that restart, or by a mask.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.errors import ConfigError, PromptError
from octavo.nn.blocks import Blocks, find_blocks, fold, runs
from octavo.nn.body import max_positions
from octavo.nn.pooling import pool_concat, pool_mean

BUCKET_TOKENS = 64
"""Remainders are padded to a multiple of this: few distinct shapes, at most 63 wasted tokens."""

ENCODE_BATCH_TOKENS = 16_384
"""Source tokens per forward pass. 16 windows of 1024; the paper used 131,072 on an H200."""

CPU_ENCODE_BATCH_TOKENS = 4_096
"""On a CPU larger passes are slower: their activations leave the caches and fault in new pages."""


@dataclass(frozen=True, slots=True)
class Window:
    """One encoder input: tokens `start..stop` of a span are pooled, the margins only looked at."""

    span: int
    start: int
    stop: int
    left: int
    right: int
    ratio: int

    @property
    def num_blocks(self) -> int:
        """The number of latents this window makes; a short last block counts."""
        return -(-(self.stop - self.start) // self.ratio)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What windows have in common that can be folded together."""
        return self.left, self.stop - self.start, self.right, self.ratio

    def input_length(self, num_markers: int) -> int:
        """Return the number of tokens the encoder reads for this window."""
        return self.left + self.stop - self.start + self.right + num_markers


def plan_windows(
    num_tokens: int, config: ModelConfig, *, span: int = 0, ratio: int | None = None
) -> list[Window]:
    """Tile one span: full windows, then what is left over, each with its margins."""
    ratio = ratio or config.compression_ratio
    size, overlap = config.encoder_window_size, config.boundary_overlap
    windows = []
    for start in range(0, num_tokens, size):
        stop = min(start + size, num_tokens)
        sees_right = config.encoder_mask_type == "bidirectional"
        right = min(overlap, num_tokens - stop) if sees_right else 0
        windows.append(Window(span, start, stop, min(overlap, start), right, ratio))
    return windows


def ratio_per_span(ratio: int | Sequence[int], num_spans: int) -> list[int]:
    """Return one ratio per span, whether one was given for all or one for each."""
    ratios = [ratio] * num_spans if isinstance(ratio, int) else list(ratio)
    if len(ratios) != num_spans:
        raise PromptError(
            f"{len(ratios)} ratios were given for {num_spans} spans; give one for each, or one for "
            "all"
        )
    return ratios


class Encoder(nn.Module):
    """Turn spans of source tokens into pooled hidden states, one vector per block."""

    def __init__(self, body: Any, config: ModelConfig, pad_token_id: int) -> None:
        """Wrap a headless Hugging Face model; `pad_token_id` pads and marks `eos` blocks."""
        super().__init__()
        self.body = body
        self.settings = config
        self.pad_token_id = pad_token_id
        self.encode_batch_tokens: int | None = None
        """Source tokens per forward pass; None for what suits the device."""
        self.shares_rows = True
        """Whether `one_pass` may put short windows into one row."""
        self.has_own_sight = any(
            getattr(module, "is_causal", None) is False for module in body.modules()
        )
        """Whether the body sees in both directions by itself: it then needs no mask of ours."""
        self._limit = max_positions(body)
        longest = config.encoder_window_size + 2 * config.boundary_overlap
        if config.pooling == "eos":
            longest += config.encoder_window_size // config.compression_ratio
        if self._limit is not None and longest > self._limit:
            raise ConfigError(
                f"a window takes {longest:,} positions, but the encoder has {self._limit:,}; lower "
                f"encoder_window_size ({config.encoder_window_size:,})"
            )
        if config.encoder_mask_type == "bidirectional":
            # For flash attention, which takes no 4-D mask; sdpa and eager get an explicit one.
            body.config.is_causal = False

    @property
    def device(self) -> torch.device:
        """Where source ids must be put; hooks move them on where weights are offloaded."""
        device: torch.device = next(self.body.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    def forward(
        self,
        spans: Sequence[Sequence[int] | Tensor],
        ratio: int | Sequence[int] | None = None,
        on_tokens: Callable[[int], None] | None = None,
        *,
        one_pass: bool = False,
    ) -> list[Tensor]:
        """Return one `pooled_KE` per span, K = ceil(tokens / ratio); a ratio may be one per span.

        `on_tokens` is called with the number of source tokens read after each forward pass.
        `one_pass` reads all windows in exactly one forward pass of the body, whatever their number
        and lengths: processes that share a sharded body must all run it equally often.
        Raises `PromptError` for an empty span: it has no latent to stand for it.
        """
        ids = [torch.as_tensor(span, dtype=torch.long, device=self.device) for span in spans]
        ratios = ratio_per_span(ratio or self.settings.compression_ratio, len(ids))
        if empty := [index for index, span in enumerate(ids) if len(span) == 0]:
            raise PromptError(f"span {empty[0]} is empty; give it text or leave it out")
        windows = [
            window
            for index, span in enumerate(ids)
            for window in plan_windows(len(span), self.settings, span=index, ratio=ratios[index])
        ]
        if not windows:
            return []
        if one_pass:
            joined_KE = self._read_at_once(windows, ids)
            if on_tokens is not None:
                on_tokens(sum(map(len, ids)))
        else:
            joined_KE = self.read_windows(windows, ids, on_tokens)
        counts = [-(-len(span) // ratio) for span, ratio in zip(ids, ratios, strict=True)]
        return list(joined_KE.split(counts))

    def read_windows(
        self,
        windows: Sequence[Window],
        ids: list[Tensor],
        on_tokens: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the blocks `KE` of all windows, read in passes of bounded size."""
        ends = list(accumulate(window.num_blocks for window in windows))
        first = dict(zip(windows, [0, *ends], strict=False))
        pooled: dict[Window, Tensor] = {}
        joined_KE: Tensor | None = None
        for batch, length in self._batches(windows):
            for window, vectors in self._pool(self._read(batch, length, ids), batch):
                if torch.is_grad_enabled():
                    pooled[window] = vectors
                    continue
                # Into one place at once: small results among large ones would break up the heap.
                if joined_KE is None:
                    joined_KE = vectors.new_empty(ends[-1], vectors.shape[-1])
                joined_KE[first[window] : first[window] + len(vectors)] = vectors
            if on_tokens is not None:
                on_tokens(sum(window.stop - window.start for window in batch))
        if joined_KE is None:
            joined_KE = torch.cat([pooled[window] for window in windows])
        return joined_KE

    def _input_length(self, window: Window) -> int:
        """Return what a window's input takes, its `eos` markers included."""
        return window.input_length(window.num_blocks if self.settings.pooling == "eos" else 0)

    def _batches(self, windows: Sequence[Window]) -> Iterator[tuple[list[Window], int]]:
        """Group windows by padded input length, and cut the groups to bounded batches."""
        full = self.settings.encoder_window_size
        buckets: dict[int, list[Window]] = defaultdict(list)
        for window in windows:
            length = self._input_length(window)
            is_full = window.stop - window.start == full
            buckets[length if is_full else self._bucket(length)].append(window)
        on_cpu = self.device.type == "cpu"
        usual = CPU_ENCODE_BATCH_TOKENS if on_cpu else ENCODE_BATCH_TOKENS
        for length in sorted(buckets, reverse=True):
            members = buckets[length]
            size = max(1, (self.encode_batch_tokens or usual) // length)
            for first in range(0, len(members), size):
                yield members[first : first + size], length

    def _share_rows(self, windows: Sequence[Window], length: int) -> list[int]:
        """Return where each window's input starts in a batch of rows of `length`, laid end to end.

        Short windows share a row where nothing lets them see each other.
        """
        # Nor flash attention nor a body's own mask keeps windows apart in both directions.
        is_shared = self.shares_rows and (
            self.settings.encoder_mask_type == "causal"
            or not (self._is_flash or self.has_own_sight)
        )
        sizes = [self._input_length(window) for window in windows]
        room: dict[int, int] = {}  # rows with room left, and where it begins
        starts, num_rows, least = [0] * len(windows), 0, min(sizes)
        for index in sorted(range(len(windows)), key=sizes.__getitem__, reverse=True):
            size = sizes[index]
            fitting = (row for row, taken in room.items() if taken + size <= length)
            if (row := next(fitting, num_rows)) == num_rows:
                num_rows += 1
            taken = room.pop(row, 0)
            starts[index] = row * length + taken
            if is_shared and taken + size + least <= length:
                room[row] = taken + size
        return starts

    def _read_at_once(self, windows: Sequence[Window], ids: list[Tensor]) -> Tensor:
        """Return the blocks of all windows, read in one pass and folded without a loop over them.

        What depends on lengths alone is worked out on the CPU: a GPU would wait for every window.
        """
        sizes = [self._input_length(window) for window in windows]
        length = self._bucket(max(sizes))
        places = self._share_rows(windows, length)
        num_rows = 1 + max(places) // length
        first_of_span = [0, *accumulate(map(len, ids))]
        table = [
            (p, size, first_of_span[w.span] + w.start - w.left, w.left, w.stop - w.start, w.right)
            for w, p, size in zip(windows, places, sizes, strict=True)
        ]
        place_W, size_W, source_W, left_W, pooled_W, right_W = torch.tensor(table).unbind(1)
        read_W = left_W + pooled_W + right_W
        joined = torch.cat(ids)
        inputs = torch.full((num_rows * length,), self.pad_token_id, device=self.device)
        targets, sources = runs(place_W, read_W), runs(source_W, read_W)
        inputs[targets.to(self.device)] = joined[sources.to(self.device)]
        mask = None  # causal: what follows a token, padding included, never reaches it
        if self.settings.encoder_mask_type == "bidirectional":
            owner = torch.full((num_rows * length,), -1)  # which window a token is of
            owner[runs(place_W, size_W)] = torch.arange(len(windows)).repeat_interleave(size_W)
            mask = self._bidirectional_mask(owner.view(num_rows, length).to(self.device))
        shape, options = (num_rows, length), {}
        if int((place_W % length).max()):
            starts = torch.zeros(num_rows * length, dtype=torch.long)
            starts[place_W] = place_W % length
            starts_NL = starts.view(num_rows, length).cummax(1).values
            positions_NL = torch.arange(length) - starts_NL
            if self._is_flash:  # flash isolates within one row only
                shape = (1, num_rows * length)
            options["position_ids"] = positions_NL.to(self.device).reshape(shape)
        output = self.body(
            input_ids=inputs.view(shape), attention_mask=mask, use_cache=False, **options
        )
        hidden: Tensor = output.last_hidden_state.flatten(0, 1)
        if self.settings.pooling == "eos":
            counts_W = torch.tensor([window.num_blocks for window in windows])
            return hidden[runs(place_W + read_W, counts_W).to(hidden.device)]
        ratios_W = torch.tensor([window.ratio for window in windows])

        def one_ratio(blocks: Blocks) -> Tensor:
            index = blocks.index_KR.flatten().to(hidden.device)
            shape = (*blocks.index_KR.shape, hidden.shape[-1])
            hidden_KRE = hidden.index_select(0, index).view(shape)
            is_token_KR1 = blocks.is_token_KR[:, :, None]
            if self.settings.pooling == "concat":
                return (hidden_KRE * is_token_KR1.to(hidden)).flatten(1)
            weight_KR1 = is_token_KR1 / is_token_KR1.sum(1, keepdim=True)
            # The weights are in fp32, and so are the products: one rounding, as in a mean.
            return (hidden_KRE * weight_KR1.to(hidden.device)).sum(1).to(hidden.dtype)

        return fold(find_blocks(place_W + left_W, pooled_W, ratios_W), one_ratio)

    def _bucket(self, length: int) -> int:
        """Round a length up to the next multiple of `BUCKET_TOKENS` that the body can read."""
        rounded = -(-length // BUCKET_TOKENS) * BUCKET_TOKENS
        return rounded if self._limit is None else max(length, min(rounded, self._limit))

    @property
    def _is_flash(self) -> bool:
        return "flash" in str(getattr(self.body.config, "_attn_implementation", ""))

    def _read(self, batch: Sequence[Window], length: int, ids: list[Tensor]) -> Tensor:
        """Run the encoder over one batch of windows, padded on the right to `length`."""
        inputs_NL = torch.full((len(batch), length), self.pad_token_id, device=self.device)
        owner_NL = torch.full((len(batch), length), -1)  # which window a token is of
        for row, window in enumerate(batch):
            tokens = ids[window.span][window.start - window.left : window.stop + window.right]
            inputs_NL[row, : len(tokens)] = tokens
            owner_NL[row, : self._input_length(window)] = row
        mask = None  # causal: what follows a token, padding included, never reaches it
        if self.settings.encoder_mask_type == "bidirectional":
            mask = self._bidirectional_mask(owner_NL.to(self.device))
        output = self.body(input_ids=inputs_NL, attention_mask=mask, use_cache=False)
        hidden_NLE: Tensor = output.last_hidden_state
        return hidden_NLE

    def _bidirectional_mask(self, owner_NL: Tensor) -> Tensor:
        """Let every token see every token of its own window, and padding only padding."""
        if self._is_flash or self.has_own_sight:
            return (owner_NL >= 0).long()
        sees_N1LL = owner_NL[:, None, :, None] == owner_NL[:, None, None, :]
        if str(getattr(self.body.config, "_attn_implementation", "")) == "sdpa":
            # Without a dtype: weights, queries and autocast may each have another one.
            return sees_N1LL
        dtype = next(self.body.parameters()).dtype
        mask_N1LL = torch.zeros(sees_N1LL.shape, dtype=dtype, device=self.device)
        return mask_N1LL.masked_fill(~sees_N1LL, torch.finfo(dtype).min)

    def _pool(self, hidden_NLE: Tensor, batch: Sequence[Window]) -> Iterator[tuple[Window, Tensor]]:
        """Fold each window's blocks; windows of one shape fold together."""
        if len({window.shape for window in batch}) == 1:
            yield from zip(batch, self._fold(hidden_NLE, batch[0]), strict=True)
            return
        for row, window in enumerate(batch):
            yield window, self._fold(hidden_NLE[row : row + 1], window)[0]

    def _fold(self, hidden_NLE: Tensor, window: Window) -> Tensor:
        """Return the blocks `NKE` of windows that all have the shape of `window`."""
        stop = window.left + window.stop - window.start
        if self.settings.pooling == "eos":
            first = stop + window.right
            return hidden_NLE[:, first : first + window.num_blocks]
        fold = pool_concat if self.settings.pooling == "concat" else pool_mean
        return fold(hidden_NLE[:, window.left : stop], window.ratio)
