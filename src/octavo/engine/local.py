"""Run a model in this process with transformers: batches, KV cache, and reuse of prefixes.

Shapes: B prompts, T prompt positions, S slots, D decoder width, V vocabulary.

A prompt with spans is read in two steps: the prefix up to its last span, then the rest. The KV
cache of the prefix is kept, so the next question about the same contexts reads only itself; and
since the first question was read in the same two steps, its answer is the same with and without
reuse.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from octavo.checkpoint import Checkpoint
from octavo.engine.base import Prompt, Sampling
from octavo.errors import ContextError
from octavo.nn.cache import as_keyword

PREFIX_CACHES = 2
"""Prefixes kept; each holds layers x 2 x KV heads x head width x positions values."""


class LocalEngine:
    """The engine that everyone has: torch and transformers."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Move the model to `device` and make it ready to answer."""
        self._checkpoint = checkpoint
        self._lclm = checkpoint.lclm.to(device).eval()
        self._device = device
        self.config, self.extension = self._lclm.settings, self._lclm.extension
        self.name = checkpoint.name
        decoder = self._lclm.decoder.config
        self.max_positions = int(decoder.max_position_embeddings)
        self.latent_width = int(decoder.hidden_size)
        self.stop_ids = _stop_ids(checkpoint)
        kinds = set(getattr(decoder, "layer_types", None) or ["full_attention"])
        # A sliding window forgets: its cache cannot be cut back to the prefix.
        self._can_reuse = kinds == {"full_attention"}
        self._prefixes: OrderedDict[bytes, DynamicCache] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Identify the weights (see `Checkpoint.fingerprint`)."""
        return self._checkpoint.fingerprint

    @torch.inference_mode()
    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return the `latents_KD` of each span, on the CPU."""
        ids = [torch.tensor(span, device=self._device) for span in spans]
        pooled = self._lclm.encoder(ids, ratio, on_tokens)
        # Left inference mode behind: latents are ordinary tensors to whoever holds them.
        return [latents.cpu().clone() for latents in self._lclm.adapt(pooled, ids, ratio)]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[int | None]]:
        """Yield the next token of every prompt until all have ended; one prompt reuses prefixes."""
        for prompt in prompts:
            if prompt.latents is not None and prompt.latents.shape[1] != self.latent_width:
                raise ContextError(
                    f"latents have width {prompt.latents.shape[1]}, but this decoder reads "
                    f"{self.latent_width}; compress with this model"
                )
        if len(prompts) == 1:
            yield from self._generate_one(prompts[0], sampling)
        elif prompts:
            yield from self._generate_batch(prompts, sampling)

    @property
    def kept_bytes(self) -> int:
        """The bytes that the KV caches of kept prefixes hold."""
        tensors = (
            tensor
            for cache in self._prefixes.values()
            for layer in cache.layers
            for tensor in (layer.keys, layer.values)
        )
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def close(self) -> None:
        """Forget all cached prefixes."""
        self._prefixes.clear()

    # -- one prompt ------------------------------------------------------------------------------

    def _generate_one(self, prompt: Prompt, sampling: Sampling) -> Iterator[list[int | None]]:
        """Read prefix and rest, then continue; give the prefix's cache back at the end."""
        ids = list(prompt.input_ids)
        # At least one token must be read after the prefix, to have logits to continue from.
        prefix = min(prompt.prefix_length, len(ids) - 1)
        key, cache = self._take_prefix(prompt, ids[:prefix])
        try:
            rest = torch.tensor([ids[prefix:]], device=self._device)
            with torch.inference_mode():
                # No latents are left for the rest: all slots lie in the prefix, if there is one.
                latents = None if prefix else self._on_device(prompt.latents)
                embeds = self._lclm.embed(rest, latents)
                logits = self._read(embeds, cache)
            yield from self._continue(logits, cache, sampling)
        finally:
            if prefix and self._can_reuse:
                # Negative, "remove so many": the only form that every transformers 5 takes.
                if (surplus := cache.get_seq_length() - prefix) > 0:
                    cache.crop(-surplus)
                self._prefixes[key] = cache
                while len(self._prefixes) > PREFIX_CACHES:
                    self._prefixes.popitem(last=False)

    def _take_prefix(self, prompt: Prompt, ids: list[int]) -> tuple[bytes, DynamicCache]:
        """Return the prefix's key and KV cache, which nobody else holds until it is given back."""
        cache = DynamicCache()
        if not ids:
            return b"", cache
        digest = hashlib.blake2b(torch.tensor(ids).numpy().tobytes(), digest_size=16)
        if prompt.latents is not None:
            # The values themselves: two contexts must never share a cache by accident.
            digest.update(prompt.latents.contiguous().view(torch.uint8).numpy().tobytes())
        key = digest.digest()
        if (kept := self._prefixes.pop(key, None)) is not None:
            return key, kept
        with torch.inference_mode():
            ids_1T = torch.tensor([ids], device=self._device)
            self._read(self._lclm.embed(ids_1T, self._on_device(prompt.latents)), cache)
        return key, cache

    def _read(self, embeds_BTD: Tensor, cache: DynamicCache, **inputs: Any) -> Tensor:
        """Run the decoder over embeddings and return the last position's logits `BV`."""
        output = self._lclm.decoder(
            inputs_embeds=embeds_BTD,
            use_cache=True,
            logits_to_keep=1,
            **as_keyword(cache),
            **inputs,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _on_device(self, latents: Tensor | None) -> Tensor | None:
        return None if latents is None else latents.to(self._device)

    # -- several prompts -------------------------------------------------------------------------

    def _generate_batch(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[list[int | None]]:
        """Read all prompts at once, padded on the left so that every row ends where it goes on."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        embeds, mask_BT = [], torch.zeros(len(prompts), longest, dtype=torch.long)
        with torch.inference_mode():
            for row, prompt in enumerate(prompts):
                ids_1T = torch.tensor([list(prompt.input_ids)], device=self._device)
                own = self._lclm.embed(ids_1T, self._on_device(prompt.latents))
                missing = longest - own.shape[1]
                embeds.append(torch.nn.functional.pad(own, (0, 0, missing, 0)))
                mask_BT[row, missing:] = 1
            mask_BT = mask_BT.to(self._device)
            cache = DynamicCache()
            positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
            logits = self._read(
                torch.cat(embeds), cache, attention_mask=mask_BT, position_ids=positions_BT
            )
        yield from self._continue(logits, cache, sampling, mask_BT)

    # -- shared ----------------------------------------------------------------------------------

    def _continue(
        self,
        logits_BV: Tensor,
        cache: DynamicCache,
        sampling: Sampling,
        mask_BT: Tensor | None = None,
    ) -> Iterator[list[int | None]]:
        """Choose tokens and feed them back until every row has stopped."""
        choose = _Chooser(sampling, self._device)
        is_live = [True] * len(logits_BV)
        tokens_B = torch.empty(0)
        for step in range(sampling.max_new_tokens):
            if step > 0:
                inputs: dict[str, Any] = {}
                if mask_BT is not None:
                    mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
                    inputs["attention_mask"] = mask_BT
                    inputs["position_ids"] = mask_BT.sum(1, keepdim=True) - 1
                with torch.inference_mode():
                    embeds = self._lclm.get_input_embeddings()(tokens_B.unsqueeze(1))
                    logits_BV = self._read(embeds, cache, **inputs)
            tokens_B = choose(logits_BV)
            tokens: list[int | None] = []
            for row, token in enumerate(tokens_B.tolist()):
                is_live[row] = is_live[row] and token not in sampling.stop_ids
                tokens.append(token if is_live[row] else None)
            if not any(is_live):
                return
            yield tokens


class _Chooser:
    """Choose the next tokens from logits, remembering what was chosen."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._is_greedy = sampling.temperature == 0
        self._chosen_BT: Tensor | None = None
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self._is_greedy:
            self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k > 0:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generator = torch.Generator(device)
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    @torch.inference_mode()
    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Return one token per row."""
        if self._chosen_BT is None:
            self._chosen_BT = torch.empty(
                len(logits_BV), 0, dtype=torch.long, device=logits_BV.device
            )
        scores_BV: Tensor = self._processors(self._chosen_BT, logits_BV.float())
        if self._is_greedy:
            tokens_B = scores_BV.argmax(-1)
        else:
            probabilities = scores_BV.softmax(-1)
            drawn = torch.multinomial(probabilities, 1, generator=self._generator)
            tokens_B = drawn.squeeze(1)
        self._chosen_BT = torch.cat([self._chosen_BT, tokens_B.unsqueeze(1)], dim=1)
        chosen_B: Tensor = tokens_B
        return chosen_B


def _stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return every id that ends an answer: the tokenizer's and those of generation_config.json."""
    settings = getattr(checkpoint.lclm.decoder, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ids = {named} if isinstance(named, int) else set(named or ())
    ids.add(checkpoint.decoder_tokenizer.eos_token_id)
    return tuple(sorted(i for i in ids if i is not None))
