"""Methods that put vectors in the place of the context: octavo's latents, and two controls.

Shapes: K latents, D decoder width.
"""

import time

import torch

from octavo.config import resolve_ratio
from octavo.errors import EvaluationError
from octavo.model import Model
from octavo_evals.parts import Parts
from octavo_evals.reading import Held, check_fits
from octavo_evals.task import DataFiles


class Latents:
    """The compressor under test; as `shuffled`, it compresses another item's context."""

    sees_question = False
    is_masked = False

    def __init__(self, name: str, model: Model, ratio: int) -> None:
        """Raise `RatioError` for a ratio the model does not serve."""
        self.name = name
        self.ratio: int | None = resolve_ratio(model.config, model.extension, ratio)
        self._model = model

    def hold(self, parts: Parts) -> Held:
        """Encode the context."""
        prompts = self._model.prompts
        text = parts.other_context if self.name == "shuffled" else parts.item.context
        if not text:
            raise EvaluationError(
                "the shuffled control needs items with different contexts; raise --limit"
            )
        started = time.perf_counter()
        source = prompts.source(text).ids
        if self.name == "shuffled":
            # As long as the item's own context, where it can be: only the content is wrong.
            own = len(prompts.source(parts.item.context).ids)
            source = (source * (own // len(source) + 1))[:own]
        assert self.ratio is not None
        slots = [prompts.slot_id] * self._model.config.num_latents(len(source), self.ratio)
        prefix = [*parts.head, prompts.start_id, *slots, prompts.end_id]
        check_fits(self._model, len(prefix) + len(parts.tail), 1)
        (latents_KD,) = self._model.engine.encode([source], self.ratio)
        return Held(
            answerer=self._model.engine,
            prefix=prefix,
            latents=latents_KD,
            compress_seconds=time.perf_counter() - started,
        )


class Identity:
    """A compressor that loses nothing: a latent is a token's own embedding.

    Its prompt has no tags, so that it is the raw prompt in every number: its answers must be those
    of raw text, through the same code that reads latents.
    """

    name = "identity"
    ratio: int | None = None
    sees_question = False
    is_masked = False

    def __init__(self, model: Model) -> None:
        """Take the decoder's embeddings for latents."""
        self._model = model

    def hold(self, parts: Parts) -> Held:
        """Look the context's tokens up."""
        started = time.perf_counter()
        table = self._model.lclm.get_input_embeddings()
        with torch.inference_mode():
            ids = torch.tensor(parts.context, device=next(table.parameters()).device)
            latents_KD = table(ids).cpu().clone()
        return Held(
            answerer=self._model.engine,
            prefix=[*parts.head, *[self._model.prompts.slot_id] * len(latents_KD)],
            latents=latents_KD,
            compress_seconds=time.perf_counter() - started,
        )


def make(name: str, model: Model, ratio: int | None, data: DataFiles) -> Latents | Identity:
    """Make the method of that name."""
    if name == "identity":
        return Identity(model)
    assert ratio is not None
    return Latents(name, model, ratio)
