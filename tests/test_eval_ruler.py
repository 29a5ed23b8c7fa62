"""RULER: each task's defining properties, its lengths, its answers, its templates, its scorers."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruler_solvers import solve

import octavo
import octavo_evals
from octavo.errors import EvaluationError, InputError, MissingExtraError
from octavo_evals.task import DataFiles, Item, Reply, Request, prompts
from octavo_evals.tasks import TASKS, find_tasks, ruler, ruler_needles, ruler_words
from octavo_evals.tasks.ruler_needles import Essays, shipped_essays

NAMES = [name for name in TASKS if name.startswith("ruler/")]
NEEDLES = [name for name in NAMES if "niah" in name]
ESSAYS = [f"ruler/niah_{n}" for n in ("single_2", "single_3", "multikey_1", "multivalue")] + [
    "ruler/niah_multiquery"
]
QUESTIONS = ["ruler/qa_1", "ruler/qa_2"]


def count(text: str) -> int:
    """Count words and marks, each as one token."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def squad_articles() -> list[dict[str, Any]]:
    """SQuAD's official form: 20 articles of 8 paragraphs; every third question is impossible."""
    return [
        {
            "title": f"Town {a}",
            "paragraphs": [
                {
                    "context": f"Mayor number {a * 8 + p} of town {a} was born in B{a}x{p}. "
                    + "The river ran past the mill and the people said so. " * 4,
                    "qas": [
                        {
                            "question": f"Where was mayor {a * 8 + p} born?",
                            "answers": [{"text": f"B{a}x{p}"}] * 2,
                            "is_impossible": p % 3 == 2,
                        }
                    ],
                }
                for p in range(8)
            ],
        }
        for a in range(20)
    ]


def hotpot_records(is_hub: bool = False) -> list[dict[str, Any]]:
    """HotpotQA's forms: 30 questions, each with 2 supporting and 8 other paragraphs."""
    records = []
    for q in range(30):
        pairs = [
            [f"Title {q}-{p}", [f"Fact {q}-{p} is F{q}y{p}.", " It is well known to all."]]
            for p in range(10)
        ]
        facts: Any = [[f"Title {q}-3", 0], [f"Title {q}-7", 0]]
        context: Any = pairs
        if is_hub:
            facts = {"title": [name for name, _ in facts], "sent_id": [0, 0]}
            context = {"title": [t for t, _ in pairs], "sentences": [s for _, s in pairs]}
        records.append(
            {
                "question": f"What is fact {q}-7?",
                "answer": f"F{q}y7",
                "context": context,
                "supporting_facts": facts,
            }
        )
    return records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFiles:
    folder = tmp_path_factory.mktemp("ruler")
    squad, hotpot = folder / "squad.json", folder / "hotpot.json"
    squad.write_text(json.dumps({"version": "v2.0", "data": squad_articles()}))
    hotpot.write_text(json.dumps(hotpot_records()))
    return DataFiles([f"ruler.squad={squad}", f"ruler.hotpot={hotpot}"])


def ask(
    name: str,
    length: int | None,
    data: DataFiles,
    *,
    limit: int | None = 3,
    seed: int = 42,
    counter: Callable[[str], int] = count,
) -> list[Item]:
    (task,) = find_tasks([name])
    request = Request(
        length=length,
        limit=limit,
        seed=seed,
        count_tokens=counter,
        max_prompt_tokens=10**6,
        data=data,
    )
    return list(task.items(request))


def tokens(item: Item, counter: Callable[[str], int] = count) -> int:
    text = item.before + item.context + item.after + item.prefix
    return counter(text) + item.max_new_tokens


def seen(item: Item) -> str:
    """Return the prompt as a chat model sees it."""
    turn = item.before + item.context + item.after
    return f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n{item.prefix}"


def answers_of(items: list[Item]) -> dict[str, tuple[str, ...]]:
    return {item.after.rpartition("Question: ")[2]: item.references for item in items}


def score(name: str, item: Item, text: str) -> dict[str, float]:
    (task,) = find_tasks([name])
    return dict(task.score(item, Reply(text=text)))


def test_there_are_thirteen_tasks_with_a_length_scored_by_matching() -> None:
    tasks = find_tasks(["ruler"])
    assert [task.name for task in tasks] == NAMES
    assert len(tasks) == 13
    assert all(task.has_length and task.metric == "match" for task in tasks)


