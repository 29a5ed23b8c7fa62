"""Answer several prompts at once: read them, lay them side by side, and step.

Shapes: B rows, T positions, D decoder width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.engine.base import Prompt, Sampling
from octavo.engine.cache import GrowingCache, side_by_side
from octavo.engine.choose import Chooser
from octavo.engine.reader import PromptReader
from octavo.nn.cache import fresh_cache, output_cache

MAX_PADDING = 2
"""Rows lie side by side only where none is filled up to more than so many times its length."""
FREE_PADDING = 64
"""Positions to fill up that do not count."""


@dataclass(slots=True)
class _Row:
    """One answer under way."""

    prompt: Prompt
    sampling: Sampling
    choose: Chooser
    left: int
    """Tokens that it may still make."""
    token: int | None = None
    """The one chosen last; None before the first, and once the row has ended."""


@dataclass(slots=True)
class _Lane:
    """Rows that are decoded in one pass, and their cache."""

    rows: list[int]
    cache: Any
    lengths: list[int]
    """Positions read of each row, which are the last ones of the cache."""
    keyword: str = ""
    """What the decoder calls its cache, where it has one of its own kind."""
    prefix: tuple[bytes, GrowingCache, int] | None = None
    """The kept prefix that a single row grows in place, without a copy."""
    turn: Prompt | None = None
    """The turn of a conversation that a single row is."""
    fed: list[int] = field(default_factory=list)
    """Tokens of a turn's answer that were read."""

    @property
    def length(self) -> int:
        """Positions read; of the longest row."""
        return max(self.lengths)


