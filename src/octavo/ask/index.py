"""Rank the passages of a text, or of many texts at once, by the words of a question (BM25).

Letters: P passages, V different terms, N pairs of a term and a passage that holds it.

An index is a handful of arrays in one safetensors file. It is opened, not read: a question touches
the postings of its own terms only, so that thousands of texts are searched at once.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from octavo.ask.passages import Passage
from octavo.ask.terms import TERMS_VERSION, terms_of, terms_of_question
from octavo.errors import ContextError
from octavo.files import write_file

FORMAT = "octavo-passages"
FORMAT_VERSION = 1
_ARRAYS = {
    "terms": np.int64, "starts": np.int64, "holders": np.int32, "weights": np.float32,
    "places": np.int64, "headings": np.uint8,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A passage that a question found."""

    passage: Passage
    score: float
    """Above 0; comparable among the hits of one search."""


class PassageIndex:
    """The passages of one text, and which terms each of them holds."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        """Wrap the arrays of an index; `build` and `load` make them."""
        # V: hashes of terms, sorted; V+1: where each one's postings begin; N: passage and weight.
        self._terms_V, self._starts = arrays["terms"], arrays["starts"]
        self._holders_N, self._weights_N = arrays["holders"], arrays["weights"]
        # P4: start, end, line, and which heading (-1 for none).
        self._places_P4, self._headings = arrays["places"], arrays["headings"]

    @classmethod
    def build(cls, text: str, passages: Sequence[Passage]) -> "PassageIndex":
        """Index a text by its passages."""
        terms = [terms_of(text[one.start : one.end]) for one in passages]
        numbers = {term: _hash(term) for some in terms for term in some}
        hashes = np.array(sorted(set(numbers.values())), dtype=np.int64)
        rank = {int(number): at for at, number in enumerate(hashes)}
        arrays = {
            "terms": hashes,
            **_postings([[rank[numbers[t]] for t in some] for some in terms]),
        }
        named = list(dict.fromkeys(one.heading for one in passages if one.heading is not None))
        which = {heading: at for at, heading in enumerate(named)}
        rows = [(p.start, p.end, p.line, which.get(p.heading or "", -1)) for p in passages]
        arrays["places"] = np.array(rows, dtype=np.int64).reshape(-1, 4)
        arrays["headings"] = np.frombuffer(json.dumps(named).encode(), dtype=np.uint8)
        return cls(arrays)

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._places_P4)

    def passage(self, index: int) -> Passage:
        """Return one passage; raises `ContextError` for an index that there is none of."""
        if not 0 <= index < len(self):
            raise ContextError(f"there is no passage {index}; the text has 0 to {len(self) - 1}")
        start, end, line, heading = map(int, self._places_P4[index])
        names = json.loads(self._headings.tobytes()) if heading >= 0 else [None]
        return Passage(index=index, start=start, end=end, line=line, heading=names[heading])

    @property
    def passages(self) -> list[Passage]:
        """All passages, in the order of the text."""
        return [self.passage(index) for index in range(len(self))]

    def search(self, question: str, k: int) -> list[Hit]:
        """Return the `k` passages that share most with the question, or fewer: the best first."""
        return [hit for _, hit in search_all([self], question, k)]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        arrays = {
            "terms": self._terms_V, "starts": self._starts, "holders": self._holders_N,
            "weights": self._weights_N, "places": self._places_P4, "headings": self._headings,
        }  # fmt: skip
        dense = {name: np.ascontiguousarray(arrays[name], kind) for name, kind in _ARRAYS.items()}
        about = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, "terms": TERMS_VERSION})
        write_file(Path(path), lambda place: save_file(dense, place, metadata={"index": about}))

    @classmethod
    def load(cls, path: str | Path) -> "PassageIndex":
        """Open an index; raises `ContextError` for what is none, or was made of other terms."""
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {}).get("index", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as error:  # a header may hold anything
            raise ContextError(f"{path} is no index ({error}); make it anew") from error
        wanted = {"format": FORMAT, "version": FORMAT_VERSION, "terms": TERMS_VERSION}
        if about != wanted or {name: one.dtype for name, one in arrays.items()} != _ARRAYS:
            raise ContextError(f"{path} is an index of another version; make it anew")
        if not _is_sound(arrays):
            raise ContextError(f"{path} is damaged; make it anew")
        return cls(arrays)

    def postings(self, term: int) -> tuple[Any, Any]:
        """Return which passages hold a term, given by its hash, and with which weight."""
        at = int(np.searchsorted(self._terms_V, term))
        if at == len(self._terms_V) or self._terms_V[at] != term:
            return self._holders_N[:0], self._weights_N[:0]
        part = slice(int(self._starts[at]), int(self._starts[at + 1]))
        return self._holders_N[part], self._weights_N[part]


def search_all(indexes: Sequence[PassageIndex], question: str, k: int) -> list[tuple[int, Hit]]:
    """Rank the passages of many texts by one question: which text, and the hit, the best first.

    A term weighs what it is worth among all of the texts, not within its own.
    """
    found: list[dict[int, float]] = [{} for _ in indexes]
    num_passages = sum(map(len, indexes))
    for term in terms_of_question(question):
        number = _hash(term)
        postings = [index.postings(number) for index in indexes]
        worth = _idf(sum(len(holders) for holders, _ in postings), num_passages)
        for scores, index, (holders, weights) in zip(found, indexes, postings, strict=True):
            factor = worth / _idf(len(holders), len(index)) if len(holders) else 0.0
            for holder, weight in zip(holders.tolist(), weights.tolist(), strict=True):
                scores[holder] = scores.get(holder, 0.0) + factor * weight
    ranked = sorted(
        (-score, which, passage)
        for which, some in enumerate(found)
        for passage, score in some.items()
    )
    return [
        (which, Hit(passage=indexes[which].passage(passage), score=-score))
        for score, which, passage in ranked[: max(0, k)]
    ]


def _is_sound(arrays: dict[str, Any]) -> bool:
    """Whether every place that an array names is there, whoever wrote the file."""
    terms, starts, holders, places = (arrays[n] for n in ("terms", "starts", "holders", "places"))
    if not terms.ndim == starts.ndim == holders.ndim == arrays["weights"].ndim == 1:
        return False
    if places.ndim != 2 or places.shape[1] != 4 or len(starts) != len(terms) + 1:
        return False
    try:
        names = json.loads(arrays["headings"].tobytes())
    except ValueError:
        return False
    bounds = places[:, :2].reshape(-1)
    return bool(
        starts[0] == 0
        and starts[-1] == len(holders) == len(arrays["weights"])
        and (np.diff(starts) >= 0).all()
        and (np.diff(terms) > 0).all()
        and (not len(holders) or (holders.min() >= 0 and holders.max() < len(places)))
        and np.isfinite(arrays["weights"]).all()
        and (not len(bounds) or bounds[0] == 0)
        and (np.diff(bounds) >= 0).all()
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and (places[:, 3] < len(names)).all()
    )


def _idf(num_holders: int, num_passages: int) -> float:
    """Return the weight of a term, as bm25s's `lucene` has it (Kamphuis et al. 2020)."""
    return math.log(1 + (num_passages - num_holders + 0.5) / (num_holders + 0.5))


def _postings(terms: list[list[int]]) -> dict[str, Any]:
    """Weigh every pair of a term and a passage; terms are numbered from 0."""
    num_terms = 1 + max((max(some) for some in terms if some), default=-1)
    if not num_terms:  # bm25s refuses a corpus without a word
        empty = np.zeros(0)
        return {"starts": np.zeros(1), "holders": empty, "weights": empty}
    import bm25s

    engine = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    engine.index((terms, {at: at for at in range(num_terms)}), False, show_progress=False)
    scores = engine.scores
    return {"starts": scores["indptr"], "holders": scores["indices"], "weights": scores["data"]}


def _hash(term: str) -> int:
    """Return 64 bits of a term: two of a million different ones meet once in 37 million texts."""
    digest = hashlib.blake2b(term.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
