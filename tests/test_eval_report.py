"""The report: what the numbers are, what is refused, and that the same rows give the same bytes."""

import base64
import itertools
import json
import random
import re
import statistics
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from report_rows import RULER, many, row, save
from typer.testing import CliRunner

from octavo.errors import EvaluationError, MissingExtraError
from octavo_evals.cli.report import report as report_verb
from octavo_evals.report import write
from octavo_evals.report.canvas import WIDTH, new_figure
from octavo_evals.report.costs import break_even
from octavo_evals.report.marks import Name, place_names
from octavo_evals.report.read import read
from octavo_evals.report.statistics import (
    Estimate,
    mean_interval,
    paired_difference,
    retention,
    spread,
)
from octavo_evals.report.summary import Summary, summarise

Strata = Sequence[Sequence[float]]


# --- statistics, against their slow twins -----------------------------------------------------


def slow_interval(columns: Sequence[Strata], number: Any) -> tuple[float, float]:
    """Resample item by item, in plain Python, with another generator."""
    rng = random.Random(1)
    found = []
    for _ in range(4000):
        means = [0.0] * len(columns)
        for stratum in range(len(columns[0])):
            size = len(columns[0][stratum])
            drawn = [rng.randrange(size) for _ in range(size)]
            for at, column in enumerate(columns):
                means[at] += statistics.fmean(column[stratum][one] for one in drawn)
        found.append(number(*(mean / len(columns[0]) for mean in means)))
    cuts = statistics.quantiles(found, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def agree(estimate: Estimate | None, slow: tuple[float, float], within: float) -> None:
    assert estimate is not None
    assert estimate.low == pytest.approx(slow[0], abs=within)
    assert estimate.high == pytest.approx(slow[1], abs=within)


@pytest.fixture(scope="module")
def scores() -> list[list[list[float]]]:
    """Three methods on two tasks of 60 and 25 items, related item by item as methods are."""
    rng = random.Random(3)
    ease = [[rng.random() for _ in range(size)] for size in (60, 25)]
    return [
        [[float(rng.random() < skill * (0.4 + one)) for one in task] for task in ease]
        for skill in (0.7, 0.1, 0.9)
    ]


def test_intervals_are_those_of_resampling_item_by_item(scores: list[list[list[float]]]) -> None:
    ours, none, full = scores
    agree(mean_interval(ours), slow_interval([ours], lambda a: a), 0.015)
    agree(
        paired_difference(ours, full),
        slow_interval([ours, full], lambda a, b: a - b),
        0.02,
    )
    agree(
        retention(ours, none, full),
        slow_interval(scores, lambda a, b, c: (a - b) / (c - b)),
        0.03,
    )


def test_an_interval_is_that_of_every_possible_resample_of_a_few_items() -> None:
    values = [0.1, 0.4, 0.5, 1.0]
    every = sorted(statistics.fmean(drawn) for drawn in itertools.product(values, repeat=4))
    cuts = statistics.quantiles(every, n=40, method="inclusive")
    agree(mean_interval([values]), (cuts[0], cuts[-1]), 0.03)


def test_every_stratum_weighs_the_same_unless_told() -> None:
    strata = [[1.0] * 8, [0.0, 0.0]]
    assert mean_interval(strata).value == 0.5
    assert mean_interval(strata).n == 10
    assert mean_interval(strata, [3, 1]).value == 0.75


def test_a_paired_difference_uses_the_pairs() -> None:
    ease = [float(i % 2) for i in range(40)]
    harder = [max(0.0, one - 0.25) for one in ease]
    found = paired_difference([ease], [harder])
    assert found.value == pytest.approx(0.125)
    assert found.low is not None
    assert found.low > 0.08  # unpaired, the interval would reach below 0
    assert found.excludes(0)


def test_strata_are_resampled_apart_from_one_another() -> None:
    values = [float(i % 2) for i in range(50)]
    alone = mean_interval([values])
    both = mean_interval([values, values])
    assert alone.low is not None
    assert both.low is not None
    assert 0.5 - both.low == pytest.approx((0.5 - alone.low) / 2**0.5, rel=0.15)


def test_retention_by_hand() -> None:
    full, none = [1.0] * 30 + [0.0] * 10, [0.0] * 40
    half = [1.0] * 15 + [0.0] * 25
    found = retention([half], [none], [full])
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert retention([half], [full], [full]) is None
    barely = [1.0] + [0.0] * 39
    assert retention([half], [none], [barely]) is None  # many resamples have no worth at all


def test_one_item_has_a_score_and_no_interval() -> None:
    found = mean_interval([[0.5]])
    assert (found.value, found.low, found.high, found.n) == (0.5, None, None, 1)
    assert not found.excludes(0)


def test_a_spread_is_median_and_quartiles() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 10.0])
    assert found is not None
    assert (found.low, found.median, found.high, found.n) == (2.0, 3.0, 4.0, 5)
    assert spread([]) is None