# What one step of a task adds at most, in tokens as counted here: short lengths, then from 4096.
LINE, NEEDLE, UUID_NEEDLE = count(ruler.NOISE), 17, 31
STEPS = {
    "ruler/niah_single_1": (5 * LINE, 25 * LINE),
    "ruler/niah_multikey_2": (5 * NEEDLE, 25 * NEEDLE),
    "ruler/niah_multikey_3": (5 * UUID_NEEDLE, 25 * UUID_NEEDLE),
    "ruler/vt": (5 * LINE, 10 * LINE),
    "ruler/cwe": (10 * 5, 10 * 3 * 4),
    "ruler/fwe": (1024 // 32 * 3, 4096 // 32 * 3),
    "ruler/qa_1": (70, 10 * 70),
    "ruler/qa_2": (35, 10 * 35),
    **dict.fromkeys(ESSAYS, (25 * 1.5, 500 * 1.5)),
}


@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("name", NAMES)
def test_an_item_fills_its_length_to_within_a_step(name: str, length: int, data: DataFiles) -> None:
    items = ask(name, length, data, limit=4)
    assert len(items) == 4
    for item in items:
        assert length - STEPS[name][length >= 4096] < tokens(item) <= length


@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("name", NAMES)
def test_a_plain_program_finds_the_answers_in_the_prompt(
    name: str, length: int, data: DataFiles
) -> None:
    items = ask(name, length, data, limit=5)
    for item in items:
        answers = solve(seen(item), answers_of(items))
        assert sorted(answers) == sorted(item.references)
        assert score(name, item, ", ".join(answers))["score"] == 1.0
        assert score(name, item, ", ".join(answers))["strict"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_context_holds_the_answers_and_the_rest_of_the_prompt_does_not(
    name: str, data: DataFiles
) -> None:
    for item in ask(name, 1024, data):
        around = item.before + item.after + item.prefix
        assert all(one in item.context for one in item.references)
        if name != "ruler/cwe":  # whose worked example may name the same common words
            assert not any(one in around for one in item.references)


@pytest.mark.parametrize("name", NAMES)
def test_items_are_the_same_again_and_a_limit_only_cuts(name: str, data: DataFiles) -> None:
    long, short = ask(name, 1024, data, limit=4), ask(name, 1024, data, limit=2)
    assert long[:2] == short
    assert [item.id for item in long] == sorted({item.id for item in long})
    assert len({item.context for item in long}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_makes_other_items(name: str, data: DataFiles) -> None:
    one, other = (ask(name, 1024, data, limit=2, seed=seed) for seed in (42, 43))
    assert all(a.context != b.context for a, b in zip(one, other, strict=True))


def test_items_stay_what_they_were(data: DataFiles) -> None:
    """A change here changes every published row: such a change must be meant."""
    (item,) = ask("ruler/vt", 1024, data, limit=1)
    assert item.references == ("UJOPL", "DXWCM", "OXBHW", "RGDCR", "BTKGF")
    (item,) = ask("ruler/fwe", 1024, data, limit=1)
    assert item.references == ("hyzlak", "ywkqad", "znuzyl")
    (item,) = ask("ruler/niah_single_3", 1024, data, limit=1)
    assert item.references == ("5a58c2e5-eef6-4696-aaa7-e2c67640708a",)


def test_without_a_limit_there_are_five_hundred_items(data: DataFiles) -> None:
    assert len(ask("ruler/niah_single_1", 512, data, limit=None)) == 500


@pytest.mark.parametrize("name", NAMES)
def test_a_length_that_is_too_short_is_one_clear_error(name: str, data: DataFiles) -> None:
    with pytest.raises(
        EvaluationError, match=rf"{name} cannot make items of 64 tokens.*at least (\d+)"
    ) as caught:
        ask(name, 64, data)
    least = int(str(caught.value).split()[-1])
    assert 64 < least < 512
    # Most items are drawn with longer words than the shortest of twenty draws.
    assert tokens(ask(name, least + 60, data, limit=1)[0]) <= least + 60


def test_the_whole_length_is_used_where_a_word_is_a_token(data: DataFiles) -> None:
    def counter(text: str) -> int:
        return len(text.split())

    (item,) = ask("ruler/niah_single_2", 1000, data, limit=1, counter=counter)
    assert tokens(item, counter) == 1000


def test_an_item_that_does_not_fit_is_drawn_again(data: DataFiles) -> None:
    with pytest.raises(EvaluationError) as caught:
        ask("ruler/cwe", 1, data, counter=len)
    least = int(str(caught.value).split()[-1])
    # Characters as tokens: a draw of longer words takes more than the shortest of twenty.
    assert len(ask("ruler/cwe", least + 60, data, limit=20, counter=len)) == 20


def test_no_length_is_an_error(data: DataFiles) -> None:
    with pytest.raises(EvaluationError, match="give --length"):
        ask("ruler/vt", None, data)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_tokenizer_counts_as_well(name: str, model: octavo.Model, data: DataFiles) -> None:
    def counter(text: str) -> int:
        return len(model.prompts.text_ids(text))

    for item in ask(name, 6000, data, limit=1, counter=counter):
        assert 6000 * 0.6 < tokens(item, counter) <= 6000


@pytest.mark.parametrize("name", ["ruler/niah_single_2", "ruler/fwe", "ruler/vt"])
def test_a_long_item_is_fitted_in_few_counts(name: str, data: DataFiles) -> None:
    counted: list[int] = []

    def counter(text: str) -> int:
        counted.append(len(text))
        return len(text) // 4

    first = ask(name, 131072, data, limit=1, counter=counter)
    assert tokens(first[0], counter) > 120_000
    num_long = sum(size > 10**5 for size in counted)
    assert num_long < 25
    counted.clear()
    ask(name, 131072, data, limit=3, counter=counter)
    assert sum(size > 10**5 for size in counted) < num_long + 10


NUMBER_ONE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n{context}\n"
    "What is the special magic number for {query} mentioned in the provided text?"
    "| The special magic number for {query} mentioned in the provided text is"
)
NUMBERS = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n{context}\n"
    "What are all the special magic numbers for {query} mentioned in the provided text?"
    "| The special magic numbers for {query} mentioned in the provided text are"
)
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text above."
    "| Answer: According to the chain(s) of variable assignment in the text above, 5 variables are "
    "assigned the value {query}, they are: "
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
    "| Answer: The top 10 words that appear most often in the list are:"
)
FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
    "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
    "text?| Answer: According to the coded text above, the three most frequently appeared words "
    "are:"
)
QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}| Answer:"
)
TEMPLATES = {
    "ruler/niah_single_3": NUMBER_ONE.replace("number", "uuid"),
    "ruler/niah_multikey_3": NUMBER_ONE.replace("number", "uuid"),
    "ruler/niah_multivalue": NUMBERS,
    "ruler/niah_multiquery": NUMBERS,
    "ruler/vt": VT,
    "ruler/cwe": CWE,
    "ruler/fwe": FWE,
    "ruler/qa_1": QA,
    "ruler/qa_2": QA,
}
QUERY = re.compile(
    r"(?:for (.+?) mentioned in|assigned the value (\d+) in the text|Question: (.+\?))"
)
NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_the_originals_to_the_letter(name: str, data: DataFiles) -> None:
    for item in ask(name, 1024, data):
        found = QUERY.search(item.after)
        query = next(filter(None, found.groups()), "") if found else ""
        template = TEMPLATES.get(name, NUMBER_ONE).replace("{query}", query)
        turn, prefix = template.replace("{context}", item.context).split("|")
        example, whole = "", item.before + item.context + item.after
        if name in ("ruler/vt", "ruler/cwe"):
            cut = whole.rindex(turn[:20])
            example, whole = whole[:cut], whole[cut:]
            assert example.endswith("\n")
        assert whole == turn
        assert item.prefix == prefix
        assert bool(example) == (name in ("ruler/vt", "ruler/cwe"))
        assert item.max_new_tokens == NEW_TOKENS[re.split("[/_]", name)[1]]
        assert item.is_chat
        assert not item.stop
        assert item.target is None


