"""Methods that keep some of the raw text: all, nothing, an end, or what retrieval picks.

A method with a ratio keeps ceil(context tokens / ratio) tokens, as many as octavo has latents.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

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

    The passages are runs of whole sentences or lines. The question is the query: what retrieval
    picks serves one question only. (Robertson & Zaragoza 2009; library: bm25s, arXiv 2407.03618.)
    """

    def __init__(self, prompts: Any) -> None:
        """Raise `MissingExtraError` without bm25s."""
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtraError(
                "the method bm25 needs bm25s: pip install 'octavo[eval]'"
            ) from error
        self._bm25s, self._prompts = bm25s, prompts

    def __call__(self, parts: Parts, budget: int) -> Sequence[int]:
        """Return the ids of the best passages."""
        passages = [self._prompts.text_ids(text) for text in self._passages(parts.item.context)]
        texts = [self._prompts.decoder_tokenizer.decode(ids) for ids in passages]
        corpus = self._bm25s.tokenize(texts, stopwords="en", show_progress=False)
        query = self._bm25s.tokenize(
            [parts.item.after or parts.item.context[-400:]], stopwords="en", show_progress=False
        )
        ranked: Sequence[int] = range(len(texts))
        # Nothing to rank by, as for a context of coded words: the first passages are kept.
        if shared := [token for token in query.vocab if token and token in corpus.vocab]:
            index = self._bm25s.BM25()
            index.index(corpus, show_progress=False)
            scores = index.get_scores(shared)
            ranked = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
        chosen: dict[int, list[int]] = {}
        for at in ranked:
            room = budget - sum(map(len, chosen.values()))
            if room <= 0:
                break
            chosen[at] = passages[at][:room]
        return [token for at in sorted(chosen) for token in chosen[at]]

    def _passages(self, context: str) -> list[str]:
        """Cut the context after sentences and lines into passages, losing no character."""
        pieces = re.findall(r".+?(?:[.!?][\"')\]]*\s+|\n+|$)", context, flags=re.DOTALL)
        passages, size = [""], 0
        for piece in pieces:
            count = len(self._prompts.text_ids(piece))
            if passages[-1] and size + count > PASSAGE_TOKENS:
                passages.append("")
                size = 0
            passages[-1] += piece
            size += count
        return passages


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
