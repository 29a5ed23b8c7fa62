"""GSM8K: grade-school sums, answered after five worked ones.

Source: github.com/openai/grade-school-math, arXiv 2110.14168; wording, stop, answer length and both
ways to find the answer are those of lm-evaluation-harness (lm_eval/tasks/gsm8k, commit 4e7e0d4).
What differs: the prompt is a user's turn, as there with `--apply_chat_template`; the five examples
are always the same, the first five of `gsm8k.train` in the file's order or, where that is not
given, of the test file, which then does not ask them. Which examples the LCLM paper (arXiv
2606.09659) shows, and how it finds the answer, is not published.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from octavo.errors import EvaluationError
from octavo_evals.task import Item, Metrics, Reply, Request
from octavo_evals.tasks import given

SHOTS = 5
MAX_NEW_TOKENS = 256
EXPECTED = (
    '{"question": …, "answer": "… #### 18"} or {"question": …, "answers": ["18"], "solution": …}'
)


@dataclass(frozen=True, slots=True)
class Sum:
    """A question with its worked answer, which ends like `#### 18`."""

    id: str
    question: str
    worked: str
    result: str


class Gsm8k:
    """Either the whole prompt is the context, or only its worked examples are.

    The paper compresses the whole prompt. With the examples alone, all questions share one context.
    """

    has_length = False
    metric = "exact match"

    def __init__(self, *, is_whole: bool) -> None:
        """Take whether the question is a part of the context."""
        self.is_whole = is_whole
        self.name = "gsm8k/whole" if is_whole else "gsm8k/shots"

    def items(self, request: Request) -> Iterator[Item]:
        """Yield one item a question, in the file's order; ids are places in the file."""
        return islice(self._items(request), request.limit)

    def _items(self, request: Request) -> Iterator[Item]:
        is_apart = request.data.has("gsm8k.train")
        shots_from = "gsm8k.train" if is_apart else "gsm8k"
        sums = map(_sum, given.read(request, "gsm8k", EXPECTED))
        source = map(_sum, given.read(request, shots_from, EXPECTED)) if is_apart else sums
        shots = list(islice(source, SHOTS))
        if len(shots) < SHOTS:
            raise EvaluationError(
                f"--data {shots_from} holds {len(shots)} records; {SHOTS} are needed as examples"
            )
        examples = "\n\n".join(f"Question: {s.question}\nAnswer: {s.worked}" for s in shots)
        for one in sums:
            asked = f"\n\nQuestion: {one.question}\nAnswer:"
            yield Item(
                id=one.id,
                context=examples + asked if self.is_whole else examples,
                after="" if self.is_whole else asked,
                references=(one.result,),
                max_new_tokens=MAX_NEW_TOKENS,
                stop=("Question:",),
                about={"shots": SHOTS, "shots_from": shots_from},
            )

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return whether the number after `####` is right; `flexible` takes the last number."""
        return find_results(reply.text, item.references)


def find_results(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return `score`, by the first number after `####`, and `flexible`, by the last number."""
    strict = re.search(r"#### (-?[0-9.,]+)", answer)
    numbers: list[str] = [m[0] for m in re.finditer(r"-?[$0-9.,]{2,}|-?[0-9]+", answer)]
    wanted = {_plain(reference) for reference in references}
    return {
        "score": float(strict is not None and _plain(strict[1]) in wanted),
        "flexible": float(bool(numbers) and _plain(numbers[-1]) in wanted),
    }


def _plain(number: str) -> str:
    """Return a number without commas, dollars and a last full stop."""
    return re.sub(r"[,$]", "", number.strip()).removesuffix(".")


def _sum(record: given.Record) -> Sum:
    question = record.text("question")
    if "answer" in record.fields:
        worked = record.text("answer")
        found = re.search(r"#### (-?[0-9.,]+)", worked)
        if not found:
            raise record.refuse("has an 'answer' without '#### ' and a number")
        return Sum(record.id, question, worked, _plain(found[1]))
    result = record.texts("answers")[0]
    return Sum(record.id, question, f"{record.text('solution')}\n#### {result}", _plain(result))


TASKS = {"whole": partial(Gsm8k, is_whole=True), "shots": partial(Gsm8k, is_whole=False)}
