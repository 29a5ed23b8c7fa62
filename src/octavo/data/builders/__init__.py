"""One file for each kind of training example: how it is cut from documents, and after what source.

A builder draws what it needs from a `Library` with a given `random.Random`, and so depends on
nothing else: the same seed gives the same example. It returns None when a draw did not work out,
such as a document that is too short; the caller draws again.
"""

import random
from collections.abc import Callable

from octavo.data.builders import (
    chat,
    expand,
    hops,
    interleaved,
    needle,
    pairs,
    qa,
    quotes,
    reconstruction,
)
from octavo.data.documents import MIN_CHARS, Use
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.errors import TrainingError
from octavo.recipe import MixtureSection

Builder = Callable[[random.Random, Library, ExampleMaker, MixtureSection], Example | None]

BUILDERS: dict[str, Builder] = {
    "reconstruction": reconstruction.build,
    "interleaved": interleaved.build,
    "pairs": pairs.build,
    "chat": chat.build,
    "qa": qa.build,
    "needle": needle.build,
    "hops": hops.build,
    "quotes": quotes.build,
    "expand": expand.build,
}
"""The builder of each kind, in the order of `octavo.recipe.KINDS`."""

_NEEDS: dict[str, Use] = {"pairs": "pairs", "chat": "chats", "qa": "questions"}
"""What a kind is made of, where that is not prose."""
_LOOKS_LIKE: dict[Use, str] = {
    "prose": f"prose of more than {MIN_CHARS} characters",
    "questions": 'a record with a "context", a "question" and its "answers"',
    "chats": 'a record with "messages" in which a user asks and an assistant answers',
    "pairs": 'a record with a "prompt" (or a "compression_prompt") and its "target"',
}


def check_kinds(mixture: MixtureSection, library: Library) -> None:
    """Raise `TrainingError` for a kind of the mixture that the library has nothing for."""
    for kind in BUILDERS:
        use = _NEEDS.get(kind, "prose")
        if mixture.weights.get(kind, 0) > 0 and not library.has(use):
            raise TrainingError(
                f"the mixture asks for {kind}, but none of {len(library)} documents is "
                f"{_LOOKS_LIKE[use]}; add such a source, or take {kind} out of its weights"
            )
