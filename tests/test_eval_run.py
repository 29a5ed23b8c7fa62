"""Running an evaluation: same items for all, rows that last, and controls that behave."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import deaf, oracle

import octavo
from octavo.errors import EvaluationError, MissingExtraError, RatioError
from octavo_evals.methods import choose
from octavo_evals.parts import cut
from octavo_evals.rows import ANSWER, open_folder
from octavo_evals.run import evaluate
from octavo_evals.task import DataFiles, Item, Metrics, Reply, Request, Task
from octavo_evals.tasks import TASKS, find_tasks

COLOURS = ("red", "green", "blue", "grey", "white")


class Lamps(Task):
    """Lamps of some colours, two questions about each text."""

    name = "lamps"
    metric = "match"

    def make(self, request: Request) -> Iterator[Item]:
        for index in range(4):
            colours = [COLOURS[(index + shift) % 5] for shift in range(2)]
            lamps = [f"Lamp {n} is {colour}. " for n, colour in enumerate(colours)]
            for asked in range(2):
                yield Item(
                    id=f"{index:04d}-{asked}",
                    before="Some lamps. ",
                    context="".join(lamps) + "Nothing else is lit. ",
                    after=f"What colour is lamp {asked}?",
                    prefix=f" Lamp {asked} is",
                    references=(colours[asked],),
                    max_new_tokens=12,
                )

    def score(self, item: Item, reply: Reply) -> Metrics:
        return {"score": float(item.references[0] in reply.text)}


def solve_lamps(text: str) -> list[str]:
    asked = re.search(r"What colour is lamp (\d)", text)
    told = dict(re.findall(r"Lamp (\d) is (\w+)\.", text))
    return [told.get(asked[1], "unknown")] if asked else []


@pytest.fixture
def seeing(model: octavo.Model) -> octavo.Model:
    return oracle(model, solve_lamps)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def scores(folder: Path) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows_of(folder):
        name = row["method"] + (f"@{row['ratio']}" if row["ratio"] else "")
        found.setdefault(name, []).append(row["score"])
    return {name: sum(values) / len(values) for name, values in found.items()}


# -- methods -----------------------------------------------------------------------------------


def test_a_perfect_compressor_scores_as_the_raw_text_and_a_wrong_context_as_nothing(
    seeing: octavo.Model, tmp_path: Path
) -> None:
    methods = choose(["raw", "none", "octavo", "shuffled"], [4])
    evaluate(seeing, [Lamps()], methods, tmp_path)
    found = scores(tmp_path)
    assert found["raw"] == found["octavo@4"] == 1.0
    assert found["none"] == 0.0
    # Another item's lamps: right only where two texts happen to share a lamp's colour.
    assert found["shuffled@4"] == 0.0
    answers = {(r["id"], r["method"]): r["answer"] for r in rows_of(tmp_path)}
    assert all(answers[i, "octavo"] == answers[i, "raw"] for i, _ in answers)


def test_an_identity_compressor_reproduces_the_raw_text_exactly(
    model: octavo.Model, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"word{n} and more" for n in range(900)))
    data = DataFiles([f"text={tmp_path / 'text.txt'}"])
    likelihood = find_tasks(["reconstruction", "perplexity"])
    evaluate(
        model,
        [Lamps(), *likelihood],
        choose(["raw", "identity", "none"], []),
        tmp_path / "rows",
        lengths=[400],
        limit=3,
        data=data,
    )
    rows = {(r["task"], r["id"], r["method"]): r for r in rows_of(tmp_path / "rows")}
    compared = 0
    for (task, index, method), row in rows.items():
        if method != "identity":
            continue
        full, none = rows[task, index, "raw"], rows[task, index, "none"]
        assert (row["answer"], row["metrics"]) == (full["answer"], full["metrics"])
        assert row["latents"] == full["context_tokens"]
        assert row["prompt_tokens"] == full["prompt_tokens"]
        assert row["metrics"].get("nats", 1.0) != none["metrics"].get("nats", 0.0)
        compared += 1
    assert compared == 3 + 3 + 3


def test_every_method_reads_the_same_tokens_around_the_context(model: octavo.Model) -> None:
    item = next(Lamps().items(request(model)))
    parts = cut(model.prompts, item)
    text = model.prompts.decoder_tokenizer.decode([*parts.head, *parts.context, *parts.tail])
    assert item.before + item.context + item.after in text
    assert text.endswith(item.prefix)
    raw = model.prompts.encode_messages([{"role": "user", "content": item.before}])
    assert list(parts.head[:3]) == raw.input_ids[:3]


@pytest.mark.parametrize(
    ("method", "kept"),
    [("truncate-left@2", "is lit."), ("truncate-middle@2", "Lamp 0")],
)
def test_truncation_keeps_its_end_and_the_budget(
    model: octavo.Model, tmp_path: Path, method: str, kept: str
) -> None:
    seen: list[str] = []
    watching = oracle(model, lambda text: seen.append(text) or ["x"])  # type: ignore[func-returns-value]
    evaluate(watching, [Lamps()], choose([method, "raw"], []), tmp_path, limit=1)
    short, full = (
        next(r for r in rows_of(tmp_path) if r["method"] == m) for m in (method[:-2], "raw")
    )
    lost = full["prompt_tokens"] - short["prompt_tokens"]
    assert lost == full["context_tokens"] - -(-full["context_tokens"] // 2)
    assert kept in min(seen, key=len)


DAYS = range(60)
FIELDS = [f"The {n}th field was mown before noon and raked by two men. " for n in DAYS]
FIELDS.insert(17, "The heron nests at mile seven by the old lock. ")
TIDES = [f"第{n}天，守塔人记下了风向和潮水。" for n in DAYS]
TIDES.insert(30, "钥匙藏在第三级台阶下面。")
GULLS = json.dumps([{"id": n, "name": f"gull{n}", "place": f"pier {n * 7 % 31}"} for n in DAYS])


@pytest.mark.parametrize(
    ("context", "question", "found"),
    [
        ("".join(FIELDS), "Where does the heron nest?", "heron nests at mile seven"),
        ("".join(TIDES), "钥匙藏在哪里？", "第三级台阶"),  # no space in it
        (GULLS, "At which place is gull47?", "gull47"),  # one line
    ],
    ids=["English", "Chinese", "JSON"],
)
def test_retrieval_picks_the_passage_that_the_question_names(
    model: octavo.Model, tmp_path: Path, context: str, question: str, found: str
) -> None:
    class Needle(Lamps):
        def make(self, request: Request) -> Iterator[Item]:
            yield Item(id="0", context=context, after=question, references=("-",))

    seen: list[str] = []
    watching = oracle(model, lambda text: seen.append(text) or ["x"])  # type: ignore[func-returns-value]
    evaluate(watching, [Needle()], [("bm25", 16)], tmp_path)
    assert found in seen[0].replace(question, "")
    (row,) = rows_of(tmp_path)
    assert row["prompt_tokens"] <= row["context_tokens"] / 16 + 120


@pytest.mark.parametrize("question", ["Zzyx?", "the of"])
def test_retrieval_without_a_word_in_common_keeps_the_first_passages(
    model: octavo.Model, tmp_path: Path, question: str
) -> None:
    class Coded(Lamps):
        def make(self, request: Request) -> Iterator[Item]:
            coded = "".join(f"qv{n} ... " for n in range(90))
            yield Item(id="0", context=coded, after=question, references=("-",))

    seen: list[str] = []
    watching = oracle(model, lambda text: seen.append(text) or ["x"])  # type: ignore[func-returns-value]
    evaluate(watching, [Coded()], [("bm25", 8)], tmp_path)
    assert "qv1 " in seen[0]
    assert "qv50 " not in seen[0]


def test_a_context_is_compressed_once_for_all_its_questions(
    seeing: octavo.Model, tmp_path: Path
) -> None:
    evaluate(seeing, [Lamps()], [("octavo", 4)], tmp_path, limit=6)
    rows = rows_of(tmp_path)
    assert seeing.engine.num_encoded == 3  # type: ignore[attr-defined]
    assert [row["is_reused"] for row in rows] == [False, True] * 3
    assert all((row["compress_seconds"] == 0.0) == row["is_reused"] for row in rows)
    # A method that sees the question starts anew for each.
    evaluate(seeing, [Lamps()], [("bm25", 4)], tmp_path, limit=6)
    assert not any(row["is_reused"] for row in rows_of(tmp_path) if row["method"] == "bm25")


def test_a_local_engine_accounts_for_what_it_holds(model: octavo.Model, tmp_path: Path) -> None:
    evaluate(model, [Lamps()], choose(["raw", "octavo@4"], []), tmp_path, limit=2)
    full, later, octavo_row, _ = rows_of(tmp_path)
    decoder = model.lclm.decoder.config
    head = full["prompt_tokens"] - full["context_tokens"]
    heads, width = decoder.num_key_value_heads, decoder.head_dim
    a_position = decoder.num_hidden_layers * 2 * heads * width * 4
    assert full["cache_bytes"] == later["cache_bytes"]
    assert full["cache_bytes"] % a_position == 0
    held = full["cache_bytes"] // a_position
    assert full["context_tokens"] < held < full["context_tokens"] + head
    assert octavo_row["cache_bytes"] < full["cache_bytes"]
    source = model.prompts.source(next(Lamps().items(request(model))).context).ids
    assert octavo_row["latents"] == -(-len(source) // 4)
    assert octavo_row["context_bytes"] == octavo_row["latents"] * decoder.hidden_size * 4
    assert full["ttft_seconds"] > 0
    assert full["new_tokens"] <= 12
    assert full["versions"]["octavo"] == octavo.__version__


def test_an_item_that_does_not_fit_becomes_a_skipped_row(
    model: octavo.Model, tmp_path: Path
) -> None:
    small = oracle(model, solve_lamps, max_positions=90)
    account = evaluate(small, [Lamps()], choose(["raw", "octavo@4"], []), tmp_path, limit=2)
    skipped = [row for row in rows_of(tmp_path) if row["skipped"]]
    assert {row["method"] for row in skipped} == {"raw"}
    assert all(row["score"] is None and "90" in row["skipped"] for row in skipped)
    assert "raw" in account.skipped
    assert account.written == 4


@pytest.mark.parametrize(
    ("names", "ratios", "says"),
    [
        (["raww"], [], "did you mean raw"),
        (["full"], [], "the method full is now called raw; give --method raw"),
        (["qqqq"], [], "known: raw"),
        (["octavo"], [], "needs a ratio"),
        (["octavo@x"], [], "write octavo@4"),
        (["raw@4"], [], "raw has no ratio"),
        (["octavo@1"], [], "compresses nothing"),
    ],
)
def test_a_wrong_method_is_one_clear_error(names: list[str], ratios: list[int], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        choose(names, ratios)


def test_a_method_without_its_library_or_weights_says_what_to_do(
    model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(MissingExtraError, match="scripts/kvpress-env"):
        evaluate(model, [Lamps()], [("snapkv", 4)], tmp_path)
    with pytest.raises(EvaluationError, match=r"--data llmlingua2\.weights="):
        evaluate(model, [Lamps()], [("llmlingua2", 4)], tmp_path)
    with pytest.raises(RatioError):
        evaluate(model, [Lamps()], [("octavo", 5)], tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()


# -- tasks ---------------------------------------------------------------------------------------


def request(model: octavo.Model, **settings: Any) -> Request:
    return Request(
        count_tokens=lambda text: len(model.prompts.text_ids(text)),
        max_prompt_tokens=4096,
        data=settings.pop("data", DataFiles()),
        **settings,
    )


def test_a_task_of_ones_own_is_a_class_and_a_line_in_the_table(
    seeing: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "lamps", Lamps())
    evaluate(seeing, find_tasks(["lamps"]), [("raw", None)], tmp_path)
    assert scores(tmp_path) == {"raw": 1.0}


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(EvaluationError, match=r"did you mean .*ruler"):
        find_tasks(["rular"])
    with pytest.raises(EvaluationError, match="known: ruler, longbench"):
        find_tasks(["zzzzzz"])


def test_every_task_of_the_table_can_be_made_and_has_its_name() -> None:
    found = find_tasks(list(TASKS))
    assert [task.name for task in found] == list(TASKS)
    assert [t.name for t in find_tasks(["ruler/vt", "ruler"])][:2] == [
        "ruler/vt",
        "ruler/niah_single_1",
    ]
    assert len(find_tasks(["ruler-offline"])) == 11
    assert len(find_tasks(["ruler"])) == 13
    assert len(find_tasks(["longbench"])) == 21


def test_passages_for_likelihood_fill_their_length_and_stay_the_same(
    model: octavo.Model, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(" ".join(f"stone{n} over water" for n in range(2000)))
    data = DataFiles([f"text={tmp_path}"])
    copy, goes_on = find_tasks(["reconstruction", "perplexity"])
    first = list(copy.items(request(model, data=data, length=512, limit=3)))
    again = list(copy.items(request(model, data=data, length=512, limit=2)))
    assert first[:2] == again
    assert len({item.context for item in first}) == 3
    for item in first:
        assert item.target == item.context
        used = len(model.prompts.text_ids(item.context + item.after + (item.target or "")))
        assert 480 < used <= 514
    (item,) = goes_on.items(request(model, data=data, length=512, limit=1))
    text = (tmp_path / "a.txt").read_text()
    assert item.context + (item.target or "") in text
    with pytest.raises(EvaluationError, match="--length 256"):
        list(copy.items(request(model, data=data, length=20)))
    with pytest.raises(EvaluationError, match="--data text="):
        list(copy.items(request(model, length=512)))


def test_likelihood_is_scored_by_hand() -> None:
    (copy,) = find_tasks(["reconstruction"])
    reply = Reply(token_nats=(0.5, 1.5, 2.0, 0.0), token_hits=(True, False, True, True))
    found = copy.score(Item(id="0", context="", target=""), reply)
    assert found["score"] == 0.75
    assert found["exact"] == 0.0
    assert found["nats"] == 1.0
    assert [found[f"accuracy_q{q}"] for q in (1, 2, 3, 4)] == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("given", ["x", "=y", "x=", "x=/no/such/place"])
def test_a_wrong_data_option_is_one_clear_error(given: str) -> None:
    with pytest.raises(EvaluationError, match="--data"):
        DataFiles([given])


# -- rows ----------------------------------------------------------------------------------------


def row(index: int, **other: Any) -> dict[str, Any]:
    return {"task": "t", "length": None, "id": str(index), "method": "raw", "ratio": None, **other}


def test_an_interrupted_evaluation_goes_on_to_the_same_rows(
    seeing: octavo.Model, tmp_path: Path
) -> None:
    methods = choose(["raw", "none", "octavo@4", "bm25@4"], [])

    evaluate(seeing, [Lamps()], methods, tmp_path / "whole")
    timeless = {"compress_seconds", "ttft_seconds", "decode_seconds", "peak_bytes", "is_reused"}

    def told(folder: Path) -> list[str]:
        kept = [{k: v for k, v in r.items() if k not in timeless} for r in rows_of(folder)]
        return sorted(json.dumps(r, sort_keys=True) for r in kept)

    for enough in (1, 3, 10):

        def stop(what: str, done: int, total: int, enough: int = enough) -> None:
            if done == enough:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(seeing, [Lamps()], methods, tmp_path / "cut", on_row=stop)
        with (tmp_path / "cut" / "rows.jsonl").open("a") as file:
            file.write('{"task": "lamps", "length": nu')  # what a power cut leaves
    account = evaluate(seeing, [Lamps()], methods, tmp_path / "cut")
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    assert account.found > 0
    assert account.written + account.found == 32
    assert evaluate(seeing, [Lamps()], methods, tmp_path / "cut").written == 0


def test_rows_of_other_settings_are_refused_and_stay(seeing: octavo.Model, tmp_path: Path) -> None:
    evaluate(seeing, [Lamps()], [("raw", None)], tmp_path, limit=1)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(EvaluationError, match=r"seed is 7, but the rows .* with 42; .*-o"):
        evaluate(seeing, [Lamps()], [("raw", None)], tmp_path, seed=7)
    (tmp_path / "text.txt").write_text("one")
    evaluate(
        seeing, [Lamps()], [("raw", None)], tmp_path, limit=1,
        data=DataFiles([f"text={tmp_path / 'text.txt'}"]),
    )  # fmt: skip
    (tmp_path / "text.txt").write_text("two")
    with pytest.raises(EvaluationError, match=r"data\.text"):
        evaluate(
            seeing, [Lamps()], [("raw", None)], tmp_path,
            data=DataFiles([f"text={tmp_path / 'text.txt'}"]),
        )  # fmt: skip
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_a_line_that_is_no_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"no": "row"}\n')
    with pytest.raises(EvaluationError, match="holds a line that is no row"):
        open_folder(tmp_path, {})


def test_a_row_is_written_once_whoever_writes_it(tmp_path: Path) -> None:
    one, other = open_folder(tmp_path, {"seed": 1}), open_folder(tmp_path, {"seed": 1})
    assert one.append([row(1, score=1.0), row(1, score=0.0)]) == 1
    assert other.append([row(1, score=0.5), row(2, score=0.5)]) == 1
    assert one.append([row(2, score=0.1)]) == 0
    assert [(r["id"], r["score"]) for r in rows_of(tmp_path)] == [("1", 1.0), ("2", 0.5)]
    with one.claim([ANSWER.key_of(row(1)), ANSWER.key_of(row(3))]) as todo:
        assert todo == [ANSWER.key_of(row(3))]
    one.close()
    other.close()


_WRITER = """
import sys, time
from pathlib import Path
from octavo_evals.rows import ANSWER, open_folder