@pytest.mark.parametrize(
    ("ours", "full", "expected"),
    [
        ((5.0, 1.0), (2.0, 2.0), (4, None)),  # 5+1+1+1 = 2+2+2+2
        ((1.0, 1.0), (2.0, 2.0), (1, None)),
        ((3.0, 2.0), (2.0, 2.0), (None, None)),
        ((1.0, 1.0), (2.0, 0.5), (1, 3)),  # 1+1+1 = 2+.5+.5, and behind from the fourth on
        ((2.0, 2.0), (2.0, 2.0), (1, None)),
    ],
)
def test_break_even_is_where_the_sums_meet(
    ours: tuple[float, float], full: tuple[float, float], expected: tuple[int | None, int | None]
) -> None:
    def total(pair: tuple[float, float], questions: int) -> float:
        return pair[0] + (questions - 1) * pair[1]

    assert break_even(ours, full) == expected
    first, last = expected
    for questions in range(1, 30):
        is_in = first is not None and first <= questions <= (last or 30)
        assert (total(ours, questions) <= total(full, questions)) is is_in


# --- reading ----------------------------------------------------------------------------------


def rows_of(
    method: str, scores: Sequence[float], ratio: int | None = None, **more: Any
) -> list[Any]:
    task = more.pop("task", "squad")
    length = more.pop("length", None)
    return [
        row(task, length, f"{at:04d}", method, ratio, score=score, **more)
        for at, score in enumerate(scores)
    ]


def summary_of(*folders: Path) -> Summary:
    (only,) = summarise(read(folders))
    return only


def test_a_missing_folder_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no folder .*nowhere; name one"):
        read([tmp_path / "nowhere"])
    with pytest.raises(EvaluationError, match=r"has no \.jsonl; name a folder"):
        read([tmp_path])
    save(tmp_path, [{"bench": 1}], "bench.jsonl")
    with pytest.raises(EvaluationError, match=r"has no rows in bench\.jsonl"):
        read([tmp_path])
    with pytest.raises(EvaluationError, match="no folder of rows was given"):
        read([])


def test_an_unfinished_last_line_is_left_out_and_noted(tmp_path: Path) -> None:
    save(tmp_path, rows_of("full", [1, 0, 1]))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-25])
    found = read([tmp_path])
    assert [len(rows) for rows in found.models.values()] == [2]
    assert "unfinished last line" in found.notes[0]


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    save(tmp_path, rows_of("full", [1, 0, 1]))
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:40]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(EvaluationError, match=r"rows\.jsonl:2 is damaged .* remove the line"):
        read([tmp_path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "task is None, not str"),
        ({"score": 1.5}, "the score is 1.5; scores go from 0 to 1"),
        ({"score": None}, "either a score or a reason"),
        ({"skipped": "too long"}, "either a score or a reason"),
        ({"ttft_seconds": "fast"}, "ttft_seconds is 'fast', not int or float"),
        ({"length": True}, "length is True, not int"),
        ({"score": float("nan")}, "score is nan"),
    ],
)
def test_a_row_that_is_no_whole_row_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save(tmp_path, [*rows_of("full", [1.0]), rows_of("none", [1.0])[0] | change])
    with pytest.raises(EvaluationError, match=rf"rows\.jsonl:2.*{re.escape(message)}"):
        read([tmp_path])


