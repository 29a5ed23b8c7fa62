"""The builder of everyday documents: sound facts, answers that stand there, nothing of the test."""

import random
import re
from collections import Counter

import pytest

from octavo.data.builders.everyday import KINDS, compose, write
from octavo.data.builders.layouts import FORMS, Fact
from octavo.data.builders.values import Values
from octavo_evals.tasks.everyday import read_documents

SHARED_WORDS = 8
"""A run of so many words in common would mean that one was made of the other."""


def slots(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[at:] for at in range(SHARED_WORDS)), strict=False))


def test_there_are_more_than_twenty_kinds_and_all_have_a_layout() -> None:
    assert len(KINDS) >= 20
    assert {kind.form for kind in KINDS.values()} <= {*FORMS, "config", "none"}
    for name, kind in KINDS.items():
        assert kind.facts or kind.columns or kind.form == "config", name


@pytest.mark.parametrize("name", KINDS)
def test_every_slot_can_be_drawn_and_no_question_names_its_answer(name: str) -> None:
    kind, values = KINDS[name], Values(random.Random(0))
    for fact in [*kind.heads, *kind.facts, *kind.tails]:
        known = slots(fact.text) | {"by", "at"}
        for slot in slots(fact.text):
            assert values.draw(slot.rstrip("0123456789"))
        for question, slot in fact.questions:
            assert slot in known, fact.text
            assert slots(question) <= known - {slot}, question
    for column in kind.columns:
        assert values.draw(column.split(":")[1])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_chars", [60, 600, 6000])
def test_a_document_holds_its_answers_and_asks_nothing_twice(name: str, num_chars: int) -> None:
    asked = 0
    for seed in range(5):
        text, questions = write(random.Random(f"{name}/{seed}"), name, num_chars)
        assert (text, questions) == write(random.Random(f"{name}/{seed}"), name, num_chars)
        assert len(text) <= 1.7 * num_chars + 500
        assert not re.search(r"\{\w*\}", text), text
        assert max(Counter(question for question, _ in questions).values(), default=1) == 1
        for question, answer in questions:
            assert answer
            assert answer in text, (question, answer)
            assert not re.search(r"\{\w*\}", question)
        asked += len(questions)
    assert asked >= 5 if num_chars > 100 else asked


def test_facts_that_come_twice_are_told_apart_by_their_questions() -> None:
    assert not Fact.read("It costs {amount}. | What does it cost? = amount").may_repeat
    assert not Fact.read("i'm in {city} | Where is {by}? = city").may_repeat
    assert Fact.read("{first} is in {city}. | Where is {first}? = city").may_repeat
    assert Fact.read("ok").may_repeat


def test_a_long_context_is_often_several_documents_that_questions_name() -> None:
    joined = 0
    for seed in range(40):
        text, questions = compose(random.Random(seed), 5000)
        parts = re.findall(r"^(\w+ \d+) \((\w+)\):$", text, flags=re.MULTILINE)
        if not parts:
            continue
        joined += 1
        assert [number for number, _ in parts] == [
            f"{parts[0][0].split()[0]} {n}" for n in range(1, len(parts) + 1)
        ]
        for question, _ in questions:
            assert any(number in question for number, _ in parts)
    assert 10 <= joined <= 30


def test_values_of_a_document_are_written_in_one_way_and_differ() -> None:
    values = Values(random.Random(3))
    amounts = [values.draw("amount") for _ in range(200)]
    assert len(set(amounts)) == 200
    assert len({re.sub(r"[\d., ]+", "#", amount) for amount in amounts}) == 1
    assert len({values.draw("weekday") for _ in range(7)}) == 7
    assert values.draw("weekday")  # all are taken, and still there is one


def test_nothing_of_the_evaluation_stands_in_the_builder() -> None:
    tested = {run for document in read_documents() for run in runs(document["text"])}
    assert len(tested) > 10_000
    for seed in range(150):
        text, questions = compose(random.Random(seed), 2000)
        said = "\n".join([text, *(question for question, _ in questions)])
        assert not runs(said) & tested


def test_nothing_of_the_evaluation_shares_the_names_it_asks_for() -> None:
    asked = {
        answers[0]
        for document in read_documents()
        for _, *answers in document["questions"]
        if len(answers[0].split()) > 1 and answers[0][0].isalpha()
    }
    assert len(asked) > 60
    made = "\n".join(compose(random.Random(seed), 2000)[0] for seed in range(150))
    assert not [answer for answer in asked if len(answer) > 9 and answer in made]