rows = open_folder(Path(sys.argv[1]), {"seed": 1})
print("ready", flush=True)
for index in range(400):
    row = {"task": "t", "length": None, "id": str(index), "method": "m", "ratio": 4,
           "answer": "é" * 3000, "writer": sys.argv[2]}
    with rows.claim([ANSWER.key_of(row)], wait=index % 7 == 0) as todo:
        if todo:
            rows.append([row])
"""


def test_two_processes_share_a_folder_and_kills_leave_no_damage(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", _WRITER, str(tmp_path), name]
        return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)

    doomed, living = start("doomed"), start("living")
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == "ready\n"
    while not (tmp_path / "rows.jsonl").exists() or len(rows_text(tmp_path)) < 60:
        time.sleep(0.002)
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert living.wait(timeout=300) == 0
    last = start("last")
    assert last.wait(timeout=300) == 0
    for process in (doomed, living, last):
        assert process.stdout is not None
        process.stdout.close()
    rows = rows_of(tmp_path)
    assert sorted(int(r["id"]) for r in rows) == list(range(400))
    assert all(r["answer"] == "é" * 3000 for r in rows)


def rows_text(folder: Path) -> list[bytes]:
    return (folder / "rows.jsonl").read_bytes().split(b"\n")


def test_a_deaf_engine_scores_nothing(model: octavo.Model, tmp_path: Path) -> None:
    evaluate(deaf(model), [Lamps()], [("raw", None)], tmp_path)
    assert scores(tmp_path) == {"raw": 0.0}
