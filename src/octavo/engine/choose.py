"""Choose the next token of one row from its logits.

Shapes: V vocabulary, C candidates.
"""

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from octavo.engine.base import Sampling

_COLDEST = 1e-6
"""A lower temperature always draws the likeliest token, and divides logits beyond fp32."""


class Chooser:
    """One row's choices; it remembers what it chose, for the repetition penalty."""

    def __init__(self, sampling: Sampling, seed: int | None, device: torch.device) -> None:
        """Draw with `seed`, or a new one."""
        self._sampling = sampling
        self._chosen: list[int] = []
        self._penalty = None
        if sampling.repetition_penalty != 1.0:
            self._penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
        self._generator = torch.Generator(device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, logits_V: Tensor) -> int:
        """Return a token, in the order of transformers: penalty, temperature, top k, top p."""
        sampling = self._sampling
        scores_1V = logits_V[None].float()
        if self._penalty is not None and self._chosen:
            ids_1T = torch.tensor([self._chosen], device=logits_V.device)
            scores_1V = self._penalty(ids_1T, scores_1V)
        if sampling.temperature < _COLDEST:
            token = int(scores_1V.argmax())
        else:
            token = self._draw(scores_1V)
        self._chosen.append(token)
        return token

    def _draw(self, scores_1V: Tensor) -> int:
        """Draw from the candidates that are left."""
        sampling = self._sampling
        scores_1C, ids_1C = scores_1V, None
        if 0 < sampling.top_k < scores_1V.shape[-1]:
            # Top k first and by itself: top p then sorts k candidates, not the whole vocabulary.
            # Temperature changes no order, so it may come after.
            scores_1C, ids_1C = scores_1V.topk(sampling.top_k)
        unused = torch.empty(1, 0, dtype=torch.long)
        scores_1C = TemperatureLogitsWarper(float(sampling.temperature))(unused, scores_1C)
        if sampling.top_p < 1.0:
            scores_1C = TopPLogitsWarper(sampling.top_p)(unused, scores_1C)
        drawn = torch.multinomial(scores_1C.softmax(-1), 1, generator=self._generator)
        return int(drawn if ids_1C is None else ids_1C.gather(1, drawn))
