"""The methods under comparison: ways to hold a long context, all read in the same way.

    held = method.hold(parts)            once per context: compress it
    outcome = read(model, held, parts)   once per question

A method that looks at the question while it compresses (`sees_question`) cannot serve a second
question with the same held context, and is asked to hold it anew.
"""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.errors import EvaluationError
from octavo.model import Model
from octavo_evals.parts import Parts
from octavo_evals.reading import Held
from octavo_evals.task import DataFiles


class Method(Protocol):
    """One method at one ratio."""

    name: str
    ratio: int | None
    """Context tokens per position that is left; None for a method without a ratio."""
    sees_question: bool
    is_masked: bool
    """Whether it only masks keys: the cache it holds is as long as the raw text's."""

    def hold(self, parts: Parts) -> Held:
        """Compress a context, reading nothing of the question unless `sees_question`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A line of the table of methods."""

    place: str
    """Module whose `make(name, model, ratio, data)` makes the method."""
    has_ratio: bool = True
    needs_kvpress: bool = False
    """Whether it runs only where kvpress is installed, with the transformers that kvpress pins."""


_PROMPTS = "octavo_evals.methods.prompts"
_LATENTS = "octavo_evals.methods.latents"
_KVPRESS = "octavo_evals.harness.kvpress"
METHODS: Mapping[str, Entry] = {
    "full": Entry(place=_PROMPTS, has_ratio=False),
    "none": Entry(place=_PROMPTS, has_ratio=False),
    "truncate-left": Entry(place=_PROMPTS),
    "truncate-middle": Entry(place=_PROMPTS),
    "bm25": Entry(place=_PROMPTS),
    "llmlingua2": Entry(place=_PROMPTS),
    "octavo": Entry(place=_LATENTS),
    "identity": Entry(place=_LATENTS, has_ratio=False),
    "shuffled": Entry(place=_LATENTS),
    "snapkv": Entry(place=_KVPRESS, needs_kvpress=True),
    "snapkv-question": Entry(place=_KVPRESS, needs_kvpress=True),
    "expected-attention": Entry(place=_KVPRESS, needs_kvpress=True),
    "kvzip": Entry(place=_KVPRESS, needs_kvpress=True),
    "fast-kvzip": Entry(place=_KVPRESS, needs_kvpress=True),
    "streaming-llm": Entry(place=_KVPRESS, needs_kvpress=True),
    "knorm": Entry(place=_KVPRESS, needs_kvpress=True),
    "tova": Entry(place=_KVPRESS, needs_kvpress=True),
}
"""Every method. `full` reads the raw text, `none` nothing; `identity` and `shuffled` are controls:
a compressor that loses nothing, and one that holds another item's context."""


def choose(names: Sequence[str], ratios: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return every method with every ratio it is to run at, each once, in the order asked for.

    A name is `octavo`, which runs at all `ratios`, or `octavo@4`. Raises `EvaluationError` for an
    unknown name, a ratio below 2, and a method with a ratio that was given none.
    """
    chosen: dict[tuple[str, int | None], None] = {}
    for given in names:
        name, at, own = given.partition("@")
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(METHODS)}"
            raise EvaluationError(f"unknown method {name!r}; {hint}")
        if at and not own.isdecimal():
            raise EvaluationError(f"{given!r} has no ratio after the @; write {name}@4")
        if not METHODS[name].has_ratio:
            if at:
                raise EvaluationError(f"{name} has no ratio; write {name}, not {given}")
            chosen[name, None] = None
            continue
        wanted = [int(own)] if at else list(ratios)
        if not wanted:
            raise EvaluationError(f"{name} needs a ratio; give --ratio 4, or {name}@4")
        for ratio in wanted:
            if ratio < 2:
                raise EvaluationError(
                    f"{name}@{ratio} compresses nothing; give a ratio of 2 or more"
                )
            chosen[name, ratio] = None
    return list(chosen)


def make_method(name: str, ratio: int | None, model: Model, data: DataFiles) -> Method:
    """Make a method ready to run; raises `MissingExtraError` where its library is not installed."""
    method: Method = importlib.import_module(METHODS[name].place).make(name, model, ratio, data)
    return method


def label(name: str, ratio: int | None) -> str:
    """Return how a method at a ratio is written: `octavo@4`, `full`."""
    return name if ratio is None else f"{name}@{ratio}"
