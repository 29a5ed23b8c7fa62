"""LongBench v2: 503 questions over texts of up to two million words, four choices each.

Source: github.com/THUDM/LongBench, prompts/0shot.txt (commit 072a5a7), arXiv 2412.15204; the answer
is found as its pred.py finds it. What differs: answers are greedy (there temperature 0.1), and the
context alone is cut from the middle, not the whole prompt.
"""

import re
from collections.abc import Iterator
from itertools import islice

from octavo_evals.task import Item, Metrics, Reply, Request
from octavo_evals.tasks import given

LETTERS = "ABCD"
EXPECTED = '{"context": …, "question": …, "choice_A" to "choice_D": …, "answer": "A" to "D"}'
BEFORE = "Please read the following text and answer the question below.\n\n<text>\n"
AFTER = "\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n"
CLOSING = 'Format your response as follows: "The correct answer is (insert answer here)".'
FORMS = (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])")


class LongBench2:
    """Multiple choice over one long text; difficulty, length and domain are in `about`."""

    name = "longbench2"
    has_length = False
    metric = "accuracy"

    def items(self, request: Request) -> Iterator[Item]:
        """Yield the records' items in the file's order, contexts cut to fit the decoder."""
        return islice(self._items(request), request.limit)

    def _items(self, request: Request) -> Iterator[Item]:
        for record in given.read(request, "longbench2", EXPECTED):
            choices = "".join(
                f"({letter}) {record.text(f'choice_{letter}').strip()}\n" for letter in LETTERS
            )
            asked = AFTER.replace("{question}", record.text("question").strip())
            after = f"{asked}{choices}\n{CLOSING}"
            if record.text("answer") not in tuple(LETTERS):
                raise record.refuse(f"has the answer {record.text('answer')!r}")
            context, cut = given.fit_context(
                request, BEFORE, record.text("context").strip(), after, 128
            )
            facts = ("_id", "domain", "sub_domain", "difficulty", "length")
            yield Item(
                id=record.id,
                before=BEFORE,
                context=context,
                after=after,
                references=(record.text("answer"),),
                max_new_tokens=128,
                about={
                    **{key: record.text(key) for key in facts if key in record.fields},
                    "cut_tokens": cut,
                },
            )

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 for the right letter; an answer without one is wrong."""
        said = reply.text.replace("*", "")
        found = next((match[1] for form in FORMS if (match := re.search(form, said))), None)
        return {"score": float(found in item.references)}


TASKS = {"longbench2": LongBench2}
