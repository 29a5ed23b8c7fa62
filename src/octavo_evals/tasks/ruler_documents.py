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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from octavo_evals.task import Item, Request
from octavo_evals.tasks.questions import read_squad
from octavo_evals.tasks.ruler import NUM_ITEMS, SHORT, Plan, RulerTask

HOTPOT_EXPECTED = (
    '{"question": …, "answer": …, "context": [[title, [sentence, …]], …]}, as in HotpotQA\'s dev '
    "set with distractors, or with the hub's columns"
)


@dataclass(frozen=True, slots=True)
class DocumentQuestion:
    """A question, its answers, and the texts that belong to it."""

    text: str
    answers: tuple[str, ...]
    own: tuple[str, ...]
    """Always among the documents."""
    near: tuple[str, ...]
    """The first to join them."""


class Documents(RulerTask):
    """Answer a question of which some documents hold the answer."""

    prompt = "documents"
    max_new_tokens = 32
    needs_all = False

    def plan(self, request: Request) -> Plan:
        """Return how to surround a question's documents by others, to so many."""
        is_short = request.room < SHORT
        read = read_squad_questions if self.name == "ruler/qa_1" else read_hotpot_questions
        questions, documents = read(request, is_short)

        def draft(index: int, size: int, random: Random) -> Item:
            question = questions[index]
            texts = _surround(question, size, documents, random)
            random.shuffle(texts)
            context = "\n\n".join(f"Document {n}:\n{text}" for n, text in enumerate(texts, 1))
            about = {"size": len(texts)}
            return self.item(index, context, question.answers, about, question=question.text)

        return Plan(
            draft=draft,
            smallest=1,
            step=1 if is_short else 10,
            largest=len(documents),
            num_items=min(NUM_ITEMS, len(questions)),
            passes_over=True,
        )


def _surround(
    question: DocumentQuestion, size: int, documents: Sequence[str], random: Random
) -> list[str]:
    """Return a question's documents and others, at least its own."""
    own, near = question.own, question.near
    missing = size - len(own)
    if missing <= len(near):
        return [*own, *random.sample(near, max(0, missing))]
    taken = {*own, *near}
    others = [text for text in documents if text not in taken]
    return [*own, *near, *random.sample(others, min(len(others), missing - len(near)))]


def read_squad_questions(
    request: Request, is_short: bool
) -> tuple[list[DocumentQuestion], list[str]]:
    """Return the questions that have an answer, in order, and all paragraphs.

    Of records with a question each, those of one title or source make an article.
    """
    rows, articles = [], dict[str, dict[str, None]]()
    for record, answers in read_squad(request, "ruler.squad"):
        article = str(record.fields.get("title") or record.fields.get("source") or "")
        context = record.text("context")
        articles.setdefault(article, {})[context] = None
        if answers:
            rows.append((article, context, record.text("question"), tuple(answers)))
    questions = [
        DocumentQuestion(
            question, answers, (context,), tuple(t for t in articles[article] if t != context)
        )
        for article, context, question, answers in rows
    ]
    return questions, sorted({text for texts in articles.values() for text in texts})


def read_hotpot_questions(
    request: Request, is_short: bool
) -> tuple[list[DocumentQuestion], list[str]]:
    """Return the questions, in order, and all paragraphs, each after its title."""
    questions, documents = [], set[str]()
    for record in request.data.read("ruler.hotpot", HOTPOT_EXPECTED):
        facts = record.fields.get("supporting_facts") or ()
        try:
            pairs = record.fields["context"]
            if isinstance(pairs, Mapping):
                pairs = list(zip(pairs["title"], pairs["sentences"], strict=True))
            names = facts["title"] if isinstance(facts, Mapping) else [name for name, _ in facts]
            texts = {f"{title}\n{''.join(sentences)}": title for title, sentences in pairs}
        except (KeyError, TypeError, ValueError) as error:
            raise record.refuse(f"is not HotpotQA's ({type(error).__name__}: {error})") from error
        documents.update(texts)
        own = tuple(text for text, title in texts.items() if title in names) or tuple(texts)
        near = tuple(text for text in texts if text not in own)
        if not is_short:
            own, near = own + near, ()
        answers = (record.text("answer"),)
        questions.append(DocumentQuestion(record.text("question"), answers, own, near))
    return questions, sorted(documents)


TASKS = (Documents("qa_1"), Documents("qa_2"))
