"""LongHealth, task 1: five choices about a fictional patient's long medical documents.

Source: github.com/kbressem/LongHealth, arXiv 2401.14490: `benchmark_v5.json`, 20 patients with 20
questions each. What differs: the system prompt opens the user's turn; the documents are shuffled
once a patient, so that all twenty questions share one context (the original shuffles them for each
question, five times over, and averages); answers are greedy; nothing is cut.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from octavo_evals.task import Item, Metrics, Reply, Request, Task
from octavo_evals.tasks import given

EXPECTED = (
    "LongHealth's benchmark_v5.json: patients, each with texts and questions of No, question, "
    "answer_a to answer_e, correct, answer_location"
)
OPTIONS = "abcde"
MAX_NEW_TOKENS = 50

SYSTEM = """\
You are a highly skilled and detail-oriented assistant, specifically trained to assist medical \
professionals in interpreting and extracting key information from medical documents. Your primary \
responsibility will be to analyze discharge letters from hospitals. When you receive one or more \
of these letters, you will be expected to carefully review the contents and accurately answer \
multiple-choice questions related to these documents.\x20

Your answers should be:
1. Accurate: Make sure your answers are based on the information provided in the letters.
2. Concise: Provide brief and direct answers without unnecessary elaboration.
3. Contextual: Consider the context and specifics of each question to provide the most relevant \
information.

Remember, your job is to streamline the physician's decision-making process by providing them with \
accurate and relevant information from discharge summaries. Efficiency and reliability are key.
"""
BEFORE = f"{SYSTEM}\n--------------BEGIN DOCUMENTS--------------\n\n"
SEPARATOR = "\n\n--------------\n\n"
AFTER = "\n\n--------------END DOCUMENTS--------------\n\n"
FORMAT = """

Please answer using the following format:
1. Begin your answer with the phrase "The correct answer is".
2. State the letter of the correct option (e.g., A, B, C, D, E).
3. Follow the letter with a colon and the exact text of the option you chose.
4. Make sure your answer is a single, concise sentence.

For example, if the correct answer to a question is option C, and the text for C is \
'Acute Bronchitis', your answer should be:\x20
'The correct answer is C: Acute bronchitis.'
"""


class LongHealth:
    """Patients' questions stand together, over the documents of all patients of a group.

    `longhealth` reads one patient at a time; `longhealth5` five, as the paper's LongHealth5 does
    (about 64,000 tokens; how it orders them is not published: here they are shuffled).
    """

    has_length = False
    metric = "accuracy"

    def __init__(self, name: str, num_patients: int) -> None:
        """Read `num_patients` at a time."""
        self.name, self.num_patients = name, num_patients

    def items(self, request: Request) -> Iterator[Item]:
        """Yield items patient by patient, in the file's order."""
        return islice(self._items(request), request.limit)

    def _items(self, request: Request) -> Iterator[Item]:
        patients, index = list(_patients(request)), 0
        for first in range(0, len(patients), self.num_patients):
            group = patients[first : first + self.num_patients]
            context = self._documents(request, group)
            for patient in group:
                for fields in patient.fields["questions"]:
                    after, letter, about = _question(patient, fields)
                    yield Item(
                        id=f"{index:04d}",
                        before=BEFORE,
                        context=context,
                        after=after,
                        references=(letter,),
                        max_new_tokens=MAX_NEW_TOKENS,
                        about=about,
                    )
                    index += 1

    def _documents(self, request: Request, group: Sequence[given.Record]) -> str:
        """Return the shuffled documents of a group of patients."""
        names = [patient.fields["patient"] for patient in group]
        rng = random.Random(f"{request.seed}/{self.name}/{names}")
        texts = [text for patient in group for text in patient.fields["texts"].values()]
        rng.shuffle(texts)
        return SEPARATOR.join(texts)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 for the right letter in the asked-for form; an answer without it is wrong.

        `flexible` also takes the letter without the colon after it, in brackets or in bold.
        """
        strict = re.findall(r"The correct answer is (\w):", reply.text)
        loose = chosen_letter(reply.text)
        return {
            "score": float(bool(strict) and strict[0] in item.references),
            "flexible": float(loose in item.references),
        }


def chosen_letter(answer: str) -> str | None:
    """Return the letter an answer says is correct, however it is set; None without one."""
    found = re.search(r"(?i:correct answer is)[\s:*(\"']*([A-F])\b", answer)
    return found[1] if found else None


def _patients(request: Request) -> Iterator[given.Record]:
    """Yield a record per patient, whether they are lines of a file or keys of one object."""
    for record in given.read(request, "longhealth", EXPECTED):
        named = {"": record.fields} if "questions" in record.fields else record.fields
        for name, fields in named.items():
            fields = {"patient": name, **fields} if isinstance(fields, Mapping) else {}
            patient = given.Record(record.index, fields, record.name, EXPECTED)
            texts, questions = fields.get("texts"), fields.get("questions")
            if not (isinstance(texts, Mapping) and texts and all(map(_is_text, texts.values()))):
                raise patient.refuse(f"has a patient {name!r} without 'texts'")
            if not (isinstance(questions, Sequence) and questions):
                raise patient.refuse(f"has a patient {name!r} without 'questions'")
            yield patient


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _question(patient: given.Record, fields: Any) -> tuple[str, str, dict[str, Any]]:
    """Return what follows the documents, the right letter and facts about the question."""
    if not isinstance(fields, Mapping):
        raise patient.refuse("has a question that is no object")
    question = given.Record(patient.index, fields, patient.name, EXPECTED)
    options = {letter.upper(): question.text(f"answer_{letter}") for letter in OPTIONS}
    correct = question.text("correct")
    # Some records leave a full stop out of `correct`; the original looks for it in the options.
    right = [letter for letter, text in options.items() if text == correct] or [
        letter for letter, text in options.items() if correct and correct in text
    ]
    if not right:
        raise question.refuse(f"has an answer {correct!r} that is none of its options")
    listed = "\n".join(f"{letter}: {text}" for letter, text in options.items())
    about = {
        "patient": patient.fields["patient"],
        "question": fields.get("No"),
        "answer_documents": sorted(fields.get("answer_location") or ()),
    }
    return f"{AFTER}{question.text('question')}\n{listed}{FORMAT}", right[0], about


TASKS: dict[str, Callable[[], Task]] = {
    "longhealth": partial(LongHealth, "longhealth", 1),
    "longhealth5": partial(LongHealth, "longhealth5", 5),
}
