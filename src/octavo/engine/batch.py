"""Answer several prompts at once: read them, lay them side by side, and step.

Shapes: B rows, T positions, D decoder width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.engine.base import Prompt, Sampling
from octavo.engine.cache import GrowingCache, side_by_side
from octavo.engine.choose import Chooser
from octavo.engine.reader import PromptReader
from octavo.nn.cache import fresh_cache, output_cache


@dataclass(slots=True)
class _Lane:
    """Rows that are decoded in one pass, and their cache."""

    rows: list[int]
    cache: Any
    mask_BT: Tensor | None = None
    """Where rows differ in length and are filled up on the left."""
    keyword: str = ""
    """What the decoder calls its cache, where it has one of its own kind."""
    length: int = 0
    """Positions read; of the longest row."""


class LocalBatch:
    """Rows on their way through a local engine."""

    def __init__(self, reader: PromptReader, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Prepare; the first step reads the prompts."""
        self._reader, self._prompts, self._sampling = reader, list(prompts), sampling
        self.logprobs: list[float | None] = [None] * len(prompts)
        self._choosers = [
            Chooser(sampling, sampling.seed_of(row), reader.device) for row in range(len(prompts))
        ]
        self._tokens: list[int | None] = [None] * len(prompts)
        self._dropped: set[int] = set()
        self._lanes: list[_Lane] | None = None
        self._prefix: tuple[bytes, GrowingCache, int] | None = None
        """The prefix that a single row grows in place, without a copy."""
        self._fed: list[int] = []
        """Tokens of a single row's answer that were read."""
        self.num_reused = 0
        self._num_steps = 0
        self._is_closed = not prompts

    def __iter__(self) -> Iterator[list[int | None]]:
        """Return itself."""
        return self

    def __next__(self) -> list[int | None]:
        """Take one step: read the prompts, then a token of every row."""
        if self._is_closed or self._num_steps >= self._sampling.max_new_tokens:
            self.close()
            raise StopIteration
        try:
            with self._reader.lock, torch.inference_mode():
                if self._lanes is None:
                    before = self._reader.num_read
                    logits = self._read_prompts()
                    asked = sum(len(prompt.input_ids) for prompt in self._prompts)
                    self.num_reused = max(0, asked - (self._reader.num_read - before))
                else:
                    logits = {}
                    for lane in self._compacted():
                        logits.update(self._step(lane))
                tokens = self._chosen(logits)
        except BaseException:
            self.close()
            raise
        self._num_steps += 1
        if not any(token is not None for token in tokens):
            self.close()
            raise StopIteration
        return tokens

    def drop(self, row: int) -> None:
        """End a row; its part of the cache goes with the next step."""
        self._dropped.add(row)
        self._tokens[row] = None
        if len(self._dropped) == len(self._prompts):
            self.close()

    def close(self) -> None:
        """End all rows, and keep the prefix of a single one."""
        self._is_closed = True
        self._lanes = []
        if self._prefix is not None:
            with self._reader.lock:
                if self._prompts[0].is_turn:
                    self._reader.turns.keep(self._prompts[0], self._fed, self._prefix[1])
                else:
                    self._reader.give_back(*self._prefix)
            self._prefix = None

    # -- reading the prompts ---------------------------------------------------------------------

    def _read_prompts(self) -> dict[int, Tensor]:
        """Read every prompt; return the logits `V` that each row continues from."""
        rows = [row for row in range(len(self._prompts)) if row not in self._dropped]
        self._lanes = []
        if not self._reader.is_plain:
            return dict(self._read_apart(row) for row in rows)
        if len(rows) == 1:
            return self._read_alone(rows[0])
        logits: dict[int, Tensor] = {}
        parts: dict[int, tuple[GrowingCache, int, int]] = {}
        groups: dict[tuple[bytes, int], list[int]] = defaultdict(list)
        for row in rows:
            groups[self._reader.prefix_of(self._prompts[row])].append(row)
        for members in groups.values():
            for found in self._read_group(members, parts):
                logits.update(found)
        longest = max(length for _, _, length in parts.values())
        cache = side_by_side([parts[row] for row in rows], spare=longest // 4 + 64)
        mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        for at, row in enumerate(rows):
            mask_BT[at, longest - parts[row][2] :] = 1
        mask = None if bool(mask_BT.all()) else mask_BT.to(self._reader.device)
        self._lanes = [_Lane(rows, cache, mask, length=longest)]
        return logits

    def _read_alone(self, row: int) -> dict[int, Tensor]:
        """Read one prompt, growing its prefix in place."""
        reader, prompt = self._reader, self._prompts[row]
        if prompt.is_turn:
            key, (cache, prefix) = b"", reader.turns.take(prompt)
        else:
            key, kept, prefix = reader.take(prompt)
            assert kept is not None
            cache = kept
        self._prefix = (key, cache, prefix)
        logits_1TV, _ = reader.read(reader.embed(prompt, prefix), cache)
        self._lanes = [_Lane([row], cache, length=len(prompt.input_ids))]
        return {row: logits_1TV[0, -1]}

    def _read_apart(self, row: int) -> tuple[int, Tensor]:
        """Read one prompt into a cache of the decoder's own kind."""
        reader, prompt = self._reader, self._prompts[row]
        logits_1TV, output = reader.read(reader.embed(prompt, 0), fresh_cache(reader.lclm.decoder))
        keyword, cache = output_cache(output)
        lane = _Lane([row], cache, keyword=keyword, length=len(prompt.input_ids))
        assert self._lanes is not None
        self._lanes.append(lane)
        return row, logits_1TV[0, -1]

    def _read_group(
        self, rows: list[int], parts: dict[int, tuple[GrowingCache, int, int]]
    ) -> Iterator[dict[int, Tensor]]:
        """Read the prompts that share a prefix: it once, then what follows it, in bounded passes.

        What follows is filled up on the right, which no position before it sees: every row is read
        exactly as it would be alone.
        """
        reader = self._reader
        key, prefix_cache, prefix = reader.take(self._prompts[rows[0]])
        assert prefix_cache is not None
        try:
            rests = {row: reader.embed(self._prompts[row], prefix) for row in rows}
            waiting = sorted(rows, key=lambda row: rests[row].shape[1])
            while waiting:
                # The longest of those that fit one pass comes last.
                count = 1
                while count < len(waiting) and (
                    (count + 1) * rests[waiting[count]].shape[1] <= reader.prefill
                ):
                    count += 1
                now, waiting = waiting[:count], waiting[count:]
                cache = prefix_cache.repeated(len(now)) if prefix else GrowingCache()
                lengths = [rests[row].shape[1] for row in now]
                embeds_BTD = torch.cat([_filled_up(rests.pop(row), max(lengths)) for row in now])
                ends = sorted({length - 1 for length in lengths})
                keep: int | Tensor = 1
                if len(now) > 1:
                    keep = torch.tensor(ends, device=reader.device)
                logits_BTV, _ = reader.read(embeds_BTD, cache, keep=keep)
                for at, (row, length) in enumerate(zip(now, lengths, strict=True)):
                    parts[row] = (cache, at, prefix + length)
                    place = ends.index(length - 1) if len(now) > 1 else -1
                    yield {row: logits_BTV[at, place]}
        finally:
            reader.give_back(key, prefix_cache, prefix)

    # -- steps -----------------------------------------------------------------------------------

    def _compacted(self) -> list[_Lane]:
        """Take rows that have ended out of the lanes, and return what is left."""
        lanes = []
        assert self._lanes is not None
        for lane in self._lanes:
            places = [at for at, row in enumerate(lane.rows) if self._tokens[row] is not None]
            if not places:
                continue
            if len(places) < len(lane.rows):
                first = 0
                if lane.mask_BT is not None:
                    lane.mask_BT = lane.mask_BT[places]
                    first = int(lane.mask_BT.any(0).int().argmax())  # what was filled up for others
                    lane.mask_BT = lane.mask_BT[:, first:]
                    if bool(lane.mask_BT.all()):
                        lane.mask_BT = None
                lane.cache = lane.cache.selected(places, first)
                lane.rows = [lane.rows[at] for at in places]
                lane.length -= first
            lanes.append(lane)
        self._lanes = lanes
        return lanes

    def _step(self, lane: _Lane) -> dict[int, Tensor]:
        """Feed every row of a lane its last token, and return the logits `V` behind it."""
        reader, inputs = self._reader, {}
        if lane.mask_BT is not None:
            lane.mask_BT = torch.nn.functional.pad(lane.mask_BT, (0, 1), value=1)
            inputs["attention_mask"] = lane.mask_BT
            inputs["position_ids"] = lane.mask_BT.sum(1, keepdim=True) - 1
        tokens = [[self._tokens[row]] for row in lane.rows]
        ids_B1 = torch.tensor(tokens, device=reader.device)
        embeds_B1D = reader.lclm.embed_tokens(ids_B1)
        logits_BTV, output = reader.read(
            embeds_B1D, lane.cache, keyword=lane.keyword, past=lane.length, **inputs
        )
        if lane.keyword:
            lane.cache = output_cache(output)[1]
        if self._prefix is not None:
            self._fed.append(tokens[0][0] or 0)
        lane.length += 1
        return {row: logits_BTV[at, -1] for at, row in enumerate(lane.rows)}

    def _chosen(self, logits: dict[int, Tensor]) -> list[int | None]:
        """Choose a token for every row that goes on; None for the others."""
        tokens: list[int | None] = [None] * len(self._prompts)
        self.logprobs = [None] * len(self._prompts)
        for row, logits_V in logits.items():
            if row in self._dropped:
                continue
            token = self._choosers[row](logits_V)
            if token in self._sampling.stop_ids:
                continue
            tokens[row] = token
            if self._sampling.logprobs:
                self.logprobs[row] = float(logits_V.float().log_softmax(-1)[token])
        self._tokens = list(tokens)
        return tokens


def _filled_up(embeds_1TD: Tensor, length: int) -> Tensor:
    """Fill up with zeros on the right."""
    return torch.nn.functional.pad(embeds_1TD, (0, 0, 0, length - embeds_1TD.shape[1]))
