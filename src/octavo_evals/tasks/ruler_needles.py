"""RULER's eight needle tasks: sentences that give a key its value, hidden in other text.

    before    Some special magic numbers are hidden within the following text. ...
    context   hay, hay, One of the special magic numbers for stale-otter is: 2811437. hay, hay
    after     What are all the special magic numbers for stale-otter mentioned in the ...
    prefix     The special magic numbers for stale-otter mentioned in the provided text are

The hay is one noise sentence over and over, essays, or needles that nobody asks for. Essays are
those of `--data ruler.essays=PATH`, else the shipped ones, and `about["haystack"]` says which; the
first N words are taken, and again from the start where there are fewer. Sentences of essays are
found by a short rule instead of the original's NLTK punkt model, which is a download: some places
differ. Keys are adjective-noun pairs of the lists of whatever version of wonderwords is installed.
"""

import difflib
import re
import uuid
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache, partial
from importlib import resources
from itertools import pairwise
from random import Random
from typing import Any, Literal

from octavo.errors import EvaluationError, MissingExtraError
from octavo_evals.task import Item, Metrics, Reply, Request, read_asset
from octavo_evals.tasks.ruler import NOISE, SHORT, Plan, RulerTask, clean_answer

Kind = Literal["numbers", "words", "uuids"]
Hay = Literal["noise", "essays", "needles"]

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Where needles may lie in essays, in percent of the sentences; no two at the same."""
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr st prof rev hon gen col capt messrs e.g i.e viz vs".split()
)


class Needles(RulerTask):
    """Find what one or several keys were given."""

    max_new_tokens = 128

    def __init__(
        self,
        short_name: str,
        hay: Hay,
        *,
        key: Kind = "words",
        value: Kind = "numbers",
        num_keys: int = 1,
        num_values: int = 1,
        num_queries: int = 1,
    ) -> None:
        """Hide `num_values` needles for each of `num_keys` keys, and ask for `num_queries` keys."""
        super().__init__(short_name)
        self.hay, self.key, self.value = hay, key, value
        self.num_keys, self.num_values, self.num_queries = num_keys, num_values, num_queries

    def plan(self, request: Request) -> Plan:
        """Return how to hide needles in hay of so many words (essays) or lines.

        Raises `EvaluationError` for essays without words, `MissingExtraError` without wonderwords.
        """
        essays: Essays | None = None
        about: dict[str, Any] = {}
        if self.hay == "essays":
            about["haystack"] = "given" if "ruler.essays" in request.data.places else "shipped"
            essays = _given_essays(request) if about["haystack"] == "given" else shipped_essays()
        if "words" in (self.key, self.value):
            word_lists()  # raise before work begins

        short, long = (25, 500) if essays else (5, 25)
        step = short if request.room < SHORT else long
        smallest = step if essays else self.num_keys * self.num_values
        draft, largest = partial(self._draft, essays, about), max(request.room, smallest)
        return Plan(draft=draft, smallest=smallest, step=step, largest=largest)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return the original's score, `strict`, and `similarity`: how near misses came."""
        similarity = nearness(clean_answer(reply.text), item.references)
        return {**super().score(item, reply), "similarity": similarity}

    def _draft(
        self, essays: "Essays | None", about: dict[str, Any], index: int, size: int, random: Random
    ) -> Item:
        keys = _invent(self.num_keys, self.key, random)
        values = _invent(self.num_keys * self.num_values, self.value, random)
        # Key by key, as many of the values for each.
        pairs = [(keys[at // self.num_values], value) for at, value in enumerate(values)]
        asked = random.sample(keys, self.num_queries)
        needles = [self._needle(*pair) for pair in pairs]
        random.shuffle(needles)
        if essays:
            context = _hide_in_sentences(essays.first(size), needles, random)
        elif self.hay == "needles":
            lines = [self._other_needle(keys, values, random) for _ in range(size)]
            context = _hide_in_lines(lines, needles, random)
        else:
            context = _hide_in_lines([NOISE] * size, needles, random)

        is_one = self.num_queries * self.num_values == 1
        kind = self.value[:-1] if is_one else self.value
        query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        wanted = sorted(
            (pair for pair in pairs if pair[0] in asked), key=lambda p: asked.index(p[0])
        )
        places = [context.index(self._needle(*pair)) / len(context) for pair in wanted]
        facts = {**about, "size": size, "depths": [round(place, 3) for place in places]}
        prompt, references = "needle" if is_one else "needles", [value for _, value in wanted]
        return self.item(index, context, references, facts, prompt=prompt, kind=kind, query=query)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value, key=key, value=value)

    def _other_needle(self, keys: list[str], values: list[str], random: Random) -> str:
        (key,) = _invent(1, self.key, random, avoid=keys)
        (value,) = _invent(1, self.value, random, avoid=values)
        return self._needle(key, value)


class Essays:
    """Prose as sentences, which yields its first so many words."""

    def __init__(self, text: str) -> None:
        """Take any text; runs of white space count as one space.

        Raises `EvaluationError` if there are no words.
        """
        self.words = text.split()
        if not self.words:
            raise EvaluationError("ruler.essays holds no words; give prose")
        ends = [
            at + 1
            for at, (word, following) in enumerate(pairwise(self.words))
            if _ends_sentence(word, following)
        ]
        self._ends = [*ends, len(self.words)]
        self._sentences = [" ".join(self.words[a:b]) for a, b in pairwise([0, *self._ends])]

    def first(self, num_words: int) -> list[str]:
        """Return the sentences of the first words, the last one perhaps cut short."""
        rounds, rest = divmod(num_words, len(self.words))
        whole = bisect_right(self._ends, rest)
        start = self._ends[whole - 1] if whole else 0
        part = [" ".join(self.words[start:rest])] if rest > start else []
        return self._sentences * rounds + self._sentences[:whole] + part


@cache
def shipped_essays() -> Essays:
    """Return the essays in the package; `assets/haystack/README.md` says whose they are."""
    return Essays(read_asset("haystack/essays.txt"))


@cache
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return wonderwords' adjectives, nouns and verbs, sorted.

    Raises `MissingExtraError` without wonderwords.
    """
    try:
        folder = resources.files("wonderwords") / "assets"
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "RULER's words need wonderwords: pip install 'octavo[eval]'"
        ) from error

    def read(name: str) -> tuple[str, ...]:
        text = (folder / f"{name}list.txt").read_text(encoding="utf-8")
        return tuple(sorted({line.strip() for line in text.splitlines() if line.strip()}))

    return read("adjective"), read("noun"), read("verb")


def nearness(answer: str, references: Iterable[str]) -> float:
    """Return how like the references the most similar words of an answer are, 0 to 1, on average.

    Six of seven digits right are worth nothing as a match; here they are worth about 0.86.
    """
    runs = re.findall(r"[^\W_]+(?:-[^\W_]+)*", answer.lower())

    def nearest(reference: str) -> float:
        matchers = (difflib.SequenceMatcher(None, reference.lower(), run, False) for run in runs)
        return max((matcher.ratio() for matcher in matchers), default=0.0)

    ratios = [nearest(reference) for reference in references]
    return sum(ratios) / len(ratios)


def _given_essays(request: Request) -> Essays:
    records = request.data.read("ruler.essays", 'prose: .txt files, or records with "text"')
    return Essays(" ".join(record.text("text") for record in records))


def _ends_sentence(word: str, following: str) -> bool:
    bare = word.rstrip("\"')]”’")
    begin = following.lstrip("\"'([“‘")[:1]
    if not bare.endswith((".", "!", "?")) or not (begin.isupper() or begin.isdigit()):
        return False
    is_initial = re.fullmatch(r"\W*[A-Z]\.", bare) is not None
    is_short = bare.endswith(".") and bare[:-1].lower().lstrip("\"'([“‘") in _ABBREVIATIONS
    return not (is_initial or is_short)


def _invent(count: int, kind: Kind, random: Random, avoid: Iterable[str] = ()) -> list[str]:
    """Return so many different words, numbers or UUIDs, none of those to avoid."""
    made: dict[str, None] = {}
    avoided = set(avoid)
    while len(made) < count:
        if kind == "numbers":
            one = str(random.randint(10**6, 10**7 - 1))
        elif kind == "uuids":
            one = str(uuid.UUID(int=random.getrandbits(128), version=4))
        else:
            adjectives, nouns, _ = word_lists()
            one = f"{random.choice(adjectives)}-{random.choice(nouns)}"
        if one not in avoided:
            made[one] = None
    return list(made)


def _hide_in_sentences(sentences: list[str], needles: list[str], random: Random) -> str:
    depths = random.sample(DEPTHS, len(needles))
    places = sorted(int(len(sentences) * depth / 100) for depth in depths)
    pieces, last = [], 0
    for place, needle in zip(places, needles, strict=True):
        pieces += [" ".join(sentences[last:place]), needle]
        last = place
    # An empty first or last piece leaves a space there, as in the original.
    return " ".join([*pieces, " ".join(sentences[last:])])


def _hide_in_lines(lines: list[str], needles: list[str], random: Random) -> str:
    places = sorted(random.sample(range(len(lines)), len(needles)), reverse=True)
    for place, needle in zip(places, needles, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)


TASKS = (
    Needles("niah_single_1", "noise"),
    Needles("niah_single_2", "essays"),
    Needles("niah_single_3", "essays", value="uuids"),
    Needles("niah_multikey_1", "essays", num_keys=4),
    Needles("niah_multikey_2", "needles"),
    Needles("niah_multikey_3", "needles", key="uuids", value="uuids"),
    Needles("niah_multivalue", "essays", num_values=4),
    Needles("niah_multiquery", "essays", num_keys=4, num_queries=4),
)