# Hay; kinds of key and value; needles of the asked keys, of others; the pattern of a value.
ASKED = {
    "ruler/niah_single_1": ("noise", 1, 0, r"[1-9]\d{6}"),
    "ruler/niah_single_2": ("essays", 1, 0, r"[1-9]\d{6}"),
    "ruler/niah_single_3": ("essays", 1, 0, r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "ruler/niah_multikey_1": ("essays", 1, 3, r"[1-9]\d{6}"),
    "ruler/niah_multikey_2": ("needles", 1, None, r"[1-9]\d{6}"),
    "ruler/niah_multikey_3": ("needles", 1, None, r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "ruler/niah_multivalue": ("essays", 4, 0, r"[1-9]\d{6}"),
    "ruler/niah_multiquery": ("essays", 4, 0, r"[1-9]\d{6}"),
}


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_as_many_as_the_task_has_and_each_is_there_once(
    name: str, data: DataFiles
) -> None:
    hay, num_asked, num_others, pattern = ASKED[name]
    for item in ask(name, 1024, data, limit=5):
        needles = re.findall(r"One of the special magic \w+ for .+? is: \S+\.", item.context)
        asked = [n for n in needles if n[:-1].rsplit(" ", 1)[1] in item.references]
        assert len(asked) == len(set(asked)) == len(item.references) == num_asked
        others = len(needles) - num_asked
        assert others == (item.about["size"] if num_others is None else num_others)
        assert all(re.fullmatch(pattern, value) for value in item.references)
        rest = re.sub(r" ?One of the special magic \w+ for .+? is: \S+\.", "", item.context)
        if hay == "noise":
            lines = [line for line in rest.split("\n") if line]
            assert lines == [ruler.NOISE] * item.about["size"]
        elif hay == "essays":
            words = shipped_essays().words[: item.about["size"]]
            assert rest.split() == words
        else:
            assert not rest.strip()


def test_a_query_of_several_keys_lists_them_and_asks_for_their_values_in_that_order(
    data: DataFiles,
) -> None:
    for item in ask("ruler/niah_multiquery", 1024, data):
        query = QUERY.search(item.after)
        assert query is not None
        keys = re.fullmatch(r"(.+), (.+), (.+), and (.+)", query[1])
        assert keys is not None
        values = [
            re.findall(rf"for {re.escape(key)} is: (\d+)\.", item.context) for key in keys.groups()
        ]
        assert tuple(itertools.chain(*values)) == item.references


def test_needles_are_hidden_in_any_order(data: DataFiles) -> None:
    items = ask("ruler/niah_multivalue", 1024, data, limit=20)
    in_order = [item.about["depths"] == sorted(item.about["depths"]) for item in items]
    assert sum(in_order) < 10


@pytest.mark.parametrize("name", NEEDLES)
def test_depths_say_where_the_needles_lie(name: str, data: DataFiles) -> None:
    depths = []
    for item in ask(name, 1024, data, limit=20):
        for value, depth in zip(item.references, item.about["depths"], strict=True):
            assert item.context.index(value) / len(item.context) == pytest.approx(depth, abs=0.08)
            depths.append(depth)
    assert min(depths) < 0.3
    assert max(depths) > 0.7


def test_essays_are_the_shipped_ones_unless_given_and_rows_say_which(tmp_path: Path) -> None:
    (item,) = ask("ruler/niah_single_2", 1024, DataFiles(), limit=1)
    assert item.about["haystack"] == "shipped"
    assert item.context.lstrip().startswith("I cannot understand the people who take literature")
    (tmp_path / "a.txt").write_text("Only a few\n\n words. And then  ")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "no more."}))
    given = DataFiles([f"ruler.essays={tmp_path}"])
    (item,) = ask("ruler/niah_single_2", 1024, given, limit=1)
    assert item.about["haystack"] == "given"
    hay = re.sub(r" ?One of the special magic numbers for .+? is: \d+\.", "", item.context)
    assert hay.split()[:16] == "Only a few words. And then no more.".split() * 2


