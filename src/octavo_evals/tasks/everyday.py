"""Sixty everyday documents, five questions each, whose answers stand in the text.

Letters, minutes, invoices, logs, recipes, contracts, tables, chats, READMEs and configuration
files, six of each, 300 to 1,000 tokens, written for this task and in the package: no data is
needed. `assets/everyday/README.md` says how they were made and how answers are scored.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from octavo_evals import metrics
from octavo_evals.task import Item, Metrics, Reply, Request, Task, read_asset

VERSION = 1
"""Of documents, questions and scorer: scores of two versions do not compare."""
KINDS = (
    *("letters", "minutes", "invoices", "logs", "recipes"),
    *("contracts", "tables", "chats", "readmes", "configs"),
)
_ARTICLES = {"a", "an", "the"}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")


class Everyday(Task):
    """A short answer, looked for in the reply as a run of words.

    The five questions about a document stand together, and every ten documents in a row are of ten
    kinds, so that any multiple of fifty items is spread evenly over the kinds.
    """

    name = "everyday"
    metric = "match"

    def make(self, request: Request) -> Iterator[Item]:
        """Yield five items a document."""
        for document in read_documents():
            context = document["text"].strip()
            for number, (question, *answers) in enumerate(document["questions"], 1):
                yield Item(
                    id=f"{document['id']}.{number}",
                    context=context,
                    after=f"\n\nAnswer with a few words of the text: {question}",
                    references=tuple(answers),
                    max_new_tokens=32,
                    about={
                        "version": VERSION,
                        "kind": document["kind"],
                        "position": round(context.find(answers[0]) / len(context), 3),
                    },
                )

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 if an accepted answer stands in the reply; word F1 and exactness beside it."""
        said = answer_words(reply.text)
        wanted = [answer_words(reference) for reference in item.references]
        return {
            "score": float(any(contains(said, one) for one in wanted)),
            "f1": max(metrics.overlap_f1(said, one) for one in wanted),
            "exact": float(said in wanted),
        }


@cache
def read_documents() -> Sequence[dict[str, Any]]:
    """Return the documents, each with its kind, text and questions: the first of each kind first.

    A question is a list: what is asked, the answer as the text has it, and other accepted ones.
    """
    shelves = [tomllib.loads(read_asset(f"everyday/{kind}.toml"))["documents"] for kind in KINDS]
    return [
        {**document, "kind": kind}
        for row in zip(*shelves, strict=True)
        for kind, document in zip(KINDS, row, strict=True)
    ]


def answer_words(text: str) -> list[str]:
    """Return the words and numbers of a text, without case, accents, articles and punctuation.

    Letters and digits are parted (`5mg` is `5 mg`), commas between thousands dropped; a number
    keeps its decimals, so that 3 is not found in 3.5, nor 4 in 14.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    words = _WORD.findall(_THOUSANDS.sub("", plain))
    return [word for word in words if word not in _ARTICLES]


def contains(words: Sequence[str], run: Sequence[str]) -> bool:
    """Return whether a run of words stands in others, unbroken."""
    size = len(run)
    return any(list(words[at : at + size]) == list(run) for at in range(len(words) - size + 1))


TASKS = (Everyday(),)
