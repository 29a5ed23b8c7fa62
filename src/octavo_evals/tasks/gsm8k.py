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
from itertools import islice

from octavo.errors import EvaluationError
from octavo_evals.task import Item, Metrics, Record, Reply, Request, Task

SHOTS = 5
EXPECTED = (
    '{"question": …, "answer": "… #### 18"} or {"question": …, "answers": ["18"], "solution": …}'
)
RESULT = re.compile(r"#### (-?[0-9.,]+)")


class Gsm8k(Task):
    """Either the whole prompt is the context, or only its worked examples are.

    The paper compresses the whole prompt. With the examples alone, all questions share one context.
    """

    metric = "exact match"

    def __init__(self, name: str) -> None:
        """Be `gsm8k/whole` or `gsm8k/shots`."""
        self.name = name

    def make(self, request: Request) -> Iterator[Item]:
        """Yield one item a question, in the file's order; ids are places in the file."""
        sums = request.data.read("gsm8k", EXPECTED)
        has_own = "gsm8k.train" in request.data.places
        shots_from = "gsm8k.train" if has_own else "gsm8k"
        shots = [
            f"Question: {record.text('question')}\nAnswer: {_worked(record)[0]}"
            for record in islice(
                request.data.read(shots_from, EXPECTED) if has_own else sums, SHOTS
            )
        ]
        if len(shots) < SHOTS:
            raise EvaluationError(
                f"--data {shots_from} holds {len(shots)} records; {SHOTS} are needed as examples"
            )
        examples = "\n\n".join(shots)
        for record in sums:
            asked = f"\n\nQuestion: {record.text('question')}\nAnswer:"
            is_whole = self.name == "gsm8k/whole"
            yield Item(
                id=record.id,
                context=examples + asked if is_whole else examples,
                after="" if is_whole else asked,
                references=(_worked(record)[1],),
                max_new_tokens=256,
                stop=("Question:",),
                about={"shots": SHOTS, "shots_from": shots_from},
            )

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return whether the number after `####` is right; `flexible` takes the last number."""
        return find_results(reply.text, item.references)


def find_results(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return `score`, by the first number after `####`, and `flexible`, by the last number."""
    strict = RESULT.search(answer)
    numbers: list[str] = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", answer)
    wanted = {_plain(reference) for reference in references}
    return {
        "score": float(strict is not None and _plain(strict[1]) in wanted),
        "flexible": float(bool(numbers) and _plain(numbers[-1]) in wanted),
    }


def _plain(number: str) -> str:
    """Return a number without commas, dollars and a last full stop."""
    return re.sub(r"[,$]", "", number.strip()).removesuffix(".")


def _worked(record: Record) -> tuple[str, str]:
    """Return a worked answer, which ends like `#### 18`, and its result."""
    if "answer" not in record.fields:
        result = record.texts("answers")[0]
        return f"{record.text('solution')}\n#### {result}", _plain(result)
    worked = record.text("answer")
    if not (found := RESULT.search(worked)):
        raise record.refuse("has an 'answer' without '#### ' and a number")
    return worked, _plain(found[1])


TASKS = (Gsm8k("gsm8k/whole"), Gsm8k("gsm8k/shots"))
