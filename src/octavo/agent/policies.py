"""Who decides which parts are expanded: the model, a search, a likelihood, or two of them in turn.

A policy ranks the parts before the model speaks, and says whether the model may then ask for more.
What it cannot know is which is right: `calibrate` measures that for a model.

`retrieval` costs milliseconds and no position of the decoder. `likelihood` asks how likely the
question is behind each part's latents (query likelihood: Ponte and Croft 1998), a pass a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from octavo.agent.document import FoldedDocument
from octavo.engine.base import Prompt
from octavo.errors import ConfigError
from octavo.model import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Parts by how well they promise to answer."""

    numbers: Sequence[int]
    positions: int = 0
    """What the decoder read for it."""


class Policy(Protocol):
    """One way to decide."""

    name: str
    lets_model_choose: bool

    def rank(self, model: Model, document: FoldedDocument, question: str) -> Ranking:
        """Return parts to expand before the model speaks, the best first; none for none."""
        ...


class ModelPolicy:
    """The model alone decides, as in the paper (arXiv 2606.09659, Appendix D)."""

    name = "model"
    lets_model_choose = True

    def rank(self, model: Model, document: FoldedDocument, question: str) -> Ranking:
        """Return nothing."""
        return Ranking(numbers=())


class RetrievalPolicy:
    """The index of passages decides: BM25, fused with an embedding where there is one."""

    name = "retrieval"
    lets_model_choose = False

    def rank(self, model: Model, document: FoldedDocument, question: str) -> Ranking:
        """Return what the index finds; the beginning where no word of the question stands there."""
        found = document.search(question, len(document.parts))
        return Ranking(numbers=found or range(1, len(document.parts) + 1))


class LikelihoodPolicy:
    """The decoder decides: the parts behind whose latents the question is likeliest."""

    name = "likelihood"
    lets_model_choose = False

    def rank(self, model: Model, document: FoldedDocument, question: str) -> Ranking:
        """Score every part, in a pass each."""
        prompts, scores, positions = model.prompts, [], 0
        target = prompts.text_ids(question)
        for part, context in zip(document.parts, document.latents, strict=True):
            if context is None:
                continue
            slots = [prompts.slot_id] * len(context)
            ids = [prompts.start_id, *slots, prompts.end_id, *prompts.text_ids("\n\nQuestion: ")]
            prompt = Prompt(input_ids=ids, latents=torch.as_tensor(context.latents))
            found = model.engine.score(prompt, target)
            scores.append((-sum(found.logprobs), part.number))
            positions += len(ids) + len(target)
        return Ranking(numbers=[number for _, number in sorted(scores)], positions=positions)


class HybridPolicy(RetrievalPolicy):
    """The index goes first, and the model may ask for more."""

    name = "hybrid"
    lets_model_choose = True


POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (ModelPolicy(), RetrievalPolicy(), LikelihoodPolicy(), HybridPolicy())
}


def find_policy(name: str) -> Policy:
    """Return the policy of a name; raises `ConfigError` for an unknown one."""
    if name not in POLICIES:
        raise ConfigError(f"unknown policy {name!r}, expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
