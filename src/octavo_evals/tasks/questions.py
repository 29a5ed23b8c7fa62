"""Questions over given contexts: SQuAD-style answers, and values looked up by their keys."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals import metrics
from octavo_evals.task import Item, Metrics, Record, Reply, Request, Task, fill
from octavo_evals.tasks.fit import largest_fit

SQUAD_EXPECTED = (
    '{"context": …, "question": …, "answers": ["…"]} a line, or SQuAD\'s own .json with "data"'
)
PAIRS_EXPECTED = (
    '{"context": "{\\"key\\": \\"value\\", …}", "question": the key, "answers": [the value]} '
    'or {"ordered_kv_records": [[key, value], …], "key": …, "value": …}'
)

Pairs = list[tuple[str, str]]


class Squad(Task):
    """A question about a paragraph, answered with a few of its words.

    Source: SQuAD (arXiv 1606.05250), or any records of that form; word F1, and exact match beside
    it, as its evaluation script has them, each the best over the references. The wording of the
    prompt is ours: SQuAD has none. Unanswerable questions (SQuAD 2.0) are left out. Contexts come
    in an order that the seed draws, for the first ones of a file are all of one article; the
    questions about a context stand together. Ids are places in the file.
    """

    name = "squad"
    metric = "F1"

    def make(self, request: Request) -> Iterator[Item]:
        """Yield the answerable questions, context by context."""
        by_context: dict[str, list[Item]] = {}
        for record, answers in read_squad(request, "squad"):
            if not answers:
                continue
            context = record.text("context")
            item = Item(
                id=record.id,
                context=context,
                after=f"\n\nAnswer with a few words of the text: {record.text('question')}",
                references=tuple(dict.fromkeys(answers)),
                max_new_tokens=32,
            )
            by_context.setdefault(context, []).append(item)
        contexts = list(by_context)
        random.Random(f"{request.seed}/squad").shuffle(contexts)
        for context in contexts:
            yield from by_context[context]

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return word F1, and exact match beside it."""
        return {
            "score": metrics.best(metrics.word_f1, reply.text, item.references),
            "exact": metrics.best(metrics.exact_match, reply.text, item.references),
        }


class SquadParagraphs(Squad):
    """A question of SQuAD whose paragraph stands among others, which have to be told from it.

    The others are paragraphs of the same file, drawn with the seed; the order is drawn too. An
    answer may also stand in another paragraph. One question a paragraph, in the order of `squad`.
    """

    def __init__(self, num_paragraphs: int) -> None:
        """Put so many paragraphs into a context."""
        self.num_paragraphs, self.name = num_paragraphs, f"squad-{num_paragraphs}"

    def make(self, request: Request) -> Iterator[Item]:
        """Yield an item for each paragraph."""
        items = list({item.context: item for item in self._plain(request)}.values())
        if len(items) < self.num_paragraphs:
            raise EvaluationError(
                f"{self.name} needs {self.num_paragraphs} paragraphs, but --data squad holds "
                f"{len(items)}; give all of SQuAD's dev set"
            )
        for item in items:
            rng = random.Random(f"{request.seed}/{self.name}/{item.id}")
            others = rng.sample(
                [one.context for one in items if one is not item], self.num_paragraphs - 1
            )
            paragraphs = [item.context, *others]
            rng.shuffle(paragraphs)
            place = {"paragraph": paragraphs.index(item.context)}
            yield replace(item, context="\n\n".join(paragraphs), about=place)

    def _plain(self, request: Request) -> Iterator[Item]:
        return Squad().make(request)


def read_squad(request: Request, name: str) -> Iterator[tuple[Record, list[str]]]:
    """Yield a record and the answers of every question; no answers where it has none.

    A file holds a question a line, or articles of paragraphs as SQuAD's own one does.
    """
    index, has_answers = 0, False
    for whole in request.data.read(name, SQUAD_EXPECTED):
        try:
            asked = list(_flat(whole.fields))
        except (KeyError, TypeError) as error:
            raise whole.refuse(f"is not of SQuAD ({type(error).__name__}: {error})") from error
        for fields in asked:
            record = Record(index, fields, name, SQUAD_EXPECTED)
            answers = [] if fields.get("is_impossible") else _answers(record)
            has_answers, index = has_answers or bool(answers), index + 1
            yield record, answers
    if not has_answers:
        raise EvaluationError(f"--data {name} has no answerable question: {SQUAD_EXPECTED}")


