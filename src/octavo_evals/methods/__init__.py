"""The methods under comparison: ways to hold a long context, all read in the same way.

    held = method.hold(parts)            once per context: compress it
    outcome = read(model, held, parts)   once per question

A method that looks at the question while it compresses (`sees_question`) cannot serve a second
question with the same held context, and is asked to hold it anew.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from octavo.errors import EvaluationError

if TYPE_CHECKING:  # the table is also read where torch is not
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

    def hold(self, parts: "Parts") -> "Held":
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
    colours: tuple[str, str] = ("#5c6671", "#9aa3ad")
    """In every picture, on a light and on a dark page."""
    marker: str = "o"
    is_control: bool = False
    """Whether it shows what a number is worth, and nobody would use it instead."""


_LATENTS, _PROMPTS = "octavo_evals.methods.latents", "octavo_evals.methods.prompts"
_AGENTS = "octavo_evals.methods.agents"


def _press(light: str, dark: str, marker: str) -> Entry:
    place = "octavo_evals.harness.kvpress"
    return Entry(place=place, needs_kvpress=True, colours=(light, dark), marker=marker)


def _prompt(light: str, dark: str, marker: str) -> Entry:
    return Entry(place=_PROMPTS, colours=(light, dark), marker=marker)


def _control(place: str, light: str, dark: str, marker: str, has_ratio: bool = True) -> Entry:
    colours = (light, dark)
    return Entry(place=place, has_ratio=has_ratio, colours=colours, marker=marker, is_control=True)


METHODS: Mapping[str, Entry] = {
    "raw": _control(_PROMPTS, "#1f2328", "#e6e8eb", "s", has_ratio=False),
    "none": _control(_PROMPTS, "#6e7781", "#98a1ab", "X", has_ratio=False),
    "octavo": Entry(place=_LATENTS, colours=("#d9480f", "#ff8a4c")),
    "octavo-agent[model]": Entry(place=_AGENTS, colours=("#b8336a", "#f07aa8"), marker="*"),
    "octavo-agent[retrieval]": Entry(place=_AGENTS, colours=("#a03608", "#ffb08a"), marker="*"),
    "octavo-agent[likelihood]": Entry(place=_AGENTS, colours=("#7d5ba6", "#bfa0e6"), marker="*"),
    "octavo-agent[hybrid]": Entry(place=_AGENTS, colours=("#c47f00", "#ffca5c"), marker="*"),
    "passages": Entry(place=_AGENTS, colours=("#0b5d3b", "#7ddba8"), marker="P"),
    "bm25": _prompt("#117733", "#4fc27a", "P"),
    "llmlingua2": _prompt("#7a7a1f", "#c9c960", "X"),
    "truncate-left": _prompt("#8a6642", "#c79f75", "<"),
    "truncate-middle": _prompt("#a8845a", "#e0c09a", "d"),
    "snapkv": _press("#332288", "#9c8cff", "^"),
    "snapkv-question": _press("#2b7bb0", "#6cc0ee", "v"),
    "expected-attention": _press("#1f8a7c", "#4fd0c0", "D"),
    "kvzip": _press("#aa4499", "#e583d6", "h"),
    "fast-kvzip": _press("#882255", "#e0709f", "H"),
    "streaming-llm": _press("#94791a", "#e0c65a", ">"),
    "knorm": _press("#4a78a8", "#8fb8e6", "p"),
    "tova": _press("#661100", "#e0826f", "8"),
    "identity": _control(_LATENTS, "#57606a", "#afb8c1", "p", has_ratio=False),
    "shuffled": _control(_LATENTS, "#7b858f", "#7f8994", "8"),
}
"""Every method, in the order to show them. `raw` reads the raw text, `none` nothing; `identity` and
`shuffled` are controls: a compressor that loses nothing, and one that holds another item's context.
The colours are told apart with every common kind of colour blindness: most are Paul Tol's "muted"
scheme (https://sronpersonalpages.nl/~pault/, note SRON/EPS/TN/09-002); markers differ as well."""
OLD_NAMES = {"full": "raw"}
"""Names in rows of old evaluations -> what the method is called now."""


def find_entry(name: str) -> Entry:
    """Return a method's entry; one that only rows know is drawn in grey."""
    return METHODS.get(name, Entry(place=""))


def choose(names: Sequence[str], ratios: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return every method with every ratio it is to run at, each once, in the order asked for.

    A name is `octavo`, which runs at all `ratios`, or `octavo@4`. Raises `EvaluationError` for an
    unknown name, a ratio below 2, and a method with a ratio that was given none.
    """
    chosen: dict[tuple[str, int | None], None] = {}
    for given in names:
        name, at, own = _with_policy_first(given).partition("@")
        if name in OLD_NAMES:
            now = OLD_NAMES[name]
            raise EvaluationError(f"the method {name} is now called {now}; give --method {now}")
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


def _with_policy_first(given: str) -> str:
    """Return `agent@4[model]`, which is how it is shown, as the table has it: `agent[model]@4`."""
    name, bracket, policy = given.partition("[")
    base, at, ratio = name.partition("@")
    return f"{base}{bracket}{policy}{at}{ratio}"


def make_method(name: str, ratio: int | None, model: "Model", data: "DataFiles") -> Method:
    """Make a method ready to run; raises `MissingExtraError` where its library is not installed."""
    method: Method = importlib.import_module(METHODS[name].place).make(name, model, ratio, data)
    return method


def label(name: str, ratio: float | None) -> str:
    """Return how a method at a ratio is written: `octavo@4`, `raw`, `octavo-agent@4[model]`."""
    base, bracket, policy = name.partition("[")
    return f"{base}@{ratio:g}{bracket}{policy}" if ratio else name


def split_label(label: str) -> tuple[str, float]:
    """Return a label's method and ratio, 0 without one."""
    method, _, ratio = _with_policy_first(label).rpartition("@")
    return (method, float(ratio)) if ratio.replace(".", "", 1).isdecimal() else (label, 0.0)


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return labels, each once, in the order of the table; unknown ones follow by name."""
    places = {method: place for place, method in enumerate(METHODS)}

    def place(label: str) -> tuple[int, str, float]:
        method, ratio = split_label(label)
        return places.get(method, len(places)), method, ratio

    return sorted(set(labels), key=place)
