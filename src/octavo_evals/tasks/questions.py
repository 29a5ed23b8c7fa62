"""Questions over given contexts: SQuAD-style answers, and values looked up by their keys."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from octavo.errors import EvaluationError
from octavo_evals import metrics
from octavo_evals.task import DataFiles, Item, Metrics, Reply, Request
from octavo_evals.tasks import given

SQUAD_EXPECTED = (
    '{"context": …, "question": …, "answers": ["…"]} a line, or SQuAD\'s own .json with "data"'
)
PAIRS_EXPECTED = (
    '{"context": "{\\"key\\": \\"value\\", …}", "question": the key, "answers": [the value]} '
    'or {"ordered_kv_records": [[key, value], …], "key": …, "value": …}'
)
PAIRS_BEFORE = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
)


class Squad:
    """A question about a paragraph, answered with a few of its words.

    Source: SQuAD (arXiv 1606.05250), or any records of that form; word F1, and exact match beside
    it, as its evaluation script has them, each the best over the references. The wording of the
    prompt is ours: SQuAD has none. Unanswerable questions (SQuAD 2.0) are left out. Contexts come
    in an order that the seed draws, for the first ones of a file are all of one article; the
    questions about a context stand together. Ids are places in the file.
    """

    name = "squad"
    has_length = False
    metric = "F1"

    def items(self, request: Request) -> Iterator[Item]:
        """Return the answerable questions, context by context."""
        by_context: dict[str, list[Item]] = {}
        for record in given.check(_flat(request.data), "squad", SQUAD_EXPECTED):
            references = _references(record)
            if references:
                context = record.text("context")
                item = Item(
                    id=record.id,
                    context=context,
                    after=f"\n\nAnswer with a few words of the text: {record.text('question')}",
                    references=references,
                    max_new_tokens=32,
                )
                by_context.setdefault(context, []).append(item)
        if not by_context:
            raise EvaluationError(f"--data squad has no answerable question: {SQUAD_EXPECTED}")
        contexts = list(by_context)
        random.Random(f"{request.seed}/squad").shuffle(contexts)
        return islice((item for one in contexts for item in by_context[one]), request.limit)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return word F1, and exact match beside it."""
        return {
            "score": metrics.best(metrics.word_f1, reply.text, item.references),
            "exact": metrics.best(metrics.exact_match, reply.text, item.references),
        }


def _flat(data: DataFiles) -> Iterator[Any]:
    """Yield a record per question; SQuAD's own file is one record of articles of paragraphs."""
    for record in data.records("squad", SQUAD_EXPECTED):
        if not isinstance(record, Mapping) or "data" not in record:
            yield record
            continue
        try:
            for article in record["data"]:
                for paragraph in article["paragraphs"]:
                    for asked in paragraph["qas"]:
                        yield {**asked, "context": paragraph["context"]}
        except (KeyError, TypeError) as error:
            raise EvaluationError(
                f"--data squad is not SQuAD's .json ({type(error).__name__}: {error}); "
                f"expected {SQUAD_EXPECTED}"
            ) from error


def _references(record: given.Record) -> tuple[str, ...]:
    """Return the distinct answers: texts, objects with a text, or columns as the hub has them."""
    answers = record.fields.get("answers")
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if not isinstance(answers, Sequence) or isinstance(answers, str):
        raise record.refuse("has no list 'answers'")
    texts = [answer.get("text") if isinstance(answer, Mapping) else answer for answer in answers]
    distinct = dict.fromkeys(text for text in texts if isinstance(text, str))
    if len(texts) != sum(isinstance(text, str) for text in texts):
        raise record.refuse("has an answer that is no text")
    return tuple(distinct)


class KeyValue:
    """Look up one key in a JSON object of random pairs.

    Source: "Lost in the Middle" (arXiv 2307.03172, github.com/nelson-liu/lost-in-the-middle,
    commit f007d11): its prompt, its layout of the object and its score, whether the value occurs in
    the answer in any case. What differs: given a length, an item keeps only as many of its record's
    pairs as fit, drawn at random, in the record's order, the asked one always among them, so that
    short decoders can be asked; a length beyond the record keeps it whole. Answers end after 64
    tokens, not 100: a UUID is at most 36.
    """

    name = "key_value"
    has_length = True
    metric = "match"

    max_new_tokens = 64

    def items(self, request: Request) -> Iterator[Item]:
        """Yield one item a record; without a length each keeps all its pairs."""
        return islice(self._items(request), request.limit)

    def _items(self, request: Request) -> Iterator[Item]:
        for record in given.read(request, "key_value", PAIRS_EXPECTED):
            pairs, key, value = _pairs(record)
            after = f'\n\nKey: "{key}"\nCorresponding value:'
            if request.length is not None:
                pairs = self._fit(request, record, pairs, key, after)
            yield Item(
                id=record.id,
                before=PAIRS_BEFORE,
                context=_layout(pairs),
                after=after,
                references=(value,),
                max_new_tokens=self.max_new_tokens,
                about={"pairs": len(pairs), "position": [k for k, _ in pairs].index(key)},
            )

    def _fit(
        self,
        request: Request,
        record: given.Record,
        pairs: list[tuple[str, str]],
        key: str,
        after: str,
    ) -> list[tuple[str, str]]:
        """Return as many pairs as the length allows, the asked one among them."""
        assert request.length is not None
        order = [index for index, (name, _) in enumerate(pairs) if name != key]
        random.Random(f"{request.seed}/key_value/{request.length}/{record.index}").shuffle(order)

        def choose(count: int) -> list[tuple[str, str]]:
            dropped = set(order[count - 1 :])
            return [pair for index, pair in enumerate(pairs) if index not in dropped]

        around = request.count_tokens(PAIRS_BEFORE) + request.count_tokens(after)
        room = request.length - self.max_new_tokens - around
        low, high = 1, len(pairs) + 1  # low fits or is refused, high does not fit or exist
        while high - low > 1:
            middle = (low + high) // 2
            if request.count_tokens(_layout(choose(middle))) <= room:
                low = middle
            else:
                high = middle
        if low < 2:
            raise EvaluationError(
                f"key_value: --length {request.length} has no room for two pairs of record "
                f"{record.index + 1}; give a greater one"
            )
        return choose(low)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Return 1 if the value occurs in the answer."""
        return {"score": float(item.references[0].lower() in reply.text.lower())}


def _pairs(record: given.Record) -> tuple[list[tuple[str, str]], str, str]:
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


def _layout(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the object as the original prints it: a pair a line, later ones indented by one."""
    return "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"


TASKS = {"squad": Squad, "key_value": KeyValue}
