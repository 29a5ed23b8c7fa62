"""Tasks over given records: exact prompts, stable items, scores, and clear errors."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import EvaluationError, InputError
from octavo_evals.task import DataFiles, Item, Reply, Request
from octavo_evals.tasks import find_tasks


def count_words(text: str) -> int:
    return len(text.split())


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def items(
    task: str,
    *data: str,
    limit: int | None = None,
    length: int | None = None,
    seed: int = 42,
    positions: int = 100_000,
    count: Callable[[str], int] = count_words,
) -> list[Item]:
    request = Request(
        length=length,
        limit=limit,
        seed=seed,
        count_tokens=count,
        max_prompt_tokens=positions,
        data=DataFiles(data),
    )
    (one,) = find_tasks([task])
    assert one.name == task
    return list(one.items(request))


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.jsonl", r"a\.jsonl, line 2, is not JSON"), ("a.txt", "cannot read .*a.txt")],
)
def test_data_that_cannot_be_read_is_named_to_the_line(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / name).write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match=says):
        list(DataFiles([f"text={tmp_path}"]).read("text", "a text"))


def score(task: str, item: Item, text: str) -> dict[str, float]:
    return dict(find_tasks([task])[0].score(item, Reply(text=text)))


def prompt(item: Item) -> str:
    return item.before + item.context + item.after


# --- LongBench


def longbench_record(**changes: Any) -> dict[str, Any]:
    record = {
        "input": "Who {signed}?",
        "context": "Ines signed {it}.",
        "answers": ["Ines", "the clerk"],
        "all_classes": None,
        "length": 3,
        "dataset": "x",
        "language": "en",
        "_id": "f00d",
    }
    return record | changes


def longbench(task: str, tmp_path: Path, *records: dict[str, Any], **options: Any) -> list[Item]:
    path = write(tmp_path / "records.jsonl", *(records or [longbench_record()]))
    return items(f"longbench/{task}", f"longbench.{task}={path}", **options)


TEMPLATES = {
    "narrativeqa": (
        "You are given a story, which can be either a novel or a movie script, and a question. "
        "Answer the question as concisely as you can, using a single phrase if possible. Do not "
        "provide any explanation.\n\nStory: Ines signed {it}.\n\nNow, answer the question based on "
        "the story as concisely as you can, using a single phrase if possible. Do not provide any "
        "explanation.\n\nQuestion: Who {signed}?\n\nAnswer:"
    ),
    "hotpotqa": (
        "Answer the question based on the given passages. Only give me the answer and do not "
        "output any other words.\n\nThe following are given passages.\nInes signed {it}.\n\nAnswer "
        "the question based on the given passages. Only give me the answer and do not output any "
        "other words.\n\nQuestion: Who {signed}?\nAnswer:"
    ),
    "dureader": (
        "请基于给定的文章回答下述问题。\n\n文章：Ines signed {it}.\n\n"
        "请基于上述文章回答下面的问题。\n\n问题：Who {signed}?\n回答："
    ),
    "multi_news": (
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n"
        "Ines signed {it}.\n\nNow, write a one-page summary of all the news.\n\nSummary:"
    ),
    "samsum": (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        "Ines signed {it}.\n\nWho {signed}?"
    ),
    "passage_retrieval_en": (
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
        "paragraph the abstract is from.\n\nInes signed {it}.\n\nThe following is an abstract.\n\n"
        "Who {signed}?\n\nPlease enter the number of the paragraph that the abstract is from. The "
        'answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: '
    ),
    "passage_retrieval_zh": (
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n"
        "Ines signed {it}.\n\n下面是一个摘要\n\nWho {signed}?\n\n请输入摘要所属段落的编号。"
        '答案格式必须是"段落1"，"段落2"等格式\n\n答案是：'
    ),
    "lcc": "Please complete the code given below. \nInes signed {it}.Next line of code:\n",
    "repobench-p": (
        "Please complete the code given below. \nInes signed {it}.Who {signed}?Next line of code:\n"
    ),
}


@pytest.mark.parametrize("task", TEMPLATES)
def test_longbench_prompts_are_the_originals_to_the_letter(task: str, tmp_path: Path) -> None:
    (item,) = longbench(task, tmp_path)
    assert prompt(item) == TEMPLATES[task]
    assert item.context == "Ines signed {it}."
    assert item.references == ("Ines", "the clerk")
    assert item.prefix == ""


def test_longbench_has_21_tasks_with_their_limits_and_templates(tmp_path: Path) -> None:
    record = longbench_record(all_classes=["Ines", "clerk"])
    made = {
        task.name.removeprefix("longbench/"): longbench(
            task.name.removeprefix("longbench/"), tmp_path, record
        )[0]
        for task in find_tasks(["longbench"])
    }
    assert len(made) == 21
    assert {name for name, item in made.items() if not item.is_chat} == {
        "trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p",
    }  # fmt: skip
    by_limit: dict[int, set[str]] = {}
    for name, item in made.items():
        by_limit.setdefault(item.max_new_tokens, set()).add(name)
    assert by_limit[512] == {"gov_report", "qmsum", "multi_news", "vcsum"}
    assert by_limit[128] == {"narrativeqa", "qasper", "dureader", "samsum"}
    assert by_limit[64] == {
        "multifieldqa_en", "multifieldqa_zh", "trec", "lsht", "lcc", "repobench-p",
    }  # fmt: skip
    assert set(by_limit) == {32, 64, 128, 512}
    assert made["samsum"].stop == ("\n",)


def test_longbench_cuts_the_middle_of_the_context_and_says_how_much(tmp_path: Path) -> None:
    words = [f"w{index}" for index in range(100)]
    record = longbench_record(context=" ".join(words))
    (whole,) = longbench("triviaqa", tmp_path, record)
    assert whole.context.split() == words
    assert whole.about["cut_tokens"] == 0
    # 32 new tokens, 64 for the template, and 11 words of context are room for the rest
    around = count_words(whole.before) + count_words(whole.after)
    (cut,) = longbench("triviaqa", tmp_path, record, positions=around + 32 + 64 + 11)
    assert cut.context.split() == [*words[:6], *words[-5:]]
    assert cut.about["cut_tokens"] == 89
    assert (cut.before, cut.after) == (whole.before, whole.after)
    (exact,) = longbench("triviaqa", tmp_path, record, positions=around + 32 + 64 + 100)
    assert exact.context == whole.context
    (none,) = longbench("triviaqa", tmp_path, record, positions=around)
    assert none.context == ""
    assert none.about["cut_tokens"] == 100


def test_longbench_fits_even_where_the_ends_meet_in_more_tokens(tmp_path: Path) -> None:
    def count(text: str) -> int:  # four letters a token, and one more where x and y meet
        return -(-len(text) // 4) + text.count("xy")

    record = longbench_record(context="x" * 200 + "y" * 200)
    (whole,) = longbench("lcc", tmp_path, record, count=count)
    around = count(whole.before) + count(whole.after) + 64 + 64
    (cut,) = longbench("lcc", tmp_path, record, count=count, positions=around + 21)
    assert count(cut.context) in (20, 21)
    assert cut.context == "x" * cut.context.count("x") + "y" * cut.context.count("y")
    assert abs(cut.context.count("x") - cut.context.count("y")) <= 4
    assert cut.about["cut_tokens"] == count(record["context"]) - count(cut.context)


def test_longbench_scores_by_each_tasks_own_rule(tmp_path: Path) -> None:
    def scored(task: str, answers: list[str], said: str, **changes: Any) -> float:
        (item,) = longbench(task, tmp_path, longbench_record(answers=answers, **changes))
        return score(f"longbench/{task}", item, said)["score"]

    assert scored("qasper", ["Ines", "the clerk"], "clerk") == 1.0  # the best reference
    assert scored("narrativeqa", ["yes"], "yes\nno") == pytest.approx(2 / 3)
    assert scored("triviaqa", ["yes"], "\nyes\nno") == 1.0  # its first line only
    assert scored("gov_report", ["one two"], "one two") == pytest.approx(1.0)
    assert scored("samsum", ["one two"], "one two\nthree") == pytest.approx(1.0)
    assert scored("multifieldqa_zh", ["清华大学"], "北京清华大学") == pytest.approx(2 / 3)
    assert scored("passage_count", ["7"], "7 or 8") == 0.5
    assert scored("passage_retrieval_zh", ["段落3"], "段落3") == 1.0
    assert scored("repobench-p", ["return x"], "# so\nreturn x") == 1.0
    classes = ["City", "Country"]
    assert scored("trec", ["City"], "Type: City\nCountry", all_classes=classes) == 1.0
    assert scored("trec", ["City"], "City, Country", all_classes=classes) == 0.5


def test_longbench_reads_a_folder_of_all_its_tasks(tmp_path: Path) -> None:
    write(tmp_path / "data" / "qasper.jsonl", longbench_record())
    (item,) = items("longbench/qasper", f"longbench={tmp_path / 'data'}")
    assert item.context == "Ines signed {it}."
    with pytest.raises(EvaluationError, match=r"no qmsum\.jsonl; name the folder"):
        items("longbench/qmsum", f"longbench={tmp_path / 'data'}")


def test_longbench_asks_the_hub_for_the_config_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str, *, split: str, streaming: bool) -> list[Any]:
        asked.append((name, config, split, streaming))
        return [longbench_record()]

    hub = types.ModuleType("datasets")
    monkeypatch.setattr(hub, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    (item,) = items("longbench/qasper", "longbench=hf:someone/LongBench:test")
    assert item.references == ("Ines", "the clerk")
    assert asked == [("someone/LongBench", "qasper", "test", True)]


# --- LongBench v2

CHOICES = {
    "question": " Which? ",
    "choice_A": "red",
    "choice_B": "green",
    "choice_C": "blue",
    "choice_D": "grey",
    "answer": "B",
    "context": " A long text.\n",
    "difficulty": "hard",
    "length": "short",
}


def test_longbench2_asks_in_the_originals_words_and_finds_its_letter(tmp_path: Path) -> None:
    path = write(tmp_path / "v2.jsonl", CHOICES)
    (item,) = items("longbench2", f"longbench2={path}")
    assert prompt(item) == (
        "Please read the following text and answer the question below.\n\n<text>\nA long text.\n"
        "</text>\n\nWhat is the correct answer to this question: Which?\nChoices:\n(A) red\n"
        "(B) green\n(C) blue\n(D) grey\n\nFormat your response as follows: "
        '"The correct answer is (insert answer here)".'
    )
    assert item.about == {"difficulty": "hard", "length": "short", "cut_tokens": 0}
    for said, wanted in [
        ("The correct answer is (B).", 1.0),
        ("**The correct answer is B**", 1.0),
        ("The correct answer is (C), not (B)", 0.0),
        ("B", 0.0),
    ]:
        assert score("longbench2", item, said) == {"score": wanted}


def test_longbench2_refuses_a_record_without_a_letter(tmp_path: Path) -> None:
    path = write(tmp_path / "v2.jsonl", CHOICES, CHOICES | {"answer": "green"})
    with pytest.raises(EvaluationError, match="record 2 of --data longbench2 has the answer"):
        items("longbench2", f"longbench2={path}")


# --- LongHealth


def patient(name: str, *texts: str) -> dict[str, Any]:
    question = {
        "No": 0,
        "question": f"What does {name} have?",
        **{f"answer_{letter}": f"illness {letter}" for letter in "abcde"},
        "correct": "illness c",
        "answer_location": {"text_0": {"start": [0.1], "end": [0.2]}},
    }
    asked = [question, question | {"No": 1, "correct": "illness e"}]
    return {"texts": {f"text_{n}": text for n, text in enumerate(texts)}, "questions": asked}


def longhealth(tmp_path: Path, **options: Any) -> list[Item]:
    patients = {
        "patient_01": patient("Ada", "ada one", "ada two"),
        "patient_02": patient("Bob", "bob one", "bob two", "bob three"),
    }
    path = tmp_path / "benchmark_v5.json"
    path.write_text(json.dumps(patients), encoding="utf-8")
    return items("longhealth", f"longhealth={path}", **options)


def test_longhealth_asks_a_patients_questions_over_one_context(tmp_path: Path) -> None:
    made = longhealth(tmp_path)
    assert [item.id for item in made] == ["0000", "0001", "0002", "0003"]
    assert made[0].context == made[1].context != made[2].context
    separator = "\n\n--------------\n\n"
    assert sorted(made[2].context.split(separator)) == ["bob one", "bob three", "bob two"]
    assert made[0].before.endswith("--------------BEGIN DOCUMENTS--------------\n\n")
    assert made[0].after == (
        "\n\n--------------END DOCUMENTS--------------\n\nWhat does Ada have?\nA: illness a\n"
        "B: illness b\nC: illness c\nD: illness d\nE: illness e\n\nPlease answer using the "
        'following format:\n1. Begin your answer with the phrase "The correct answer is".\n'
        "2. State the letter of the correct option (e.g., A, B, C, D, E).\n3. Follow the letter "
        "with a colon and the exact text of the option you chose.\n4. Make sure your answer is a "
        "single, concise sentence.\n\nFor example, if the correct answer to a question is option "
        "C, and the text for C is 'Acute Bronchitis', your answer should be: \n'The correct answer "
        "is C: Acute bronchitis.'\n"
    )
    assert made[1].references == ("E",)
    assert made[1].about == {
        "patient": "patient_01",
        "question": 1,
        "answer_documents": ["text_0"],
    }


def test_longhealth_counts_an_answer_without_its_form_as_wrong(tmp_path: Path) -> None:
    item = longhealth(tmp_path)[0]
    for said, strict, flexible in [
        ("The correct answer is C: illness c.", 1.0, 1.0),
        ("The correct answer is **C**.", 0.0, 1.0),
        ("The correct answer is (c)", 0.0, 0.0),
        ("The correct answer is A: illness a. The correct answer is C: x", 0.0, 0.0),
        ("illness c", 0.0, 0.0),
    ]:
        assert score("longhealth", item, said) == {"score": strict, "flexible": flexible}, said


def test_longhealth5_reads_several_patients_at_once(tmp_path: Path) -> None:
    longhealth(tmp_path)  # writes the file
    made = items("longhealth5", f"longhealth={tmp_path / 'benchmark_v5.json'}")
    assert [item.about["patient"] for item in made] == ["patient_01"] * 2 + ["patient_02"] * 2
    (context,) = {item.context for item in made}
    assert sorted(context.split("\n\n--------------\n\n")) == [
        "ada one", "ada two", "bob one", "bob three", "bob two",
    ]  # fmt: skip


def test_longhealth_refuses_an_answer_that_is_no_option(tmp_path: Path) -> None:
    broken = patient("Ada", "ada one")
    broken["questions"][1]["correct"] = "measles"
    path = write(tmp_path / "one.jsonl", broken)
    with pytest.raises(EvaluationError, match="'measles' that is none of its options"):
        items("longhealth", f"longhealth={path}")


# --- GSM8K


def sums(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What is {n} + 1,000?",
            "answer": f"{n} + 1,000 = {n + 1000}\n#### {n + 1000}",
        }
        for n in range(first, last)
    ]


def test_gsm8k_shows_the_first_five_of_the_training_file(tmp_path: Path) -> None:
    test = {"question": "What is 9 * 2?", "answers": ["18"], "solution": "9 * 2 = 18"}
    data = (
        f"gsm8k={write(tmp_path / 'test.jsonl', test)}",
        f"gsm8k.train={write(tmp_path / 'train.jsonl', *sums(0, 9))}",
    )
    (whole,) = items("gsm8k/whole", *data)
    (shots,) = items("gsm8k/shots", *data)
    examples = "\n\n".join(
        f"Question: What is {n} + 1,000?\nAnswer: {n} + 1,000 = {n + 1000}\n#### {n + 1000}"
        for n in range(5)
    )
    assert shots.context == examples
    assert shots.after == "\n\nQuestion: What is 9 * 2?\nAnswer:"
    assert (whole.before, whole.after) == ("", "")
    assert whole.context == prompt(shots)
    assert whole.references == ("18",)
    assert whole.about == {"shots": 5, "shots_from": "gsm8k.train"}


def test_gsm8k_without_a_training_file_shows_and_leaves_out_the_first_of_the_test(
    tmp_path: Path,
) -> None:
    data = f"gsm8k={write(tmp_path / 'test.jsonl', *sums(0, 8))}"
    made = items("gsm8k/shots", data)
    assert [item.id for item in made] == ["0005", "0006", "0007"]
    assert {item.context for item in made} == {made[0].context}
    assert "What is 5" not in made[0].context
    assert made[0].references == ("1005",)
    assert made[0].about["shots_from"] == "gsm8k"
    assert items("gsm8k/shots", data, limit=2) == made[:2]
    with pytest.raises(EvaluationError, match="holds 4 records; 5 are needed"):
        items("gsm8k/shots", f"gsm8k={write(tmp_path / 'few.jsonl', *sums(0, 4))}")


@pytest.mark.parametrize(
    ("said", "strict", "flexible"),
    [
        ("1000 + 5 = 1005\n#### 1005", 1.0, 1.0),
        ("#### $1,005", 0.0, 1.0),  # a dollar is no number after ####
        ("#### 1,005.", 1.0, 1.0),
        ("#### 5\n#### 1005", 0.0, 1.0),  # the first counts, and the last
        ("It is $1,005.", 0.0, 1.0),
        ("It is 1005, which is 5 more.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_gsm8k_finds_the_answer_in_both_ways(
    said: str, strict: float, flexible: float, tmp_path: Path
) -> None:
    (item, *_) = items("gsm8k/whole", f"gsm8k={write(tmp_path / 'test.jsonl', *sums(0, 7))}")
    assert score("gsm8k/whole", item, said) == {"score": strict, "flexible": flexible}


def test_gsm8k_refuses_an_answer_without_its_mark(tmp_path: Path) -> None:
    records = [*sums(0, 5), {"question": "What?", "answer": "18"}]
    with pytest.raises(EvaluationError, match="record 6 of --data gsm8k has an 'answer' without"):
        items("gsm8k/whole", f"gsm8k={write(tmp_path / 'test.jsonl', *records)}")


# --- SQuAD


def test_squad_keeps_questions_about_one_context_together(tmp_path: Path) -> None:
    asked = [("b", "Q0"), ("a", "Q1"), ("b", "Q2"), ("c", "Q3"), ("a", "Q4")]
    records = [{"context": c, "question": q, "answers": ["x"]} for c, q in asked]
    data = f"squad={write(tmp_path / 'dev.jsonl', *records)}"
    made = items("squad", data)
    contexts = "".join(item.context for item in made)
    assert sorted(contexts) == list("aabbc")
    assert "aa" in contexts
    assert "bb" in contexts
    assert {item.id: item.after for item in made} == {
        f"000{n}": f"\n\nAnswer with a few words of the text: Q{n}" for n in range(5)
    }
    assert items("squad", data, limit=3) == made[:3]
    orders = {tuple(i.context for i in items("squad", data, seed=seed)) for seed in range(8)}
    assert len(orders) > 1


def test_squad_reads_its_own_file_and_the_hubs_columns(tmp_path: Path) -> None:
    answers = [{"text": "Ines", "answer_start": 0}, {"text": "Ines", "answer_start": 9}]
    asked = [
        {"question": "Who?", "answers": answers},
        {"question": "Why?", "answers": [], "is_impossible": True},
    ]
    own = {"version": "2.0", "data": [{"paragraphs": [{"context": "Ines.", "qas": asked}]}]}
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(own), encoding="utf-8")
    (item,) = items("squad", f"squad={path}")  # the question without an answer is left out
    assert (item.context, item.references, item.id) == ("Ines.", ("Ines",), "0000")
    hub = {"context": "Ines.", "question": "Who?", "answers": {"text": ["Ines"]}}
    (same,) = items("squad", f"squad={write(tmp_path / 'hub.jsonl', hub)}")
    assert same == item
    assert score("squad", item, "the Ines!") == {"score": 1.0, "exact": 1.0}
    assert score("squad", item, "Ines signed") == {"score": pytest.approx(2 / 3), "exact": 0.0}


def test_squad_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    no_list = write(tmp_path / "a.jsonl", {"context": "c", "question": "q", "answers": "x"})
    with pytest.raises(EvaluationError, match="record 1 of --data squad has no list 'answers'"):
        items("squad", f"squad={no_list}")
    no_answer = write(tmp_path / "b.jsonl", {"context": "c", "question": "q", "answers": []})
    with pytest.raises(EvaluationError, match="no answerable question"):
        items("squad", f"squad={no_answer}")
    no_context = write(tmp_path / "c.jsonl", {"question": "q", "answers": ["x"]})
    with pytest.raises(EvaluationError, match="has no text 'context'"):
        items("squad", f"squad={no_context}")
    foreign = write(tmp_path / "d.jsonl", {"data": [{"title": "no paragraphs"}]})
    with pytest.raises(EvaluationError, match="has no list 'answers'"):
        items("squad", f"squad={foreign}")


# --- Key and value


def pairs_record(count: int, asked: int) -> dict[str, Any]:
    pairs = {f"key-{n}": f"value-{n}" for n in range(count)}
    return {
        "context": json.dumps(pairs),
        "question": f"key-{asked}",
        "answers": [f"value-{asked}"],
    }


def test_key_value_lays_out_pairs_and_question_as_the_original(tmp_path: Path) -> None:
    data = f"key_value={write(tmp_path / 'kv.jsonl', pairs_record(3, 1))}"
    (item,) = items("key_value", data, length=10_000)
    assert prompt(item) == (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        'JSON data:\n{"key-0": "value-0",\n "key-1": "value-1",\n "key-2": "value-2"}\n\n'
        'Key: "key-1"\nCorresponding value:'
    )
    assert json.loads(item.context)["key-1"] == item.references[0]
    assert score("key_value", item, ' It is "VALUE-1".') == {"score": 1.0}
    assert score("key_value", item, "value-2") == {"score": 0.0}
    own = {
        "ordered_kv_records": [[f"key-{n}", f"value-{n}"] for n in range(3)],
        "key": "key-1",
        "value": "value-1",
    }
    data = f"key_value={write(tmp_path / 'own.jsonl', own)}"
    assert items("key_value", data, length=10_000) == [item]


def test_key_value_keeps_as_many_pairs_as_the_length_allows(tmp_path: Path) -> None:
    records = [pairs_record(40, asked) for asked in (0, 17, 39)]
    data = f"key_value={write(tmp_path / 'kv.jsonl', *records)}"
    made = items("key_value", data, length=105)
    for item, asked in zip(made, (0, 17, 39), strict=True):
        kept = list(json.loads(item.context))
        assert f"key-{asked}" in kept
        assert kept == sorted(kept, key=lambda key: int(key.split("-")[1]))
        assert item.about == {"pairs": len(kept), "position": kept.index(f"key-{asked}")}
        used = count_words(prompt(item)) + item.max_new_tokens
        assert 105 - 2 < used <= 105  # a pair is two words
    assert items("key_value", data, length=105, limit=2) == made[:2]
    assert items("key_value", data, length=105, seed=7) != made
    whole = items("key_value", data, length=10_000)
    assert [item.about["pairs"] for item in whole] == [40] * 3
    with pytest.raises(EvaluationError, match="has no room for two pairs of record 1"):
        items("key_value", data, length=85)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"context": "{not json"}, "'context' that is not JSON"),
        ({"context": '{"a": 1, "key-1": "value-1"}'}, "a key or value that is no text"),
        ({"context": '{"key-1": "value-1"}'}, "fewer than two pairs"),
        ({"context": "7"}, "pairs that are not of a key and a value"),
        ({"question": "key-9"}, "asks for the key 'key-9'"),
        ({"answers": ["value-0"]}, "asks for the key 'key-1'"),
    ],
)
def test_key_value_refuses_a_malformed_record(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "kv.jsonl", pairs_record(3, 1) | changes)
    with pytest.raises(EvaluationError, match=problem):
        items("key_value", f"key_value={path}", length=400)


# --- Rows of the paper's own evaluation


def lclm_row(prompt: Any, category: str, answers: list[str], **extra: Any) -> dict[str, Any]:
    truth = {"ground_truth": {"answers": answers}}
    return {"prompt": prompt, "category": category, "extra_info": truth | extra}


USER = (
    "<|im_start|>user\nRead.\n<|memory_start|>Long <text>.\n<|memory_end|>\nWhat?<|im_end|>\n"
    "<|im_start|>assistant\nThe number is"
)


def lclm(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> list[Item]:
    return items("lclm_eval", f"lclm_eval={write(tmp_path / 'rows.jsonl', *rows)}", **options)


def test_lclm_rows_are_split_at_their_span_and_freed_of_chat_markup(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<|memory_start|>Long.<|memory_end|>What?"},
    ]
    rows = [
        lclm_row(USER, "memwrap/ruler/niah_single_1_4096", ["12", "34"]),
        lclm_row(messages, "qa_2_8192", ["x"]),
        lclm_row("<|memory_start|>Sum.<|memory_end|>", "gsm8k", ["18"]),
    ]
    first, second, third = lclm(tmp_path, *rows)
    assert (first.before, first.context, first.after) == ("Read.\n", "Long <text>.\n", "\nWhat?")
    assert first.prefix == "The number is"
    assert first.references == ("12", "34")
    assert first.max_new_tokens == 128
    assert (second.before, second.context, second.after) == ("Be brief.\n\n", "Long.", "What?")
    assert (second.prefix, second.max_new_tokens) == ("", 32)
    assert (third.before, third.context, third.after) == ("", "Sum.", "")
    assert lclm(tmp_path, *rows, limit=2) == [first, second]


@pytest.mark.parametrize(
    ("category", "extra", "answers", "said", "wanted"),
    [
        ("memwrap/ruler/niah_multivalue_4096", {}, ["12", "34"], "It is 12.", {"score": 0.5}),
        ("ruler/qa_1_4096", {}, ["12", "34"], "It is 12.", {"score": 1.0}),
        (
            "anything",
            {"scoring_function": "ruler_string_match_part"},
            ["no", "yes"],
            "Yes!",
            {"score": 1.0},
        ),
        ("gsm8k", {}, ["18"], "So it is 18.", {"score": 1.0, "strict": 0.0}),
        ("memwrap/longhealth5", {}, ["C"], "The correct answer is (C).", {"score": 1.0}),
        ("memwrap/longhealth5", {}, ["C"], "C. illness c", {"score": 1.0}),
        ("memwrap/longhealth5", {}, ["C"], "Clearly B", {"score": 0.0}),
        ("longhealth5", {}, ["Lung cancer"], "It is lung cancer.", {"score": 1.0}),
        ("longhealth5", {}, ["cancer"], "Cancerous", {"score": 0.0}),
        ("memwrap/longbench/triviaqa", {}, ["yes"], "yes\nno", {"score": 1.0}),
        ("passage_count", {}, ["7"], "7 or 8", {"score": 0.5}),
        ("trec", {"all_classes": ["City", "Dog"]}, ["City"], "City, Dog", {"score": 0.5}),
        ("trec", {}, ["City"], "City, Dog", {"score": 1.0}),
    ],
)
def test_lclm_rows_are_scored_by_what_they_declare_or_are(
    category: str,
    extra: dict[str, Any],
    answers: list[str],
    said: str,
    wanted: dict[str, float],
    tmp_path: Path,
) -> None:
    (item,) = lclm(tmp_path, lclm_row(USER, category, answers, **extra))
    assert score("lclm_eval", item, said) == wanted
    json.dumps(dict(item.about))  # it goes into rows


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (lclm_row("No span at all", "gsm8k", ["1"]), "has 0 spans in its user's turn, not one"),
        (
            lclm_row(USER.replace("Read.", "<|memory_start|>a<|memory_end|>"), "gsm8k", ["1"]),
            "has 2 spans",
        ),
        (
            lclm_row(f"{USER}<|im_end|>\n{USER}", "gsm8k", ["1"]),
            "has the turns user, assistant, user",
        ),
        (lclm_row(7, "gsm8k", ["1"]), "has no 'prompt' that is a text or messages"),
        (lclm_row(USER, "gsm8k", []), "has no answers"),
        (lclm_row(USER, "poems", ["1"]), "neither of which says how to score it"),
        ({"prompt": USER, "extra_info": "{"}, "an 'extra_info' that is not JSON"),
    ],
)
def test_lclm_refuses_a_row_it_cannot_ask_or_score(
    row: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=problem):
        lclm(tmp_path, row)


# --- All of them


def test_missing_data_is_one_error_that_names_its_option() -> None:
    for name, option in [
        ("longbench/qasper", "longbench.qasper"),
        ("longbench2", "longbench2"),
        ("longhealth", "longhealth"),
        ("gsm8k/whole", "gsm8k"),
        ("gsm8k/shots", "gsm8k"),
        ("squad", "squad"),
        ("key_value", "key_value"),
        ("lclm_eval", "lclm_eval"),
    ]:
        with pytest.raises(EvaluationError, match=f"give --data {option}=PATH"):
            items(name, length=1024)


def test_an_empty_file_and_a_record_that_is_no_object_are_refused(tmp_path: Path) -> None:
    empty, odd = write(tmp_path / "empty.jsonl"), write(tmp_path / "odd.jsonl", ["a", "list"])
    for name in ("longbench.qasper", "longbench2", "longhealth", "gsm8k", "squad", "key_value"):
        task = {"longbench.qasper": "longbench/qasper", "gsm8k": "gsm8k/whole"}.get(name, name)
        with pytest.raises(EvaluationError, match=f"--data {name} holds no record"):
            items(task, f"{name}={empty}", length=1024)
        with pytest.raises(EvaluationError, match=f"record 1 of --data {name} is no object"):
            items(task, f"{name}={odd}", length=1024)


def test_ids_and_items_do_not_depend_on_the_limit(tmp_path: Path) -> None:
    records = [longbench_record(input=f"Q{n}") for n in range(4)]
    made = longbench("qasper", tmp_path, *records)
    assert [item.id for item in made] == ["0000", "0001", "0002", "0003"]
    assert longbench("qasper", tmp_path, *records, limit=3) == made[:3]
    assert longhealth(tmp_path, limit=3) == longhealth(tmp_path)[:3]
