"""Tasks that score given words instead of making new ones: reconstruction and perplexity.

`reconstruction`: read a passage, and write it out again. `perplexity`: read a passage, and go on as
its author did. Every token of the target is judged with the right ones before it (teacher forcing),
so that one slip does not spoil the rest. Score: the share of tokens that were the most likely.
"""

import random
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean

from octavo.errors import EvaluationError
from octavo_evals.task import Item, Metrics, Reply, Request, Task
from octavo_evals.tasks.fit import largest_fit

NUM_ITEMS = 100
"""Without a limit."""
CONTINUATION = 64
"""Tokens to be continued; the rest of the length is context."""
COPY = "\nThe text above, word for word:\n"
QUARTERS = 4
"""Accuracy is also given by quarter of the target: does it fade along the passage?"""


class Likelihood(Task):
    """Cut passages out of texts, and see how well they are copied or continued."""

    has_length = True
    metric = "token accuracy"

    def __init__(self, name: str) -> None:
        """Be `reconstruction` or `perplexity`."""
        self.name = name

    def make(self, request: Request) -> Iterator[Item]:
        """Yield passages of as many tokens as the length leaves, from `--data text=…`.

        Every item takes another text while there are any, and begins at a random word of it.
        """
        is_copy = self.name == "reconstruction"
        asked = COPY if is_copy else ""
        room = request.room - request.count_tokens(asked)
        wanted = room // 2 if is_copy else room - CONTINUATION
        if wanted < CONTINUATION // 4:
            raise EvaluationError(
                f"{self.name} has no room for a passage in a length of {request.length}; give "
                "--length 256 or more"
            )
        needed = wanted + (0 if is_copy else CONTINUATION)
        texts = self._texts(request, needed)
        for index in range(NUM_ITEMS if request.limit is None else request.limit):
            rng = random.Random(f"{request.seed}/{self.name}/{request.length}/{index}")
            text = texts[index % len(texts)]
            first = text.find(" ", rng.randrange(len(text) - 8 * needed)) + 1
            words = text[first : first + 12 * needed].split(" ")
            passage, rest = _cut(words, wanted, request)
            target = passage if is_copy else _cut(rest, CONTINUATION, request)[0]
            yield Item(
                id=f"{index:04d}",
                context=passage,
                after=asked,
                target=target if is_copy else " " + target,
                references=(target,),
                is_chat=False,
            )

    def _texts(self, request: Request, needed: int) -> list[str]:
        """Return the texts that are surely long enough, in a random order."""
        records = request.data.read("text", 'prose: records with "text", or .txt files')
        found = (record.fields.get("text") or record.fields.get("context") for record in records)
        long = (text for text in found if isinstance(text, str) and len(text) > 8 * needed)
        texts = list(dict.fromkeys(long))
        if not texts:
            raise EvaluationError(
                f"no text in --data text=… has the {needed} tokens that a length of "
                f"{request.length} asks for; give longer texts or a shorter length"
            )
        random.Random(f"{request.seed}/{self.name}").shuffle(texts)
        return texts

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return token accuracy, whether all was right, mean loss, and accuracy by quarter."""
        hits, count = reply.token_hits, len(reply.token_hits)
        ends = [count * quarter // QUARTERS for quarter in range(QUARTERS + 1)]
        parts = enumerate((hits[a:b] for a, b in pairwise(ends)), 1)
        return {
            "score": fmean(hits),
            "exact": float(all(hits)),
            "nats": sum(reply.token_nats) / count,
            **{f"accuracy_q{quarter}": fmean(part) for quarter, part in parts if part},
        }


def _cut(words: list[str], wanted: int, request: Request) -> tuple[str, list[str]]:
    """Return the longest run of words with at most `wanted` tokens, and the words after it."""

    def tokens(number: int) -> int:
        return request.count_tokens(" ".join(words[:number]))

    most = largest_fit(tokens, wanted, 1, len(words), guess=wanted) or 1
    return " ".join(words[:most]), words[most:]


TASKS = (Likelihood("reconstruction"), Likelihood("perplexity"))