def test_rows_of_different_seeds_are_refused(tmp_path: Path) -> None:
    save(tmp_path, [*rows_of("full", [1]), *rows_of("none", [0], seed=43)])
    with pytest.raises(
        EvaluationError, match=r"different seeds: 42 .* and 43 .*one seed at a time"
    ):
        read([tmp_path])


def test_the_same_row_twice_counts_once_and_a_different_one_clashes(tmp_path: Path) -> None:
    one = save(tmp_path / "one", rows_of("full", [1, 0]))
    two = save(tmp_path / "two", [*rows_of("full", [1]), *rows_of("none", [0, 0])], "more.jsonl")
    found = read([one, two, one])
    assert [len(rows) for rows in found.models.values()] == [4]
    assert found.notes == ["1 rows came twice, exactly alike: counted once."]
    save(two, rows_of("full", [0]), "other.jsonl")
    with pytest.raises(
        EvaluationError, match=r"rows\.jsonl:1 and two/.*:1 both hold squad 0000 by full"
    ):
        read([one, two])


def test_models_are_reported_apart(tmp_path: Path) -> None:
    save(tmp_path, [*rows_of("full", [1]), *rows_of("full", [0], fingerprint="ffff")])
    first, second = summarise(read([tmp_path]))
    assert (first.fingerprint, second.fingerprint) == ("04b23f99aa", "ffff")
    assert first.boards[0].means["full"].score.value == 100
    assert second.boards[0].means["full"].score.value == 0


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = many(2, (1024,))
    one = save(tmp_path / "one" / "run", rows)
    random.Random(0).shuffle(rows)
    two = save(tmp_path / "two" / "run", rows[:300])
    save(two, rows[300:], "zz.jsonl")
    assert summary_of(one) == summary_of(two)


# --- numbers ----------------------------------------------------------------------------------


def test_scores_differences_and_retention_by_hand(tmp_path: Path) -> None:
    ruler = {"length": 1024, "task": "ruler/vt"}
    save(
        tmp_path,
        [
            *rows_of("full", [1, 1, 1, 1, 1, 1, 1, 0], **ruler),
            *rows_of("none", [0] * 8, **ruler),
            *rows_of("octavo", [1, 1, 1, 1, 1, 1, 0, 0], 4, **ruler),
            *rows_of("snapkv", [0, 0, 0, 0, 0, 0, 1, 0], 4, **ruler),
            *rows_of("snapkv", [0] * 8, 8, **ruler),
            *rows_of("full", [1, 1], length=1024, task="ruler/cwe"),
            *rows_of("octavo", [0.5, 0], 4, length=1024, task="ruler/cwe"),
        ],
    )
    found = summary_of(tmp_path)
    (board,) = found.boards
    assert board.title == "RULER at 1,024 tokens"
    assert board.tasks == ["ruler/vt", "ruler/cwe"]
    assert found.labels == ["full", "none", "octavo@4", "snapkv@4", "snapkv@8"]
    ours = board.cells["ruler/vt"]["octavo@4"].score
    assert ours is not None
    assert (ours.value, ours.n) == (75.0, 8)
    assert board.means["octavo@4"].score.value == 50.0  # (75 + 25) / 2
    assert board.means["octavo@4"].score.n == 10
    assert (board.means["none"].score.value, board.means["none"].num_tasks) == (0.0, 1)
    kept = board.retention["octavo@4"]  # none has no cwe: on vt alone, 6/8 of 7/8
    assert kept is not None
    assert kept.value == pytest.approx(600 / 7)
    assert "full" not in board.retention
    apart = {one.rival: one for one in found.differences}
    assert apart.keys() == {"full", "none", "snapkv@4"}  # the rival at 8x is no rival at 4x
    assert apart["full"].points.value == pytest.approx((-12.5 - 75) / 2)
    assert not apart["full"].is_clear  # three items differ
    assert apart["snapkv@4"].points.value == pytest.approx(62.5)
    assert (apart["snapkv@4"].num_different, apart["snapkv@4"].is_clear) == (7, True)


