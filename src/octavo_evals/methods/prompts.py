"""Methods that keep some of the raw text: all, nothing, an end, or what retrieval picks.

A method with a ratio keeps ceil(context tokens / ratio) tokens, as many as octavo has latents.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from octavo.ask.index import PassageIndex
from octavo.ask.passages import cut_passages
from octavo.errors import EvaluationError, MissingExtraError
from octavo.model import Model
from octavo_evals.parts import Parts
from octavo_evals.reading import Held, recall
from octavo_evals.task import DataFiles

Keep = Callable[[Parts, int], Sequence[int]]
"""Choose at most so many ids out of a context."""

PASSAGE_TOKENS = 48
"""About the length of what `bm25` retrieves: two sentences, so that several fit 1,024 / 16."""


class RawText:
    """A method that reads a part of the context as raw text."""

    is_masked = False

    def __init__(
        self, name: str, model: Model, ratio: int | None, keep: Keep, *, sees_question: bool = False
    ) -> None:
        """Keep what `keep` chooses."""
        self.name, self.ratio, self.sees_question = name, ratio, sees_question
        self._model, self._keep = model, keep

    def hold(self, parts: Parts) -> Held:
        """Choose what to keep."""
        started = time.perf_counter()
        kept = self._keep(parts, -(-len(parts.context) // (self.ratio or 1)))
        seconds = time.perf_counter() - started
        return Held(
            answerer=self._model.engine,
            prefix=[*parts.head, *kept],
            # A method that sees the question keeps nothing that another question could use.
            shared=len(parts.head) if self.sees_question else None,
            compress_seconds=seconds if self.ratio else 0.0,
            notes={"recall": recall(parts.item.references, self._text(kept))}
            if self.sees_question
            else {},
        )

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._model.prompts.decoder_tokenizer.decode(list(ids))
        return text


def keep_end(parts: Parts, budget: int) -> Sequence[int]:
    """Drop the beginning, as a tokenizer does that truncates on the left."""
    return parts.context[len(parts.context) - budget :]


def keep_ends(parts: Parts, budget: int) -> Sequence[int]:
    """Drop the middle and keep both ends, as LongBench does with what is too long."""
    first = budget // 2
    return [*parts.context[:first], *parts.context[len(parts.context) - (budget - first) :]]


class Retrieval:
    """Okapi BM25 over passages of the context, in their own order, up to the budget.

    The passages and their index are those of `octavo ask`, a little shorter. The question is the
    query: what retrieval picks serves one question only. (Robertson & Zaragoza 2009.)
    """

    def __init__(self, prompts: Any) -> None:
        """Keep tokens of the decoder that `prompts` writes for."""
        self._prompts = prompts

    def __call__(self, parts: Parts, budget: int) -> Sequence[int]:
        """Return the ids of the best passages, the last of them cut off."""
        text = parts.item.context
        index = PassageIndex.build(text, cut_passages(text, max_tokens=PASSAGE_TOKENS))
        found = [hit.passage for hit in index.search(parts.item.after or text[-400:], len(index))]
        # What shares no word with the question comes last, in its order: all of it, at the worst.
        others = [passage for passage in index.passages if passage not in found]
        chosen: dict[int, Sequence[int]] = {}
        for passage in (*found, *others):
            room = budget - sum(map(len, chosen.values()))
            if room <= 0:
                break
            chosen[passage.index] = self._prompts.text_ids(text[passage.start : passage.end])[:room]
        return [token for at in sorted(chosen) for token in chosen[at]]


class Lingua:
    """LLMLingua-2: a token classifier drops words (arXiv 2403.12968), from given weights."""

    def __init__(self, prompts: Any, weights: str, device: str) -> None:
        """Raise `MissingExtraError` without llmlingua."""
        try:
            from llmlingua import PromptCompressor
        except ImportError as error:
            raise MissingExtraError(
                "the method llmlingua2 needs llmlingua: pip install llmlingua"
            ) from error
        self._prompts = prompts
        self._compressor = PromptCompressor(weights, device_map=device, use_llmlingua2=True)

    def __call__(self, parts: Parts, budget: int) -> Sequence[int]:
        """Return the ids of the words that stay; too many are cut at the end."""
        rate = budget / max(1, len(parts.context))
        found = self._compressor.compress_prompt([parts.item.context], rate=rate)
        ids: Sequence[int] = self._prompts.text_ids(found["compressed_prompt"])
        return ids[:budget]


def make(name: str, model: Model, ratio: int | None, data: DataFiles) -> RawText:
    """Make the method of that name."""
    if name == "llmlingua2":
        weights = data.places.get("llmlingua2.weights")
        if weights is None:
            raise EvaluationError(
                "llmlingua2 needs its weights: give --data llmlingua2.weights=FOLDER "
                "(microsoft/llmlingua-2-xlm-roberta-large-meetingbank, downloaded)"
            )
        keep: Keep = Lingua(model.prompts, weights, str(next(model.lclm.parameters()).device))
        return RawText(name, model, ratio, keep)
    if name == "bm25":
        return RawText(name, model, ratio, Retrieval(model.prompts), sees_question=True)
    ways: dict[str, Keep] = {
        "raw": lambda parts, budget: parts.context,
        "none": lambda parts, budget: (),
        "truncate-left": keep_end,
        "truncate-middle": keep_ends,
    }
    return RawText(name, model, ratio, ways[name])
