"""RULER through the whole path: an engine that solves scores 100 on all 13, a deaf one about 0."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from engines import deaf, oracle
from ruler_solvers import solve
from test_eval_ruler import hotpot_records, squad_articles

import octavo
from octavo_evals.methods import choose
from octavo_evals.run import evaluate
from octavo_evals.task import DataFiles
from octavo_evals.tasks import find_tasks

LENGTH, LIMIT = 1024, 2


@pytest.fixture(scope="module")
def model() -> octavo.Model:
    """The shipped model's tokenizers: with those of bytes, answers outgrow RULER's rooms."""
    return octavo.load(engine="fake")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> DataFiles:
    folder = tmp_path_factory.mktemp("data")
    (folder / "squad.json").write_text(json.dumps({"data": squad_articles()}))
    (folder / "hotpot.json").write_text(json.dumps(hotpot_records()))
    return DataFiles([f"ruler.squad={folder}/squad.json", f"ruler.hotpot={folder}/hotpot.json"])


def answers() -> dict[str, list[str]]:
    """What the questions of the two question tasks are answered with."""
    known = {
        asked["question"]: [one["text"] for one in asked["answers"]]
        for article in squad_articles()
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    }
    return known | {record["question"]: [record["answer"]] for record in hotpot_records()}


def means(folder: Path) -> dict[tuple[str, str], float]:
    """Return the mean score of every task and method."""
    scores = defaultdict(list)
    for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scores[row["task"], row["method"]].append(row["score"])
    return {key: sum(values) / len(values) for key, values in scores.items()}


@pytest.mark.slow
def test_an_oracle_scores_100_on_all_13_tasks_from_text_and_from_perfect_latents(
    model: octavo.Model, places: DataFiles, tmp_path: Path
) -> None:
    known = answers()
    solving = oracle(model, lambda text: solve(text, known))
    methods = choose(["raw", "octavo@4", "none", "shuffled@4"], [])
    evaluate(
        solving,
        find_tasks(["ruler"]),
        methods,
        tmp_path,
        lengths=[LENGTH],
        limit=LIMIT,
        data=places,
    )
    found = means(tmp_path)
    assert len(found) == 13 * 4
    for (task, method), score in found.items():
        if method in ("raw", "octavo"):
            assert score == 1.0, (task, method)
        elif "qa" not in task or method == "none":  # few documents here: other items hold them too
            assert score < 0.5, (task, method)


@pytest.mark.slow
def test_a_deaf_engine_scores_about_0_on_all_13_tasks(
    model: octavo.Model, places: DataFiles, tmp_path: Path
) -> None:
    tasks = find_tasks(["ruler"])
    evaluate(
        deaf(model), tasks, [("raw", None)], tmp_path, lengths=[LENGTH], limit=LIMIT, data=places
    )
    assert set(means(tmp_path).values()) == {0.0}
