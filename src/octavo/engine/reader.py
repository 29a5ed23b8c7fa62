"""How a decoder of this process reads prompts: in bounded passes, with prefixes kept between them.

Shapes: B rows, T positions, S slots, D decoder width, V vocabulary.
"""

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from octavo.engine.attention import use_lower_right
from octavo.engine.base import Prompt
from octavo.engine.cache import GrowingCache
from octavo.engine.lock import SharedLock
from octavo.engine.turns import Turns
from octavo.nn.cache import as_keyword, bytes_of, has_plain_cache, places
from octavo.nn.lclm import LCLM

KEPT_PREFIXES = 2
"""Prefixes kept by default; each holds layers x 2 x KV heads x head width x positions values."""


class PromptReader:
    """Passes through the decoder of an LCLM, and the prefixes that were read before.

    Whoever calls `take`, `read` or `give_back` holds `lock`.
    """

    def __init__(self, lclm: LCLM, device: torch.device, prefill: int) -> None:
        """Read with a model that is on `device`, at most about `prefill` positions at once."""
        self.lclm, self.device, self.prefill = lclm, device, prefill
        self.lock = SharedLock()
        self.is_plain = has_plain_cache(lclm.decoder) and "batching" not in lclm.config.closed
        """Whether the decoder's cache can be cut back, and laid beside others."""
        if self.is_plain:
            use_lower_right(lclm.decoder)
        self._kept: OrderedDict[bytes, GrowingCache] = OrderedDict()
        self.max_kept = KEPT_PREFIXES
        self.turns = Turns(lclm.memory_token_id)
        self.num_read = 0
        """Positions that went through the decoder, as long as this lives."""

    @property
    def kept_bytes(self) -> int:
        """The bytes that the KV caches of kept prefixes hold."""
        with self.lock:
            return sum(bytes_of(cache) for cache in (*self._kept.values(), *self.turns.caches))

    def forget(self) -> None:
        """Let go of kept prefixes."""
        with self.lock:
            self._kept.clear()
            self.turns.forget()

    def prefix_of(self, prompt: Prompt) -> tuple[bytes, int]:
        """Return what identifies a prompt's prefix, and its length."""
        # At least one token must be read after the prefix, to have logits to continue from.
        length = min(prompt.prefix_length, len(prompt.input_ids) - 1)
        if length <= 0 or not self.is_plain:
            return b"", 0
        ids = torch.tensor(list(prompt.input_ids[:length]))
        digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=16)
        if prompt.latents is not None:
            # The values themselves: two contexts must never share a cache by accident.
            digest.update(prompt.latents.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest(), length

    def kept_of(self, prompt: Prompt) -> int:
        """Return how many leading positions of a prompt are kept, and need not be read."""
        key, length = self.prefix_of(prompt)
        return length if key in self._kept else 0

    def take(self, prompt: Prompt) -> tuple[bytes, GrowingCache | None, int]:
        """Return a prefix's key, cache and length; nobody else holds it until it is given back.

        A decoder whose cache is of its own kind reads everything at once, and keeps nothing.
        """
        key, length = self.prefix_of(prompt)
        if not self.is_plain:
            return b"", None, 0
        if (kept := self._kept.pop(key, None)) is not None:
            return key, kept, length
        cache = GrowingCache()
        if length:
            self.read(self.embed(prompt, 0, length), cache)
        return key, cache, length

    def give_back(self, key: bytes, cache: GrowingCache | None, length: int) -> None:
        """Keep a prefix's cache, cut back to it, for the next question."""
        if cache is None or not length or not cache.cut(length):
            return
        self._kept[key] = cache
        while len(self._kept) > self.max_kept:
            self._kept.popitem(last=False)

    # -- passes through the decoder --------------------------------------------------------------

    def embed(self, prompt: Prompt, start: int, stop: int | None = None) -> Tensor:
        """Return what the decoder reads of a prompt `1TD`, from one position to another."""
        ids = list(prompt.input_ids)
        latents_SD = prompt.latents
        if latents_SD is not None:
            is_slot = [token == self.lclm.memory_token_id for token in ids]
            first, count = sum(is_slot[:start]), sum(is_slot[start:stop])
            latents_SD = latents_SD[first : first + count].to(self.device)
        ids_1T = torch.tensor([ids[start:stop]], device=self.device)
        embeds_1TD: Tensor = self.lclm.embed(ids_1T, latents_SD)
        return embeds_1TD

    def read(
        self,
        embeds_BTD: Tensor,
        cache: Any,
        *,
        keep: int | Tensor = 1,
        keyword: str = "",
        past: int = 0,
        **inputs: Any,
    ) -> tuple[Tensor, Any]:
        """Run the decoder over embeddings; return the logits of `keep`, and its whole output.

        `keep` is a number of positions at the end, or an index. With a growing cache it reads in
        pieces, the last of which holds all that is kept.
        """
        self.num_read += embeds_BTD.shape[0] * embeds_BTD.shape[1]
        pieces = [embeds_BTD]
        if self.is_plain and not inputs:
            length = embeds_BTD.shape[1]
            last = keep if isinstance(keep, int) else length
            cut = max(0, length - max(last, 1)) // self.prefill * self.prefill
            pieces = [*embeds_BTD[:, :cut].split(self.prefill, 1)] if cut else []
            pieces.append(embeds_BTD[:, cut:])
        output = None
        for piece_BTD in pieces:
            given = {keyword: cache} if keyword else as_keyword(cache)
            first = cache.get_seq_length() if isinstance(cache, GrowingCache) else past
            where = places(self.lclm.decoder, first, piece_BTD.shape[1], self.device)
            output = self.lclm.decoder(
                inputs_embeds=piece_BTD,
                use_cache=True,
                logits_to_keep=keep,
                **given,
                **{**where, **inputs},
            )
        assert output is not None
        return output.logits, output