def test_the_difference_over_all_weighs_boards_alike_and_leaves_likelihoods_out(
    tmp_path: Path,
) -> None:
    nats = {"metrics": {"score": 1.0, "nats": 0.5}, "task": "perplexity"}
    rows = []
    for method, ratio, squad, vt, cwe in (("full", None, 1, 1, 1), ("octavo", 4, 0, 1, 0)):
        rows += rows_of(method, [squad] * 3, ratio)
        rows += rows_of(method, [vt] * 9, ratio, task="ruler/vt", length=1024)
        rows += rows_of(method, [cwe] * 5, ratio, task="ruler/cwe", length=1024)
        rows += rows_of(method, [1] * 4, ratio, **nats)
    found = summary_of(save(tmp_path, rows))
    points = {one.board: one.points.value for one in found.differences}
    assert points == {"RULER at 1,024 tokens": -50, "squad": -100, "perplexity": 0, "all": -75}


def test_skipped_rows_and_empty_answers_are_counted(tmp_path: Path) -> None:
    skipped = {"score": None, "skipped": "does not fit", "metrics": {}}
    rows = rows_of("full", [1, 1, 0, 0])
    rows[0] |= skipped
    rows[1]["answer"] = " \n"
    all_skipped = [one | skipped for one in rows_of("kvzip", [1, 1], 4)]
    found = summary_of(save(tmp_path, [*rows, *all_skipped]))
    cells = found.boards[0].cells["squad"]
    full = cells["full"]
    assert full.score is not None
    assert (full.score.n, full.num_skipped, full.num_empty) == (3, 1, 1)
    assert full.score.value == pytest.approx(100 / 3)
    assert (cells["kvzip@4"].score, cells["kvzip@4"].num_skipped) == (None, 2)
    assert found.skipped == {"does not fit": 3}
    assert found.masked == ["kvzip@4"]


def test_costs_by_hand(tmp_path: Path) -> None:
    def timed(method: str, ratio: int | None, times: Sequence[tuple[float, float]]) -> list[Any]:
        rows = rows_of(method, [1] * len(times), ratio)
        for at, (compress, ttft) in enumerate(times):
            rows[at] |= {"compress_seconds": compress, "ttft_seconds": ttft}
            rows[at]["is_reused"] = at > 1
        return rows

    rows = timed("full", None, [(0, 2.0), (0, 4.0), (0, 1.0), (0, 1.0)])
    rows += timed("octavo", 4, [(3.0, 1.0), (4.0, 1.0), (0, 0.5), (0, 0.5)])
    rows[-1] |= {"new_tokens": 11, "decode_seconds": 2.0}
    board = summary_of(save(tmp_path, rows)).boards[0]
    cost = board.costs["octavo@4"]
    first, later, speed_up, decode = (
        cost.first_ttft_seconds, cost.next_ttft_seconds, cost.speed_up,
        cost.decode_tokens_per_second,
    )  # fmt: skip
    assert first is not None
    assert (first.median, first.n) == (4.5, 2)
    assert later is not None
    assert (later.median, later.n) == (0.5, 2)
    assert speed_up is not None
    assert speed_up.median == pytest.approx((2 / 4 + 4 / 5) / 2)  # item by item
    assert decode is not None
    assert (decode.median, decode.n) == (8 / 0.4, 4)
    assert cost.break_even == "question 4"  # 4.5 + 3 * 0.5 = 6 = 3 + 3 * 1
    assert board.costs["full"].break_even is None


