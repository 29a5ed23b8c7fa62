"""A deterministic engine without weights, for tests, docs and work on what lies above engines.

Its latents are a fixed function of each block's token ids, and its answers repeat words of the
prompt in an order that depends on the prompt and its latents. It obeys the same contract as the
real ones.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from octavo.config import Extension, ModelConfig
from octavo.engine.base import Prompt, Sampling

LATENT_WIDTH = 16


class FakeEngine:
    """An engine that costs nothing."""

    def __init__(
        self,
        config: ModelConfig,
        extension: Extension,
        name: str,
        *,
        stop_ids: tuple[int, ...],
        control_ids: frozenset[int],
        max_positions: int = 8192,
    ) -> None:
        """Imitate a model with the given settings; `control_ids` never appear in answers."""
        self.config, self.extension, self.name = config, extension, f"fake:{name}"
        self.max_positions, self.latent_width = max_positions, LATENT_WIDTH
        self.stop_ids, self._control_ids = stop_ids, control_ids

    @property
    def fingerprint(self) -> str:
        """Identify the settings; there are no weights."""
        return hashlib.sha256(repr((self.name, self.config)).encode()).hexdigest()[:16]

    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return one latent per block, a smooth function of its token ids."""
        channels = torch.arange(1, LATENT_WIDTH + 1)
        latents = []
        for span in spans:
            blocks = torch.tensor(list(span)).split(ratio)
            rows = [torch.sin(0.1 * channels * (block + 1)[:, None]).mean(0) for block in blocks]
            latents.append(torch.stack(rows))
            if on_tokens is not None:
                on_tokens(len(span))
        return latents

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[int | None]]:
        """Yield words of each prompt, eight to fifteen of them."""
        answers = [self._answer(prompt, sampling) for prompt in prompts]
        for step in range(max(map(len, answers), default=0)):
            yield [answer[step] if step < len(answer) else None for answer in answers]

    def _answer(self, prompt: Prompt, sampling: Sampling) -> list[int]:
        state = repr(list(prompt.input_ids)).encode()
        if prompt.latents is not None:
            rounded = (prompt.latents.float() * 1000).round().to(torch.int64)
            state += repr(rounded.tolist()).encode()
        seed = int.from_bytes(hashlib.sha256(state).digest()[:8], "big")
        if sampling.temperature > 0:
            seed = hash((seed, sampling.seed if sampling.seed is not None else random.random()))
        rng = random.Random(seed)
        words = [i for i in prompt.input_ids if i not in self._control_ids] or [0]
        length = min(sampling.max_new_tokens, rng.randint(8, 15))
        return [rng.choice(words) for _ in range(length)]

    def close(self) -> None:
        """Do nothing."""
