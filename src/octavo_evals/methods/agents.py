"""Methods that look for what a question needs: octavo's agent by each policy, and passages alone.

`octavo-agent@R[policy]` skims latents at ratio R and reads what it expands (`octavo.agent`); its
rounds are counted in the row's `notes`. `passages@R` reads the best passages raw, as many tokens of
them as there would be latents. Both serve one question only.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from octavo.agent import Agent
from octavo.config import resolve_ratio
from octavo.engine.base import Batch, Prompt, Sampling, TargetScores
from octavo.engine.fake import KnownBatch
from octavo.fallback import find_passages
from octavo.model import Model
from octavo_evals.parts import Parts
from octavo_evals.reading import Held, Unserved, recall
from octavo_evals.task import DataFiles


class Known:
    """Gives the answer that an agent has already given."""

    kept_bytes = 0

    def __init__(self, ids: Sequence[int]) -> None:
        """Take its tokens."""
        self._ids = ids

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        """Say them."""
        return KnownBatch([self._ids[: sampling.max_new_tokens] for _ in prompts])

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        """Refuse: an agent generates."""
        raise Unserved("an agent scores no targets")


class Skimming:
    """The agent with one policy, in the layout that its model was measured to be better at."""

    sees_question = True
    is_masked = False

    def __init__(self, name: str, model: Model, ratio: int) -> None:
        """Raise `RatioError` for a ratio the model does not serve."""
        self.name, self._model = name, model
        self.ratio: int | None = resolve_ratio(model.config, model.extension, ratio)
        self._policy = name.partition("[")[2].rstrip("]")

    def hold(self, parts: Parts) -> Held:
        """Skim and expand."""
        if parts.item.target is not None:
            raise Unserved("an agent scores no targets")
        model, prompts = self._model, self._model.prompts
        started = time.perf_counter()
        agent = Agent(
            model, parts.item.context, policy=self._policy, ratio=self.ratio,
            max_new_tokens=parts.item.max_new_tokens,
        )  # fmt: skip
        run = agent.run(_question(parts))
        said = run.skim()
        document = agent.document
        notes: dict[str, Any] = {
            "rounds": len(run.rounds),
            "positions": sum(one.positions for one in run.rounds),
            "expanded_tokens": sum(one.expanded_tokens for one in run.rounds),
            "recall": recall(parts.item.references, document.raw(run.expanded)),
        }
        if said is not None:
            answerer: Any = Known(prompts.text_ids(said[1]))
            prefix, latents = list(parts.head), None
        else:
            answerer = model.engine
            prefix, latents = self._prefix(agent, run.expanded, parts)
        return Held(
            answerer=answerer, prefix=prefix, latents=latents, shared=len(parts.head),
            compress_seconds=time.perf_counter() - started, notes=notes,
        )  # fmt: skip

    def _prefix(self, agent: Agent, expanded: list[int], parts: Parts) -> tuple[list[int], Any]:
        """Return the ids before the question, and the latents in them."""
        prompts = self._model.prompts
        if agent.layout == "alone" and expanded:
            return [*parts.head, *prompts.text_ids(agent.document.raw(expanded))], None
        ids, latents = list(parts.head), []
        shown = agent.document.folded(expanded if agent.layout == "in place" else ())
        if expanded and agent.layout == "appended":
            shown += agent.document.appended(expanded)
        for part in shown:
            if part["type"] == "text":
                ids += prompts.text_ids(part["text"])
            else:
                slots = [prompts.slot_id] * len(part["context"])
                ids += [prompts.start_id, *slots, prompts.end_id]
                latents.append(part["context"].latents)
        return ids, torch.cat(latents) if latents else None


class BestPassages:
    """Passages of whole sentences that the question finds, up to the budget, as raw text."""

    name = "passages"
    sees_question = True
    is_masked = False

    def __init__(self, model: Model, ratio: int) -> None:
        """Keep one token in `ratio`."""
        self.ratio: int | None = ratio
        self._model = model

    def hold(self, parts: Parts) -> Held:
        """Search."""
        started, prompts = time.perf_counter(), self._model.prompts
        budget = -(-len(parts.context) // (self.ratio or 1))
        found = find_passages(prompts, [parts.item.context], _question(parts), budget=budget)
        return Held(
            answerer=self._model.engine,
            prefix=[*parts.head, *prompts.text_ids(found)],
            shared=len(parts.head),
            compress_seconds=time.perf_counter() - started,
            notes={"recall": recall(parts.item.references, found)},
        )


def _question(parts: Parts) -> str:
    """Return what an item asks, in its own words."""
    return (parts.item.after or parts.item.context[-400:]).strip() or "?"


def make(name: str, model: Model, ratio: int | None, data: DataFiles) -> Skimming | BestPassages:
    """Make the method of that name."""
    assert ratio is not None
    return BestPassages(model, ratio) if name == "passages" else Skimming(name, model, ratio)
