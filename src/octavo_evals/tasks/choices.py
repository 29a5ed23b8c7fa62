"""Multiple choice over long texts: LongBench v2 and LongHealth.

LongBench v2 has 503 questions over texts of up to two million words, four choices each. Source:
github.com/THUDM/LongBench, prompts/0shot.txt (commit 072a5a7), arXiv 2412.15204; the answer is
found as its pred.py finds it. What differs: answers are greedy (there temperature 0.1), and the
context alone is cut from the middle, not the whole prompt.

LongHealth, task 1, has five choices about a fictional patient's long medical documents. Source:
github.com/kbressem/LongHealth, arXiv 2401.14490: `benchmark_v5.json`, 20 patients with 20 questions
each. What differs: the system prompt opens the user's turn; the documents are shuffled once a
patient, so that all twenty questions share one context (the original shuffles them for each
question, five times over, and averages); answers are greedy; nothing is cut.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo_evals.task import Item, Metrics, Record, Reply, Request, Task, fill
from octavo_evals.tasks.fit import fit_item

EXPECTED = '{"context": …, "question": …, "choice_A" to "choice_D": …, "answer": "A" to "D"}'
FACTS = ("_id", "domain", "sub_domain", "difficulty", "length")

HEALTH_EXPECTED = (
    "LongHealth's benchmark_v5.json: patients, each with texts and questions of No, question, "
    "answer_a to answer_e, correct, answer_location"
)
SEPARATOR = "\n\n--------------\n\n"


class LongBench2(Task):
    """Multiple choice over one long text; difficulty, length and domain are in `about`."""

    name = "longbench2"
    metric = "accuracy"

    def make(self, request: Request) -> Iterator[Item]:
        """Yield the records' items in the file's order, contexts cut to fit the decoder."""
        for record in request.data.read("longbench2", EXPECTED):
            if (answer := record.text("answer")) not in tuple("ABCD"):
                raise record.refuse(f"has the answer {answer!r}")
            listed = (f"({one}) {record.text(f'choice_{one}').strip()}\n" for one in "ABCD")
            asked = {"question": record.text("question").strip(), "choices": "".join(listed)}
            yield fit_item(
                request,
                Item(
                    **fill(self.name, **asked),
                    id=record.id,
                    context=record.text("context").strip(),
                    references=(answer,),
                    max_new_tokens=128,
                    about={key: record.text(key) for key in FACTS if key in record.fields},
                ),
            )

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 for the right letter; an answer without one is wrong."""
        said = reply.text.replace("*", "")
        in_brackets = re.search(r"The correct answer is \(([A-D])\)", said)
        found = in_brackets or re.search(r"The correct answer is ([A-D])", said)
        return {"score": float(found is not None and found[1] in item.references)}


class LongHealth(Task):
    """Patients' questions stand together, over the documents of all patients of a group.

    `longhealth` reads one patient at a time; `longhealth5` five, as the paper's LongHealth5 does
    (about 64,000 tokens; how it orders them is not published: here they are shuffled).
    """

    metric = "accuracy"

    def __init__(self, name: str, num_patients: int) -> None:
        """Read `num_patients` at a time."""
        self.name, self.num_patients = name, num_patients

    def make(self, request: Request) -> Iterator[Item]:
        """Yield items patient by patient, in the file's order."""
        patients, indices = list(_patients(request)), itertools.count()
        for first in range(0, len(patients), self.num_patients):
            group = patients[first : first + self.num_patients]
            names = [patient.fields["patient"] for patient in group]
            texts = [text for patient in group for text in patient.fields["texts"].values()]
            random.Random(f"{request.seed}/{self.name}/{names}").shuffle(texts)
            context = SEPARATOR.join(texts)
            for patient in group:
                for fields in patient.fields["questions"]:
                    yield _item(patient, fields, f"{next(indices):04d}", context)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 for the right letter in the asked-for form; an answer without it is wrong.

        `flexible` also takes the letter without the colon after it, in brackets or in bold.
        """
        strict = re.search(r"The correct answer is (\w):", reply.text)
        return {
            "score": float(strict is not None and strict[1] in item.references),
            "flexible": float(chosen_letter(reply.text) in item.references),
        }


def chosen_letter(answer: str) -> str | None:
    """Return the letter an answer says is correct, however it is set; None without one."""
    found = re.search(r"(?i:correct answer is)[\s:*(\"']*([A-F])\b", answer)
    return found[1] if found else None


def _patients(request: Request) -> Iterator[Record]:
    """Yield a record per patient, whether they are lines of a file or keys of one object."""
    for record in request.data.read("longhealth", HEALTH_EXPECTED):
        named = {"": record.fields} if "questions" in record.fields else record.fields
        for name, fields in named.items():
            fields = {"patient": name, **fields} if isinstance(fields, Mapping) else {}
            patient = Record(record.index, fields, record.name, HEALTH_EXPECTED)
            texts, questions = fields.get("texts"), fields.get("questions")
            if not (isinstance(texts, Mapping) and texts) or not all(
                isinstance(text, str) for text in texts.values()
            ):
                raise patient.refuse(f"has a patient {name!r} without 'texts'")
            if not (isinstance(questions, Sequence) and questions):
                raise patient.refuse(f"has a patient {name!r} without 'questions'")
            yield patient


def _item(patient: Record, fields: Any, name: str, context: str) -> Item:
    """Return a question about a patient, over the documents of all in the group."""
    if not isinstance(fields, Mapping):
        raise patient.refuse("has a question that is no object")
    question = Record(patient.index, fields, patient.name, HEALTH_EXPECTED)
    options = {letter.upper(): question.text(f"answer_{letter}") for letter in "abcde"}
    correct = question.text("correct")
    # Some records leave a full stop out of `correct`; the original looks for it in the options.
    right = [letter for letter, text in options.items() if text == correct] or [
        letter for letter, text in options.items() if correct and correct in text
    ]
    if not right:
        raise question.refuse(f"has an answer {correct!r} that is none of its options")
    listed = "\n".join(f"{letter}: {text}" for letter, text in options.items())
    return Item(
        **fill("longhealth", question=question.text("question"), choices=listed),
        id=name,
        context=context,
        references=(right[0],),
        max_new_tokens=50,
        about={
            "patient": patient.fields["patient"],
            "question": fields.get("No"),
            "answer_documents": sorted(fields.get("answer_location") or ()),
        },
    )


TASKS = (LongBench2(), LongHealth("longhealth", 1), LongHealth("longhealth5", 5))