@pytest.mark.parametrize(
    ("text", "match"), [('{"body": "x"}', "no text 'text'"), ('{"text": ""}', "no words")]
)
def test_essays_without_text_are_refused(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(EvaluationError, match=match):
        ask("ruler/niah_single_2", 1024, DataFiles([f"ruler.essays={tmp_path / 'a.jsonl'}"]))


def test_the_shipped_essays_are_clean_prose_and_small() -> None:
    folder = Path(octavo_evals.__file__).parent / "assets" / "haystack"
    text = (folder / "essays.txt").read_text(encoding="utf-8")
    assert len(text.encode()) <= 700_000
    assert len(shipped_essays().words) > 100_000
    assert not re.search(r"gutenberg|copyright|https?:|[_*#\[\]\x80-\x9f]|  ", text, re.IGNORECASE)
    assert "public domain" in (folder / "README.md").read_text(encoding="utf-8")


def test_sentences_end_where_sentences_end() -> None:
    essays = Essays(
        'Mr. Hume said "No." Then J. S. Mill wrote on. It cost 3.5 francs, i.e. little! (So what?) '
        "He went, e.g. home... and slept."
    )
    assert essays.first(len(essays.words)) == [
        'Mr. Hume said "No."',
        "Then J. S. Mill wrote on.",
        "It cost 3.5 francs, i.e. little!",
        "(So what?)",
        "He went, e.g. home... and slept.",
    ]
    assert essays.first(6) == ['Mr. Hume said "No."', "Then J."]
    assert essays.first(4) == ['Mr. Hume said "No."']


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_vt_shows_a_worked_example_with_its_answer_before_the_question(
    length: int, data: DataFiles
) -> None:
    examples = []
    for item in ask("ruler/vt", length, data):
        example = item.before.removesuffix(f"\n{prompts()['chain']['before']}")
        assert example != item.before
        question, _, answer = example.rpartition("they are: ")
        names = answer.split()
        assert example.endswith(f" {' '.join(names)}\n")
        assert [len(name) for name in names] == [3] * 5
        assert sorted(solve(question)) == sorted(names)
        assert count(example) <= min(500, length // 4)
        assert count(example) > min(500, length // 4) - LINE - 15
        examples.append(example)
    blank = {re.sub(r"\b[A-Z]{3}\b|\d{5}", "_", re.sub("VAR", "var", e)) for e in examples}
    assert len(set(examples)) == 3
    assert len(blank) == 1


def test_vt_hides_one_chain_in_order_among_noise_lines(data: DataFiles) -> None:
    for item in ask("ruler/vt", 1024, data):
        lines = item.context.split("\n")
        chain = [line for line in lines if line != ruler.NOISE]
        names = item.references
        assert len(lines) - len(chain) == item.about["size"]
        assert re.fullmatch(rf"VAR {names[0]} = [1-9]\d{{4}}", chain[0])
        assert chain[1:] == [f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names)]
        assert all(re.fullmatch("[A-Z]{5}", name) for name in names)
        assert lines[-1] == ruler.NOISE


# Length -> the example's common words, their repeats, the others, theirs; the list's repeats.
CWE_RULES = {1024: (10, 2, 5, 1, 3, 1), 2048: (10, 3, 10, 1, 6, 1), 4096: (10, 10, 30, 3, 30, 3)}


@pytest.mark.parametrize("length", CWE_RULES)
def test_cwe_repeats_words_as_the_length_has_it_and_shows_a_worked_example(
    length: int, data: DataFiles
) -> None:
    def repeats(listed: str) -> Counter[int]:
        numbers = [int(n) for n in re.findall(r"(?:^| )(\d+)\. ", listed)]
        assert numbers == list(range(1, len(numbers) + 1))
        return Counter(Counter(re.split(r"(?:^| )\d+\. ", listed)[1:]).values())

    shown_common, shown_often, shown_rest, shown_seldom, often, seldom = CWE_RULES[length]
    for item in ask("ruler/cwe", length, data):
        assert repeats(item.context) == {often: 10, seldom: item.about["size"] - 10}
        example = item.before.split("\n")
        assert repeats(example[1]) == {shown_often: shown_common, shown_seldom: shown_rest}
        prefix, answer = example[2][example[2].index(" Answer:") :].split(":", 2)[1:]
        assert prefix + ":" == item.prefix.removeprefix(" Answer:")
        found = solve("\n".join(example[:2]) + "\nQuestion:")
        assert sorted(re.split(r" \d+\. ", answer)[1:]) == sorted(found)


def test_cwe_makes_pairs_of_words_when_there_are_too_few(
    monkeypatch: pytest.MonkeyPatch, data: DataFiles
) -> None:
    few = (tuple("abcdefgh"), tuple("ijklmnopqr"), tuple("stuvwxyz"))
    monkeypatch.setattr(ruler_words, "word_lists", lambda: few)
    (item,) = ask("ruler/cwe", 1024, data, limit=1)
    words = re.split(r"(?:^| )\d+\. ", item.context)[1:]
    assert len(set(words)) == item.about["size"] > 26
    assert all(re.fullmatch("[a-z](-[a-z])?", word) for word in words)


@pytest.mark.parametrize("length", [256, 512, 1024, 4096])
def test_fwe_counts_fall_with_the_square_of_the_rank(length: int, data: DataFiles) -> None:
    for item in ask("ruler/fwe", length, data, limit=10):
        counts = Counter(item.context.split())
        ranked = [number for _, number in counts.most_common()]
        size = item.about["size"]
        vocabulary = max(4, (length - 50) // 50)
        expected = [int(size * 6 / 9.869604401089358 / k**2) for k in range(1, vocabulary + 1)]
        assert ranked == [number for number in expected if number]
        assert counts["..."] == ranked[0]
        assert [counts[word] for word in item.references] == ranked[1:4]
        assert ranked[1] > ranked[2] > ranked[3] > (ranked[4] if len(ranked) > 4 else 0)
        assert all(re.fullmatch("[a-z]{6}", word) for word in counts if word != "...")


def test_fwe_has_three_clear_winners_down_to_the_shortest_length(data: DataFiles) -> None:
    num_made = 0
    for length in range(120, 330, 10):
        try:
            (item,) = ask("ruler/fwe", length, data, limit=1)
        except EvaluationError:
            continue
        num_made += 1
        ranked = [number for _, number in Counter(item.context.split()).most_common()]
        assert ranked[3] > (ranked[4] if len(ranked) > 4 else 0)
    assert 5 < num_made < 20


@pytest.mark.parametrize("name", QUESTIONS)
def test_documents_are_numbered_and_different_and_the_gold_one_may_lie_anywhere(
    name: str, data: DataFiles
) -> None:
    places = []
    for item in ask(name, 1024, data, limit=20):
        parts = re.split(r"(?:^|\n\n)Document (\d+):\n", item.context)[1:]
        numbers, texts = parts[::2], parts[1::2]
        assert numbers == [str(n + 1) for n in range(item.about["size"])]
        assert len(set(texts)) == len(texts)
        (place,) = [at for at, text in enumerate(texts) if item.references[0] + "." in text]
        places.append(place / len(texts))
    assert min(places) < 0.3
    assert max(places) >= 0.6


def test_squad_asks_the_answerable_questions_in_order_and_adds_its_article_first(
    data: DataFiles,
) -> None:
    items = ask("ruler/qa_1", 400, data, limit=8)
    asked = [int(item.after.split()[-2]) for item in items]
    assert asked == [0, 1, 3, 4, 6, 7, 8, 9]
    assert [item.id for item in items] == [f"{n:04}" for n in range(8)]
    for item, number in zip(items, asked, strict=True):
        assert set(re.findall(r"of town (\d+) ", item.context)) == {str(number // 8)}
    (item,) = ask("ruler/qa_1", 1024, data, limit=1)
    towns = Counter(re.findall(r"of town (\d+) ", item.context))
    assert towns["0"] == 8
    assert len(towns) > 1


def test_hotpot_keeps_its_ten_documents_or_at_least_the_supporting_ones(data: DataFiles) -> None:
    (item,) = ask("ruler/qa_2", 4096, data, limit=1)
    assert {f"Fact 0-{p} is" in item.context for p in range(10)} == {True}
    (item,) = ask("ruler/qa_2", 200, data, limit=1)
    assert item.about["size"] < 10
    assert "Title 0-3\nFact 0-3" in item.context
    assert "Title 0-7\nFact 0-7 is F0y7. It is" in item.context


def flat_squad() -> list[dict[str, Any]]:
    return [
        {
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": [answer["text"] for answer in asked["answers"]],
            "source": f"squad/{article['title']}",
            "is_impossible": asked["is_impossible"],
        }
        for article in squad_articles()
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def hub_squad() -> list[dict[str, Any]]:
    return [
        {
            "title": row["source"],
            "context": row["context"],
            "question": row["question"],
            "answers": {"text": [] if row["is_impossible"] else row["answers"]},
        }
        for row in flat_squad()
    ]


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("ruler/qa_1", flat_squad()),
        ("ruler/qa_1", hub_squad()),
        ("ruler/qa_1", squad_articles()),
        ("ruler/qa_2", hotpot_records(is_hub=True)),
    ],
)
def test_every_form_of_the_data_makes_the_same_items(
    name: str, records: list[Any], data: DataFiles, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in records))
    place = "ruler.squad" if name == "ruler/qa_1" else "ruler.hotpot"
    assert ask(name, 1024, DataFiles([f"{place}={file}"])) == ask(name, 1024, data)


def test_a_question_whose_document_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    rows = flat_squad()[:4]
    rows[0]["context"] += "More and more. " * 400
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = DataFiles([f"ruler.squad={file}"])
    assert [item.id for item in ask("ruler/qa_1", 512, given)] == ["0001", "0002"]
    assert ask("ruler/qa_1", 4096, given)[0].id == "0000"


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_need_their_data_in_a_known_form(name: str, tmp_path: Path) -> None:
    place = "ruler.squad" if name == "ruler/qa_1" else "ruler.hotpot"
    with pytest.raises(EvaluationError, match=f"give --data {place}=PATH"):
        ask(name, 1024, DataFiles())
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "prose"}\n')
    with pytest.raises(EvaluationError, match=f"record 1 of --data {place} "):
        ask(name, 1024, DataFiles([f"{place}={file}"]))
    file.write_text("")
    with pytest.raises(EvaluationError, match=f"--data {place} holds no record"):
        ask(name, 1024, DataFiles([f"{place}={file}"]))
    file.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        ask(name, 1024, DataFiles([f"{place}={file}"]))


def test_without_wonderwords_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, data: DataFiles
) -> None:
    def missing(name: str) -> Path:
        raise ModuleNotFoundError(name)

    ruler_needles.word_lists.cache_clear()
    monkeypatch.setattr("importlib.resources.files", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'octavo\[eval\]'"):
        ask("ruler/niah_single_1", 1024, data)
    monkeypatch.undo()
    ruler_needles.word_lists.cache_clear()


# Worked by hand: an answer, references, then all, part, and both again of whole words.
MATCHES = [
    ("1234567.", ("1234567",), 1, 1, 1, 1),
    ("It is 91234567", ("1234567",), 1, 1, 0, 0),
    ("1234567 and 7654321", ("1234567", "7654321", "1111111", "2222222"), 0.5, 1, 0.5, 1),
    ("THE ANSWER", ("the answer", "an answer"), 0.5, 1, 0.5, 1),
    ("Parisians", ("Paris",), 1, 1, 0, 0),
    ("in Paris, France", ("Paris",), 1, 1, 1, 1),
    ("snake_case", ("case",), 1, 1, 1, 1),
    ("", ("a",), 0, 0, 0, 0),
    ("New\nYork", ("New York",), 0, 0, 0, 0),
    ("1,234", ("1234",), 0, 0, 0, 0),
    ("costs (US$3)", ("US$3",), 1, 1, 1, 1),
]


@pytest.mark.parametrize(("text", "references", "all_", "part", "whole", "whole_part"), MATCHES)
def test_matches_agree_with_those_worked_by_hand(
    text: str,
    references: tuple[str, ...],
    all_: float,
    part: float,
    whole: float,
    whole_part: float,
) -> None:
    item = Item(id="0", context="", references=references)
    assert score("ruler/vt", item, text) == {"score": all_, "strict": whole}
    assert score("ruler/qa_1", item, text) == {"score": part, "strict": whole_part}


def test_control_characters_of_an_answer_end_its_lines() -> None:
    item = Item(id="0", context="", references=("1\n2\n3", "123"))
    assert score("ruler/vt", item, " \t1\x002\t3\x1f\n ")["score"] == 0.5


def test_questions_are_scored_by_any_reference_and_the_others_by_all() -> None:
    item = Item(id="0", context="", references=("October 1973", "October", "1973", "autumn"))
    assert score("ruler/qa_1", item, "In October") == {"score": 1.0, "strict": 1.0}
    assert score("ruler/vt", item, "In October") == {"score": 0.25, "strict": 0.25}


def test_similarity_tells_near_misses_from_nothing() -> None:
    item = Item(id="0", context="", references=("1234567", "7654321"))
    near = score("ruler/niah_multivalue", item, "1234568, and 7654321.")
    assert near == {"score": 0.5, "strict": 0.5, "similarity": pytest.approx((6 / 7 + 1) / 2)}
    assert score("ruler/niah_multivalue", item, "")["similarity"] == 0
    assert score("ruler/niah_multivalue", item, "nothing")["similarity"] == 0
    item = Item(id="0", context="", references=("a-B2",))
    assert score("ruler/niah_multivalue", item, "It is A-b2.")["similarity"] == 1
    assert "similarity" not in score("ruler/vt", item, "x")