def test_times_of_another_folder_or_machine_do_not_compare(tmp_path: Path) -> None:
    one = save(tmp_path / "one", rows_of("full", [1]))
    two = save(tmp_path / "two", rows_of("octavo", [1], 4))
    save(one, rows_of("octavo", [1], 8, machine="Another"), "more.jsonl")
    costs = summary_of(one, two).boards[0].costs
    assert costs["octavo@4"].speed_up is None
    assert costs["octavo@8"].speed_up is None


# --- the whole report -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of made-up rows at two lengths, of few tasks and methods to be quick."""
    folder = tmp_path_factory.mktemp("report")
    kept = [f"ruler/{task}" for task in (RULER[0], RULER[5], "vt")]
    dropped = ("bm25", "truncate-left", "truncate-middle", "expected-attention")
    rows = [r for r in many(8) if r["task"] in (*kept, "squad", "reconstruction")]
    rows = [r for r in rows if r["method"] not in dropped]
    place = save(folder / "smol-run", rows)
    (place / "run.json").write_text('{"command": ["octavo", "eval", "ruler"], "data": {}}')
    headlines = write([place], folder / "out")
    assert any(line.startswith("octavo@4 scores ") for line in headlines)
    return folder / "out"


class _Page(HTMLParser):
    """Collects what a page points at, and checks that its tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.tags: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.places += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag


def test_a_report_has_all_its_files(report: Path) -> None:
    boards = ("ruler-1024", "ruler-2048")
    kinds = ("frontier-ttft", "frontier-bytes", "tasks")
    stems = {"ratio", "length", "position", *(f"{kind}-{one}" for kind in kinds for one in boards)}
    names = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert {p.name for p in report.iterdir()} == names | {"report.md", "report.html", "tables.json"}
    text = (report / "report.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert linked == {f"{stem}.png" for stem in stems}
    assert (report / "ratio.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_but_itself(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.tags == []
    assert page.counts["img"] == 9
    assert page.counts["section"] == 1
    assert not {"script", "link", "iframe"} & page.counts.keys()
    assert all(place.startswith("data:image/svg+xml;base64,") for place in page.places)
    assert "@import" not in text
    assert "url(" not in text
    for place in page.places:
        drawing = base64.b64decode(place.partition(",")[2]).decode("utf-8")
        targets = re.findall(r'(?:href|src)="([^"]*)"', drawing)
        assert all(target.startswith("#") for target in targets)
    assert "masks only: holds the full cache" in text
    assert "octavo eval ruler" in text
    assert "Two cores, 2 threads" in text


def test_the_tables_say_what_the_rows_say(report: Path) -> None:
    told = json.loads((report / "tables.json").read_text(encoding="utf-8"))
    (model,) = told["models"]
    made = [r for r in many(8) if r["task"] == "ruler/vt" and r["length"] == 1024]
    mine = [r["score"] for r in made if (r["method"], r["ratio"]) == ("octavo", 4)]
    cell = model["boards"][0]["cells"]["ruler/vt"]["octavo@4"]
    assert cell["score"]["value"] == pytest.approx(100 * sum(mine) / 8)
    assert model["masked"] == ["kvzip@4", "kvzip@8", "kvzip@16"]
    text = (report / "report.md").read_text(encoding="utf-8")
    mean = model["boards"][0]["means"]["octavo@4"]["score"]
    shown = f"{mean['value']:.1f} ({mean['low']:.1f}–{mean['high']:.1f})"
    assert re.search(rf"(?m)^\| octavo@4 \| {re.escape(shown)} \|", text)
    assert "| kvzip@4 (masks only: holds the full cache) |" in text
    assert "accuracy\\_q4" in text
    assert "What the paper reports" in text


def test_the_same_rows_give_the_same_bytes(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_evals.report.draw", lambda *_: [])  # pictures take seconds
    write([report.parent / "smol-run"], tmp_path / "again")
    again = (tmp_path / "again" / "tables.json").read_bytes()
    assert again == (report / "tables.json").read_bytes()


def test_pictures_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    place = save(tmp_path / "rows", rows_of("octavo", [1, 0], 4) + rows_of("full", [1, 1]))
    for name in ("one", "two"):
        write([place], tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert "frontier-ttft-squad.svg" in one


def test_a_report_of_several_models_keeps_their_pictures_apart(tmp_path: Path) -> None:
    rows = rows_of("octavo", [1, 0], 4)
    place = save(tmp_path / "rows", [*rows, *(one | {"model": "owner/other"} for one in rows)])
    write([place], tmp_path / "out")
    assert (tmp_path / "out" / "smol-ratio.png").is_file()
    assert (tmp_path / "out" / "owner-other-ratio.png").is_file()


def test_rows_without_times_or_rivals_make_a_report(tmp_path: Path) -> None:
    untimed = dict.fromkeys(("ttft_seconds", "decode_seconds", "cache_bytes", "peak_bytes"))
    rows = [one | untimed for one in rows_of("bm25", [1, 0], 4)]
    (headline,) = write([save(tmp_path / "rows", rows)], tmp_path / "out")
    assert headline == "No octavo answers on squad. Its scores: bm25@4 50.0%."
    assert not list((tmp_path / "out").glob("frontier*"))


def test_a_report_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save(tmp_path / "rows", rows_of("full", [1]))
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="is a file; give a folder"):
        write([place], tmp_path / "file")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'octavo\[eval\]'"):
        write([place], tmp_path / "out")


def test_the_verb_prints_the_headlines(tmp_path: Path) -> None:
    rows = rows_of("octavo", [1, 0, 0, 0, 0, 0, 0, 1], 4) + rows_of("full", [1] * 8)
    rows += rows_of("snapkv", [0] * 8, 4) + rows_of("none", [0] * 8)
    place = save(tmp_path / "rows", rows)
    app = typer.Typer()
    app.command()(report_verb)
    done = CliRunner().invoke(app, [str(place), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert done.stdout.startswith("octavo@4 scores 25.0% [")
    assert "; the uncompressed text scores 100.0% [100.0–100.0], no text 0.0%." in done.stdout
    assert "It loses 75.0 points [" in done.stdout
    assert "not clearly different from snapkv@4 (+25.0)" in done.stdout  # only two items differ
    assert (tmp_path / "out" / "report.html").is_file()
    assert CliRunner().invoke(app, [str(place)]).exit_code == 2


def test_names_cover_neither_marks_nor_one_another() -> None:
    figure = new_figure(WIDTH, 5)
    axes = figure.add_subplot()
    rng = random.Random(5)
    lines = [[(rng.random(), rng.random()) for _ in range(3)] for _ in range(12)]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.canvas.draw()
    names = [Name(text=f"method-{at}", points=line, colour="k") for at, line in enumerate(lines)]
    boxes = place_names(axes, names, lines)
    assert len(boxes) == 12
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for x, y in axes.transData.transform([point for line in lines for point in line]):
        assert not any(b[0] < x < b[2] and b[1] < y < b[3] for b in boxes)


def test_the_papers_numbers_add_up() -> None:
    """The mean over tasks of Tables 7 to 9 is Table 6, but for what the paper itself rounded."""
    from octavo_evals.report import PAPER

    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    for length, by_label in paper["ruler"].items():
        for label, by_task in by_label.items():
            assert sorted(by_task) == sorted(RULER)
            printed = paper["scores"][label][f"ruler@{length}"]
            assert statistics.fmean(by_task.values()) == pytest.approx(printed, abs=0.06)