class LocalBatch:
    """Rows on their way through a local engine; more may join them between steps."""

    def __init__(self, reader: PromptReader, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Prepare; the first step reads the prompts."""
        self._reader = reader
        self._rows: list[_Row | None] = []
        self._unread: list[int] = []
        self._lanes: list[_Lane] = []
        self.logprobs: list[float | None] = []
        self.alternatives: list[list[tuple[int, float]]] = []
        self.reused: list[int] = []
        self._is_closed = not prompts
        for index, prompt in enumerate(prompts):
            self._add(prompt, sampling, sampling.seed_of(index))

    @property
    def num_reused(self) -> int:
        """Positions of all prompts that were not read, since they were kept."""
        return sum(self.reused)

    def join(self, prompt: Prompt, sampling: Sampling) -> int:
        """Let one more prompt in; the next step reads it. Returns its row, maybe one that ended."""
        assert not self._is_closed, "a batch whose rows have all ended takes no more"
        return self._add(prompt, sampling, sampling.seed_of(0))

    def _add(self, prompt: Prompt, sampling: Sampling, seed: int | None) -> int:
        chooser = Chooser(sampling, seed, self._reader.device)
        made = _Row(prompt, sampling, chooser, sampling.max_new_tokens)
        if None in self._rows:
            row = self._rows.index(None)
            self._rows[row] = made
        else:
            row = len(self._rows)
            self._rows.append(made)
            self.logprobs.append(None)
            self.alternatives.append([])
            self.reused.append(0)
        self._unread.append(row)
        return row

    def __iter__(self) -> Iterator[list[int | None]]:
        """Return itself."""
        return self

    def __next__(self) -> list[int | None]:
        """Take one step: a token of every row, having read the prompts that are new."""
        try:
            with self._reader.lock, torch.inference_mode():
                self._compact()
                logits: dict[int, Tensor] = {}
                for lane in self._lanes:
                    logits.update(self._step(lane))
                if self._unread:
                    logits.update(self._read_new())
                tokens = self._chosen(logits)
        except BaseException:
            self.close()
            raise
        if not any(token is not None for token in tokens):
            self.close()
            raise StopIteration
        return tokens

    def drop(self, row: int) -> None:
        """End a row; its part of the cache goes with the next step."""
        self._rows[row] = None
        self._unread = [one for one in self._unread if one != row]
        if all(one is None for one in self._rows):
            self.close()

    def close(self) -> None:
        """End all rows, and keep the prefixes that single ones grew."""
        self._is_closed = True
        self._rows, self._unread = [None] * len(self._rows), []
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            self._give_back(lane)

    def _give_back(self, lane: _Lane) -> None:
        """Let the reader keep the prefix of a lane whose cache nobody reads any more."""
        if lane.prefix is not None:
            with self._reader.lock:
                if lane.turn is not None:
                    self._reader.turns.keep(lane.turn, lane.fed, lane.prefix[1])
                else:
                    self._reader.give_back(*lane.prefix)
            lane.prefix = None

    # -- reading the prompts ---------------------------------------------------------------------

    def _read_new(self) -> dict[int, Tensor]:
        """Read the prompts that are new; return the logits `V` that each row continues from."""
        rows = [row for row in self._unread if self._rows[row] is not None]
        self._unread = []
        if not rows:
            return {}
        if not self._reader.is_plain:
            return dict(self._read_apart(row) for row in rows)
        if len(rows) == 1 and not self._lanes:
            return self._read_alone(rows[0])
        for lane in self._lanes:  # others may share its prefix
            if lane.prefix is not None:
                lane.cache = lane.cache.selected([0], 0)
                self._give_back(lane)
        logits: dict[int, Tensor] = {}
        parts: dict[int, tuple[GrowingCache, int, int, int]] = {}
        groups: dict[tuple[bytes, int], list[int]] = defaultdict(list)
        for row in rows:
            groups[self._reader.prefix_of(self._prompt(row))].append(row)
        for members in groups.values():
            for found in self._read_group(members, parts):
                logits.update(found)
        for lane in self._lanes:
            for at, (row, length) in enumerate(zip(lane.rows, lane.lengths, strict=True)):
                stop = lane.length
                parts[row] = (lane.cache, at, stop - length, stop)
        self._lay_out(parts)
        return logits

    def _lay_out(self, parts: dict[int, tuple[GrowingCache, int, int, int]]) -> None:
        """Lay rows of about the same length side by side; a lane that stays as it was is kept."""
        old = {tuple(sorted(lane.rows)): lane for lane in self._lanes}
        lengths = {row: stop - start for row, (_, _, start, stop) in parts.items()}
        self._lanes = []
        waiting = sorted(lengths, key=lambda row: -lengths[row])
        while waiting:
            longest = lengths[waiting[0]]
            fits = [longest <= MAX_PADDING * lengths[row] + FREE_PADDING for row in waiting]
            count = sum(fits)
            now, waiting = sorted(waiting[:count]), waiting[count:]
            lane = old.get(tuple(now))
            if lane is None:
                cache = side_by_side([parts[row] for row in now], spare=longest // 4 + 64)
                lane = _Lane(now, cache, [lengths[row] for row in now])
            self._lanes.append(lane)

    def _prompt(self, row: int) -> Prompt:
        one = self._rows[row]
        assert one is not None
        return one.prompt

    def _read_alone(self, row: int) -> dict[int, Tensor]:
        """Read one prompt, growing its prefix in place."""
        reader, prompt = self._reader, self._prompt(row)
        if prompt.is_turn:
            key, (cache, prefix) = b"", reader.turns.take(prompt)
            self.reused[row] = prefix
        else:
            self.reused[row] = reader.kept_of(prompt)
            key, kept, prefix = reader.take(prompt)
            assert kept is not None
            cache = kept
        lane = _Lane([row], cache, [len(prompt.input_ids)], prefix=(key, cache, prefix))
        lane.turn = prompt if prompt.is_turn else None
        self._lanes = [lane]
        logits_1TV, _ = reader.read(reader.embed(prompt, prefix), cache)
        return {row: logits_1TV[0, -1]}

    def _read_apart(self, row: int) -> tuple[int, Tensor]:
        """Read one prompt into a cache of the decoder's own kind."""
        reader, prompt = self._reader, self._prompt(row)
        logits_1TV, output = reader.read(reader.embed(prompt, 0), fresh_cache(reader.lclm.decoder))
        keyword, cache = output_cache(output)
        self._lanes.append(_Lane([row], cache, [len(prompt.input_ids)], keyword=keyword))
        return row, logits_1TV[0, -1]

    def _read_group(
        self, rows: list[int], parts: dict[int, tuple[GrowingCache, int, int, int]]
    ) -> Iterator[dict[int, Tensor]]:
        """Read the prompts that share a prefix: it once, then what follows it, in bounded passes.

        What follows is filled up on the right, which no position before it sees: every row is read
        exactly as it would be alone.
        """
        reader = self._reader
        kept = reader.kept_of(self._prompt(rows[0]))
        key, prefix_cache, prefix = reader.take(self._prompt(rows[0]))
        assert prefix_cache is not None
        try:
            rests = {row: reader.embed(self._prompt(row), prefix) for row in rows}
            for index, row in enumerate(
                rows
            ):  # what another row of the step read is not read again
                self.reused[row] = prefix if index else kept
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
                    parts[row] = (cache, at, 0, prefix + length)
                    place = ends.index(length - 1) if len(now) > 1 else -1
                    yield {row: logits_BTV[at, place]}
        finally:
            reader.give_back(key, prefix_cache, prefix)

    # -- steps -----------------------------------------------------------------------------------

    def _compact(self) -> None:
        """Take rows that have ended out of the lanes."""
        for row, one in enumerate(self._rows):
            if one is not None and (not one.left or one.token is None) and row not in self._unread:
                self._rows[row] = None
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            places = [
                at
                for at, row in enumerate(lane.rows)
                if self._rows[row] is not None and row not in self._unread
            ]
            if not places:
                self._give_back(lane)
                continue
            if len(places) < len(lane.rows):
                lengths = [lane.lengths[at] for at in places]
                # What was filled up for others goes too.
                lane.cache = lane.cache.selected(places, lane.length - max(lengths))
                lane.rows, lane.lengths = [lane.rows[at] for at in places], lengths
            self._lanes.append(lane)

    def _step(self, lane: _Lane) -> dict[int, Tensor]:
        """Feed every row of a lane its last token, and return the logits `V` behind it."""
        reader, past = self._reader, lane.length
        inputs = {}
        lane.lengths = [length + 1 for length in lane.lengths]
        if len(set(lane.lengths)) > 1:
            lengths_B1 = torch.tensor(lane.lengths, device=reader.device)[:, None]
            places_T = torch.arange(past + 1, device=reader.device)
            inputs["attention_mask"] = (places_T >= past + 1 - lengths_B1).long()
            inputs["position_ids"] = lengths_B1 - 1
        rows = [self._rows[row] for row in lane.rows]
        ids_B1 = torch.tensor([[one.token] for one in rows if one], device=reader.device)
        logits_BTV, output = reader.read(
            reader.lclm.embed_tokens(ids_B1), lane.cache, keyword=lane.keyword, past=past, **inputs
        )
        if lane.keyword:
            lane.cache = output_cache(output)[1]
        if lane.turn is not None:
            lane.fed += ids_B1[0].tolist()
        return {row: logits_BTV[at, -1] for at, row in enumerate(lane.rows)}

    def _chosen(self, logits: dict[int, Tensor]) -> list[int | None]:
        """Choose a token for every row that goes on; None for the others."""
        tokens: list[int | None] = [None] * len(self._rows)
        self.logprobs = [None] * len(self._rows)
        self.alternatives = [[] for _ in self._rows]
        for row, logits_V in logits.items():
            if (one := self._rows[row]) is None:
                continue
            one.token = one.choose(logits_V)
            one.left -= 1
            if one.token in one.sampling.stop_ids:
                one.token = None
                continue
            tokens[row] = one.token
            if one.sampling.logprobs:
                logprobs_V = logits_V.float().log_softmax(-1)
                self.logprobs[row] = float(logprobs_V[one.token])
                best = logprobs_V.topk(min(one.sampling.num_alternatives, len(logprobs_V)))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                self.alternatives[row] = list(pairs)
        return tokens


def _filled_up(embeds_1TD: Tensor, length: int) -> Tensor:
    """Fill up with zeros on the right."""
    return torch.nn.functional.pad(embeds_1TD, (0, 0, 0, length - embeds_1TD.shape[1]))