def _flat(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "data" in fields:
        for article in fields["data"]:
            yield from _flat(article)
    elif "paragraphs" in fields:
        for paragraph in fields["paragraphs"]:
            shared = {"context": paragraph["context"], "title": fields.get("title")}
            yield from ({**asked, **shared} for asked in paragraph["qas"])
    else:
        yield fields


def _answers(record: Record) -> list[str]:
    """Return the answers: texts, objects with a text, or columns as the hub has them."""
    answers = record.fields.get("answers")
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if not isinstance(answers, Sequence) or isinstance(answers, str):
        raise record.refuse("has no list 'answers'")
    given = [answer.get("text") if isinstance(answer, Mapping) else answer for answer in answers]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise record.refuse("has an answer that is no text")
    return texts


class KeyValue(Task):
    """Look up one key in a JSON object of random pairs.

    Source: "Lost in the Middle" (arXiv 2307.03172, github.com/nelson-liu/lost-in-the-middle,
    commit f007d11): its prompt, its layout of the object and its score, whether the value occurs in
    the answer in any case. What differs: an item keeps only as many of its record's pairs as fit
    the length, drawn at random, in the record's order, the asked one always among them, so that
    short decoders can be asked; a length beyond the record keeps it whole. Answers end after 64
    tokens, not 100: a UUID is at most 36.
    """

    name = "key_value"
    metric = "match"
    has_length = True
    max_new_tokens = 64

    def make(self, request: Request) -> Iterator[Item]:
        """Yield one item a record."""
        for record in request.data.read(self.name, PAIRS_EXPECTED):
            pairs, key, value = _pairs(record)
            around = fill(self.name, key=key)
            pairs = self._fit(request, record, pairs, key, around.values())
            yield Item(
                **around,
                id=record.id,
                context=_layout(pairs),
                references=(value,),
                max_new_tokens=self.max_new_tokens,
                about={"pairs": len(pairs), "position": [k for k, _ in pairs].index(key)},
            )

    def _fit(
        self, request: Request, record: Record, pairs: Pairs, key: str, around: Iterable[str]
    ) -> Pairs:
        """Return as many pairs as the length allows, the asked one among them."""
        order = [index for index, (name, _) in enumerate(pairs) if name != key]
        random.Random(f"{request.seed}/key_value/{request.length}/{record.index}").shuffle(order)

        def choose(count: int) -> Pairs:
            dropped = set(order[count - 1 :])
            return [pair for index, pair in enumerate(pairs) if index not in dropped]

        def tokens(count: int) -> int:
            return request.count_tokens(_layout(choose(count)))

        room = request.room - self.max_new_tokens - sum(map(request.count_tokens, around))
        most = largest_fit(tokens, room, 2, len(pairs), guess=len(pairs))
        if most is None:
            raise EvaluationError(
                f"key_value: --length {request.length} has no room for two pairs of record "
                f"{record.index + 1}; give a greater one"
            )
        return choose(most)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 if the value occurs in the answer."""
        return {"score": float(item.references[0].lower() in reply.text.lower())}


def _pairs(record: Record) -> tuple[Pairs, str, str]:
    """Return the pairs in order, the asked key and its value."""
    if "ordered_kv_records" in record.fields:
        raw, key, value = record.fields["ordered_kv_records"], record.text("key"), None
    else:
        key, value = record.text("question"), record.texts("answers")[0]
        try:
            raw = json.loads(record.text("context"), object_pairs_hook=list)
        except json.JSONDecodeError as error:
            raise record.refuse(f"has a 'context' that is not JSON ({error})") from error
    try:
        pairs = [(name, said) for name, said in raw]
    except (TypeError, ValueError) as error:
        raise record.refuse("has pairs that are not of a key and a value") from error
    if not all(isinstance(part, str) for pair in pairs for part in pair):
        raise record.refuse("has a key or value that is no text")
    table = dict(pairs)
    if len(table) != len(pairs) or len(pairs) < 2:
        raise record.refuse("has a key twice, or fewer than two pairs")
    if key not in table or value not in (None, table[key]):
        raise record.refuse(f"asks for the key {key!r}, which its pairs do not have so")
    return pairs, key, table[key]


def _layout(pairs: Pairs) -> str:
    """Return the object as the original prints it: a pair a line, later ones indented by one."""
    return "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"


TASKS = (Squad(), SquadParagraphs(20), SquadParagraphs(30), KeyValue())
