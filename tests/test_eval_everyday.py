"""The everyday documents: answers that stand in their text, honest counts, and a plain scorer."""

import hashlib
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from test_eval_tasks import items
from tokenizers import Tokenizer

import octavo
from octavo_evals.task import Item, Reply
from octavo_evals.tasks import TASKS
from octavo_evals.tasks.everyday import KINDS, VERSION, answer_words, read_documents

HASHES = {1: "583b8e3f43eecf1a"}
"""Of the documents and questions of every version: another hash needs another version."""
TASK = TASKS["everyday"]


def ask(*answers: str) -> Item:
    return Item(id="x", context="…", references=answers)


def score(reply: str, *answers: str) -> float:
    return TASK.score(ask(*answers), Reply(text=reply))["score"]


def test_sixty_documents_of_ten_kinds_have_five_questions_each() -> None:
    documents = read_documents()
    assert Counter(d["kind"] for d in documents) == dict.fromkeys(KINDS, 6)
    assert len({d["id"] for d in documents}) == len({d["text"] for d in documents}) == 60
    for document in documents:
        assert document["id"].rpartition("-")[0] == document["kind"]
        asked = [question for question, *_ in document["questions"]]
        assert len(set(asked)) == 5
        assert all(question.endswith("?") for question in asked)


def test_every_answer_stands_in_its_document_and_is_short() -> None:
    for document in read_documents():
        for question, *answers in document["questions"]:
            assert answers, question
            assert answers[0] in document["text"], (document["id"], answers[0])
            assert all(answer_words(answer) for answer in answers)
            assert all(len(answer_words(answer)) <= 10 for answer in answers)
            assert score(answers[0], *answers) == 1.0


def test_no_question_gives_its_answer_away() -> None:
    for item in items("everyday"):
        asked = item.after.rpartition("text: ")[2]
        assert TASK.score(item, Reply(text=asked))["score"] == 0.0, item.id


def test_documents_are_as_long_as_their_readme_says() -> None:
    folder = Path(octavo.__file__).parent / "assets" / "smol" / "decoder"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    counts = [len(tokenizer.encode(d["text"].strip()).ids) for d in read_documents()]
    assert (min(counts), max(counts), round(sum(counts) / 60)) == (308, 1019, 521)


def test_documents_and_questions_have_not_changed_within_their_version() -> None:
    folder = resources.files("octavo_evals").joinpath("assets", "everyday")
    digest = hashlib.sha256()
    for kind in KINDS:
        digest.update(folder.joinpath(f"{kind}.toml").read_bytes())
    assert digest.hexdigest()[:16] == HASHES[VERSION]


def test_a_limit_of_fifty_asks_one_document_of_every_kind() -> None:
    some = items("everyday", limit=50)
    assert Counter(item.about["kind"] for item in some) == dict.fromkeys(KINDS, 5)
    assert [item.id for item in some] == [item.id for item in items("everyday")[:50]]
    for item in some:
        at = round(item.about["position"] * len(item.context))
        assert item.references[0] in item.context[max(0, at - 3) :]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The rent is R12 150 a month.", "R12 150"),
        ("It costs £1846.20", "£1,846.20"),
        ("MEHMET ÖZ, of course", "Mehmet Oz"),
        ("5mg", "5 mg"),
        ("the Meridian piano", "Meridian Piano"),
        ("at 14:30", "14:30"),
    ],
)
def test_a_reply_that_holds_the_answer_is_right_however_it_is_set(reply: str, answer: str) -> None:
    assert score(reply, answer) == 1.0


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("3.5", "3"),
        ("14", "4"),
        ("", "Ines"),
        ("Piano Meridian", "Meridian Piano"),
        ("12,500", "12"),
        ("Dr Gall", "Gallivan"),
        ("203.0.113.7", "203.0.113.77"),
    ],
)
def test_a_reply_that_is_only_like_the_answer_is_wrong(reply: str, answer: str) -> None:
    assert score(reply, answer) == 0.0


def test_f1_and_exactness_say_how_wordy_a_right_reply_is() -> None:
    item = ask("three months", "3 months")
    wordy = TASK.score(item, Reply(text="The period is 3 months long"))
    plain = TASK.score(item, Reply(text="3 months."))
    assert wordy["score"] == plain["score"] == plain["exact"] == plain["f1"] == 1.0
    assert wordy["exact"] == 0.0
    assert wordy["f1"] == pytest.approx(2 * (2 / 5) / (1 + 2 / 5))
