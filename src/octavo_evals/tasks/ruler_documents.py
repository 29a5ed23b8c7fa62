"""RULER's two question tasks: `qa_1` of SQuAD and `qa_2` of HotpotQA, among other documents.

    before    Answer the question based on the given documents. ... The following are given ...
    context   Document 1: ... Document 2: ...
    after     Answer the question based on the given documents. ... Question: ...
    prefix     Answer:

Item n asks question n of the file, so ids have gaps where a question is passed over: when its own
documents do not fit the length, where the original would retry for ever. Its own are one paragraph
in SQuAD, joined by those of the same article and then by any; in HotpotQA they are its ten, joined
by any. Below 4096 tokens ten may be too many: there the supporting ones, if the file names them,
come first and the rest of the ten next.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals.task import Request, Task
from octavo_evals.tasks.ruler import NUM_ITEMS, SHORT, Draft, Plan, RulerTask

_ASK = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)
BEFORE = f"{_ASK}\n\nThe following are given documents.\n\n"
AFTER = f"\n\n{_ASK}\n\nQuestion: {{question}}"
PREFIX = " Answer:"
DOCUMENT = "Document {number}:\n{text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RulerQuestion:
    """A question, its answers, and the numbers of documents that belong to it."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    """Always among the documents."""
    near: tuple[int, ...]
    """The first to join them."""


Read = Callable[[Iterable[Any]], tuple[list[RulerQuestion], list[str]]]


class Questions(RulerTask):
    """Answer a question of which some documents hold the answer."""

    max_new_tokens = 32
    needs_all = False

    def __init__(self, short_name: str, data: str, what: str, read: Read) -> None:
        """Read questions and all documents from the records of a named place."""
        super().__init__(short_name)
        self.data, self.what, self.read = data, what, read

    def plan(self, request: Request, length: int) -> Plan:
        """Return how to surround a question's documents by others, to so many.

        Raises `EvaluationError` if the data is not given or holds no question.
        """
        questions, documents = self.read(request.data.records(self.data, self.what))
        if not questions:
            raise EvaluationError(
                f"--data {self.data}=… has no question that can be answered; give {self.what}"
            )
        is_short = length < SHORT

        def draft(index: int, size: int, random: Random) -> Draft:
            question = questions[index]
            own, near = question.own, question.near
            if not is_short and self.data == "ruler.hotpot":
                own, near = own + near, ()
            numbers = _surround(own, near, size, len(documents), random)
            random.shuffle(numbers)
            texts = (documents[number] for number in numbers)
            return Draft(
                before=BEFORE,
                context="\n\n".join(
                    DOCUMENT.format(number=place, text=text) for place, text in enumerate(texts, 1)
                ),
                after=AFTER.format(question=question.text),
                prefix=PREFIX,
                references=question.answers,
                about={"size": len(numbers)},
            )

        return Plan(
            draft=draft,
            smallest=1,
            step=1 if is_short else 10,
            largest=len(documents),
            num_items=min(NUM_ITEMS, len(questions)),
            passes_over=True,
        )


def _surround(
    own: tuple[int, ...], near: tuple[int, ...], size: int, num_documents: int, random: Random
) -> list[int]:
    """Return the numbers of a question's documents and of others, at least its own."""
    missing = size - len(own)
    if missing <= len(near):
        return [*own, *random.sample(near, max(0, missing))]
    taken = {*own, *near}
    others = [number for number in range(num_documents) if number not in taken]
    return [*own, *near, *random.sample(others, min(len(others), missing - len(near)))]


def read_squad(records: Iterable[Any]) -> tuple[list[RulerQuestion], list[str]]:
    """Return the questions that have an answer, in order, and all paragraphs.

    Records are the official file, `{"data": […]}` or its articles, or one question each:
    `{"context", "question", "answers", "source"}`, where an article is all of one source or title.
    Raises `EvaluationError` for anything else.
    """
    rows = [row for record in records for row in _squad_rows(record)]
    documents = sorted({context for _, context, _, _ in rows})
    number_of = {text: number for number, text in enumerate(documents)}
    articles: dict[str, dict[int, None]] = {}
    for article, context, _, _ in rows:
        articles.setdefault(article, {})[number_of[context]] = None
    questions = [
        RulerQuestion(
            text=question,
            answers=answers,
            own=(number_of[context],),
            near=tuple(n for n in articles[article] if n != number_of[context]),
        )
        for article, context, question, answers in rows
        if answers
    ]
    return questions, documents


def _squad_rows(record: Any) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield article, context, question and answers; no answers where it is impossible."""
    try:
        if "data" in record:
            for article in record["data"]:
                yield from _squad_rows(article)
        elif "paragraphs" in record:
            for paragraph in record["paragraphs"]:
                for asked in paragraph["qas"]:
                    flat = {**asked, "context": paragraph["context"], "title": record.get("title")}
                    yield from _squad_rows(flat)
        else:
            answers = record["answers"]
            if isinstance(answers, Mapping):  # the hub's form
                answers = answers["text"]
            texts = tuple(one["text"] if isinstance(one, Mapping) else str(one) for one in answers)
            article = str(record.get("title") or record.get("source") or "")
            yield (
                article,
                record["context"],
                record["question"],
                () if record.get("is_impossible") else texts,
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise _foreign("ruler.squad", "SQuAD v2", error) from error


def read_hotpot(records: Iterable[Any]) -> tuple[list[RulerQuestion], list[str]]:
    """Return the questions, in order, and all paragraphs, each after its title.

    Records are those of the official file, with `context` as `[[title, [sentence, …]], …]`, or of
    the hub, with `{"title": […], "sentences": […]}`. Raises `EvaluationError` for anything else.
    """
    read = []
    for record in records:
        try:
            pairs = record["context"]
            facts = record.get("supporting_facts") or ()
            if isinstance(pairs, Mapping):
                pairs = list(zip(pairs["title"], pairs["sentences"], strict=True))
            names = facts["title"] if isinstance(facts, Mapping) else [name for name, _ in facts]
            texts = {f"{title}\n{''.join(sentences)}": title for title, sentences in pairs}
            read.append((record["question"], record["answer"], texts, set(names)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _foreign("ruler.hotpot", "HotpotQA", error) from error
    documents = sorted({text for _, _, texts, _ in read for text in texts})
    number_of = {text: number for number, text in enumerate(documents)}
    questions = []
    for question, answer, texts, names in read:
        own = [number_of[text] for text, title in texts.items() if title in names]
        own = own or [number_of[text] for text in texts]
        near = [number_of[text] for text in texts if number_of[text] not in own]
        questions.append(
            RulerQuestion(text=question, answers=(answer,), own=tuple(own), near=tuple(near))
        )
    return questions, documents


def _foreign(name: str, form: str, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"a record of {name} is not of {form}'s form ({type(error).__name__}: {error}); give its "
        "dev set"
    )


TASKS: dict[str, Callable[[], Task]] = {
    "qa_1": partial(
        Questions,
        "qa_1",
        "ruler.squad",
        "the dev set of SQuAD v2, the official JSON or one question a line",
        read_squad,
    ),
    "qa_2": partial(
        Questions,
        "qa_2",
        "ruler.hotpot",
        "HotpotQA's dev set with distractors, the official JSON or the hub's records",
        read_hotpot,
    ),
}
