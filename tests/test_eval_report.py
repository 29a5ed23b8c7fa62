"""The report: what the numbers are, what is refused, and that the same rows give the same bytes."""

import base64
import itertools
import json
import random
import re
import statistics
import xml.etree.ElementTree as ElementTree
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
from octavo_evals.methods import METHODS
from octavo_evals.report import PAPER, read, summarise, write
from octavo_evals.report.numbers import compare_models

OLD = Path(__file__).parents[1] / "benchmarks" / "evaluation_2core_202611"
EVIL = "\x1b[31m<script>alert(1)</script>\u202e$\\frac{|`*"


def rows_of(
    method: str, scores: Sequence[float], ratio: int | None = None, **more: Any
) -> list[Any]:
    task = more.pop("task", "squad")
    length = more.pop("length", None)
    return [
        row(task, length, f"{at:04d}", method, ratio, score=score, **more)
        for at, score in enumerate(scores)
    ]


def numbers_of(*folders: Path) -> Any:
    (only,) = summarise(read(folders).rows)
    return only


def one_of(findings: Any, name: str, **where: str) -> Any:
    """Return the only row of a data frame with these values."""
    (only,) = findings.rows(name, **where)
    return only


# --- reading ----------------------------------------------------------------------------------


def test_a_missing_folder_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no folder .*nowhere; name one"):
        read([tmp_path / "nowhere"])
    save(tmp_path, [{"bench": 1}], "bench.jsonl")
    with pytest.raises(EvaluationError, match=r"no rows in .*; name a folder"):
        read([tmp_path])


def test_an_unfinished_last_line_is_left_out_and_noted(tmp_path: Path) -> None:
    save(tmp_path, rows_of("raw", [1, 0, 1]))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-25])
    found = read([tmp_path])
    assert len(found.rows) == 2
    assert "unfinished last line" in found.notes[0]


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    save(tmp_path, rows_of("raw", [1, 0, 1]))
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:40]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(EvaluationError, match=r"rows\.jsonl holds .* \(line 2: .*fix or remove"):
        read([tmp_path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "line 2: task is None, not str"),
        ({"score": 1.5}, "has score 1.5"),
        ({"score": None}, "has score None and skipped None; a row has a score from 0 to 1, or"),
        ({"skipped": "too long"}, "has score 1.0 and skipped too long; a row has"),
        ({"ttft_seconds": "fast"}, "ttft_seconds is 'fast', not int or float"),
        ({"length": True}, "length is True, not int"),
        ({"score": float("nan")}, "score is nan"),
    ],
)
def test_a_row_that_is_no_whole_row_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save(tmp_path, [*rows_of("raw", [1.0]), rows_of("none", [1.0])[0] | change])
    with pytest.raises(EvaluationError, match=rf"rows\.jsonl.*{re.escape(message)}"):
        read([tmp_path])


def test_rows_of_different_seeds_are_refused(tmp_path: Path) -> None:
    save(tmp_path, [*rows_of("raw", [1]), *rows_of("none", [0], seed=43)])
    with pytest.raises(
        EvaluationError, match=r"different seeds: 42 .* and 43 .*one seed at a time"
    ):
        read([tmp_path])


def test_the_same_row_twice_counts_once_and_a_different_one_clashes(tmp_path: Path) -> None:
    one = save(tmp_path / "one", rows_of("raw", [1, 0]))
    two = save(tmp_path / "two", [*rows_of("raw", [1]), *rows_of("none", [0, 0])], "more.jsonl")
    found = read([one, two, one])
    assert len(found.rows) == 4
    assert found.notes == ["1 rows came twice, exactly alike: counted once."]
    save(two, rows_of("raw", [0]), "other.jsonl")
    with pytest.raises(EvaluationError, match=r"rows\.jsonl and .*both hold squad 0000 by raw"):
        read([one, two])


def test_models_are_reported_apart(tmp_path: Path) -> None:
    save(tmp_path, [*rows_of("raw", [1]), *rows_of("raw", [0], fingerprint="ffff")])
    first, second = summarise(read([tmp_path]).rows)
    assert (first.fingerprint, second.fingerprint) == ("04b23f99aa", "ffff")
    assert one_of(first, "means").value == 100
    assert one_of(second, "means").value == 0


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [one | {"context_id": one["id"][:3]} for one in many(2, (1024,))]
    one = save(tmp_path / "one" / "run", rows)
    random.Random(0).shuffle(rows)
    two = save(tmp_path / "two" / "run", rows[:300])
    save(two, rows[300:], "zz.jsonl")
    first, second = numbers_of(one), numbers_of(two)
    assert first.frames.keys() == second.frames.keys()
    for name, frame in first.frames.items():
        assert frame.equals(second.frames[name]), name


def test_the_committed_rows_of_an_older_octavo_give_the_means_of_its_report() -> None:
    found = numbers_of(OLD)
    means = {(row.board, row.label): row.value for row in found.rows("means")}
    assert "raw" in METHODS
    assert "full" not in {label for _, label in means}
    every = [json.loads(line) for line in (OLD / "rows.jsonl").read_text("utf-8").splitlines()]
    for (board, label), value in means.items():
        method, _, ratio = label.partition("@")
        by_task: dict[str, list[float]] = {}
        for one in every:
            name, length = one["task"].partition("/")[0], one["length"]
            name = {"ruler": "RULER", "gsm8k": "gsm8k/whole"}.get(name, name)
            title = f"{name} at {length:,} tokens" if length else name
            own = (title, one["method"].replace("full", "raw"), str(one["ratio"] or ""))
            if own == (board, method, ratio) and one["score"] is not None:
                by_task.setdefault(one["task"], []).append(one["score"])
        expected = statistics.fmean(map(statistics.fmean, by_task.values()))
        assert value == pytest.approx(100 * expected), (board, label)


# --- numbers ----------------------------------------------------------------------------------


def test_scores_differences_and_retention_by_hand(tmp_path: Path) -> None:
    ruler = {"length": 1024, "task": "ruler/vt"}
    save(
        tmp_path,
        [
            *rows_of("raw", [1, 1, 1, 1, 1, 1, 1, 0], **ruler),
            *rows_of("none", [0] * 8, **ruler),
            *rows_of("octavo", [1, 1, 1, 1, 1, 1, 0, 0], 4, **ruler),
            *rows_of("snapkv", [0, 0, 0, 0, 0, 0, 1, 0], 4, **ruler),
            *rows_of("snapkv", [0] * 8, 8, **ruler),
            *rows_of("raw", [1, 1], length=1024, task="ruler/cwe"),
            *rows_of("octavo", [0.5, 0], 4, length=1024, task="ruler/cwe"),
        ],
    )
    found = numbers_of(tmp_path)
    (board,) = found.boards
    assert board.title == "RULER at 1,024 tokens"
    assert board.tasks == ["ruler/cwe", "ruler/vt"]
    ours = one_of(found, "scores", task="ruler/vt", label="octavo@4")
    assert (ours.value, ours.n) == (75.0, 8)
    assert one_of(found, "means", label="octavo@4").value == 50.0  # (75 + 25) / 2
    none = one_of(found, "means", label="none")
    assert (none.value, none.tasks, none.is_whole) == (0.0, 1, False)
    kept = one_of(found, "retention", label="octavo@4")  # none has no cwe: on vt, 6/8 of 7/8
    assert kept.value == pytest.approx(600 / 7)
    assert not found.rows("retention", label="raw")
    apart = {one.rival: one for one in found.rows("differences")}
    assert apart.keys() == {"raw", "none", "snapkv@4"}  # the rival at 8x is no rival at 4x
    assert apart["raw"].value == pytest.approx((-12.5 - 75) / 2)
    assert not apart["raw"].is_clear  # three items differ
    assert apart["snapkv@4"].value == pytest.approx(62.5)
    assert (apart["snapkv@4"].different, apart["snapkv@4"].is_clear) == (7, True)


def test_the_difference_over_all_weighs_boards_alike_and_leaves_likelihoods_out(
    tmp_path: Path,
) -> None:
    nats = {"metrics": {"score": 1.0, "nats": 0.5}, "task": "perplexity"}
    rows = []
    for method, ratio, squad, vt, cwe in (("raw", None, 1, 1, 1), ("octavo", 4, 0, 1, 0)):
        rows += rows_of(method, [squad] * 3, ratio)
        rows += rows_of(method, [vt] * 9, ratio, task="ruler/vt", length=1024)
        rows += rows_of(method, [cwe] * 5, ratio, task="ruler/cwe", length=1024)
        rows += rows_of(method, [1] * 4, ratio, **nats)
    found = numbers_of(save(tmp_path, rows))
    points = {one.board: one.value for one in found.rows("differences")}
    assert points == {"RULER at 1,024 tokens": -50, "squad": -100, "perplexity": 0, "all": -75}


def test_questions_about_one_context_are_resampled_together(tmp_path: Path) -> None:
    def interval(folder: str, **more: Any) -> tuple[float, float]:
        rows = rows_of("raw", [1, 1, 1, 1, 0, 0, 0, 0] * 3)
        for at, one in enumerate(rows):
            one |= {name: make(at) for name, make in more.items()}
        found = one_of(numbers_of(save(tmp_path / folder, rows)), "means")
        return found.low, found.high

    alone = interval("alone", context_id=str)
    shared = interval("shared", context_id=lambda at: str(at // 4))
    reused = interval("reused", is_reused=lambda at: at % 4 > 0)  # as older rows say it
    assert reused == shared
    assert shared[1] - shared[0] > 1.5 * (alone[1] - alone[0])


def test_a_difference_in_few_contexts_is_not_clear(tmp_path: Path) -> None:
    contexts = [{"context_id": str(at // 4)} for at in range(20)]
    both = zip(
        [*rows_of("octavo", [1] * 20, 4), *rows_of("raw", [0] * 20)], contexts * 2, strict=True
    )
    found = numbers_of(save(tmp_path, [one | context for one, context in both]))
    apart = one_of(found, "differences")
    assert (apart.value, apart.different, apart.is_clear) == (100, 5, False)


def test_skipped_rows_and_empty_answers_are_counted(tmp_path: Path) -> None:
    skipped = {"score": None, "skipped": "does not fit", "metrics": {}}
    rows = rows_of("raw", [1, 1, 0, 0])
    rows[0] |= skipped
    rows[1]["answer"] = " \n"
    all_skipped = [one | skipped for one in rows_of("kvzip", [1, 1], 4)]
    found = numbers_of(save(tmp_path, [*rows, *all_skipped]))
    raw = one_of(found, "scores", label="raw")
    assert (raw.n, raw.skipped, raw.empty) == (3, 1, 1)
    assert raw.value == pytest.approx(100 / 3)
    masked = one_of(found, "scores", label="kvzip@4")
    assert (masked.n, masked.skipped, masked.value != masked.value) == (0, 2, True)
    assert found.skipped == {"does not fit": 3}
    assert found.masked == {"kvzip@4"}


def test_costs_by_hand(tmp_path: Path) -> None:
    def timed(method: str, ratio: int | None, times: Sequence[tuple[float, float]]) -> list[Any]:
        rows = rows_of(method, [1] * len(times), ratio)
        for at, (compress, ttft) in enumerate(times):
            rows[at] |= {"compress_seconds": compress, "ttft_seconds": ttft}
            rows[at]["is_reused"] = at > 1
        return rows

    rows = timed("raw", None, [(0, 2.0), (0, 4.0), (0, 1.0), (0, 1.0)])
    rows += timed("octavo", 4, [(3.0, 1.0), (4.0, 1.0), (0, 0.5), (0, 0.5)])
    rows[-1] |= {"new_tokens": 11, "decode_seconds": 2.0}
    found = numbers_of(save(tmp_path, rows))
    medians = {one.measure: one.median for one in found.rows("costs", label="octavo@4")}
    assert medians["first_ttft_seconds"] == 4.5
    assert medians["next_ttft_seconds"] == 0.5
    assert medians["speed_up"] == pytest.approx((2 / 4 + 4 / 5) / 2)  # item by item
    assert medians["decode_tokens_per_second"] == 8 / 0.4
    pays = one_of(found, "pays")  # 4.5 + 3 * 0.5 = 6 = 3 + 3 * 1
    assert (pays.label, pays.first, pays.last) == ("octavo@4", 4, None)


def test_times_of_another_folder_or_machine_do_not_compare(tmp_path: Path) -> None:
    one = save(tmp_path / "one", rows_of("raw", [1]))
    two = save(tmp_path / "two", rows_of("octavo", [1], 4))
    save(one, rows_of("octavo", [1], 8, machine="Another"), "more.jsonl")
    assert not numbers_of(one, two).rows("costs", measure="speed_up")


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
    """Collects what a page points at and says, and checks that its tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: list[str] = []
        self.tags: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""
        self.feed(text)
        assert self.tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.places += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_has_all_its_files(report: Path) -> None:
    boards = ("ruler-1024", "ruler-2048")
    costs = {f"frontier-{cost}-{one}" for cost in ("ttft", "bytes") for one in boards}
    stems = {"ratio", "length", "position", *costs}
    names = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert {p.name for p in report.iterdir()} == names | {"report.md", "report.html", "tables.json"}
    text = (report / "report.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert linked == {f"{stem}.png" for stem in stems}
    assert (report / "ratio.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_but_itself(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.counts["img"] == page.counts["figcaption"] == 7
    assert page.counts["section"] == 1
    assert not {"script", "link", "iframe"} & page.counts.keys()
    assert all(place.startswith("data:image/svg+xml;base64,") for place in page.places)
    assert "@import" not in text
    assert "url(" not in text
    for place in page.places:
        drawing = base64.b64decode(place.partition(",")[2]).decode("utf-8")
        targets = re.findall(r'(?:href|src)="([^"]*)"', drawing)
        assert all(target.startswith("#") for target in targets)
    assert "masks only: holds the whole cache" in page.text
    assert '["octavo", "eval", "ruler"]' in page.text
    assert "Two cores, 2 threads" in page.text


def test_pictures_and_page_follow_a_dark_screen_in_every_colour(report: Path) -> None:
    assert "prefers-color-scheme:dark" in (report / "report.html").read_text(encoding="utf-8")
    for file in report.glob("*.svg"):
        text = file.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        light, dark = re.findall(r":root\{([^}]*)\}", text)
        assert [one.split(":")[0] for one in light.split(";")] == [
            one.split(":")[0] for one in dark.split(";")
        ]
        drawn = text.partition("</style>")[2]
        assert f"var(--{METHODS['octavo'].colours[0][1:]})" in drawn
        assert not re.search(r"(fill|stroke): ?#", drawn), file.name


def test_the_tables_say_what_the_rows_say(report: Path) -> None:
    (model,) = json.loads((report / "tables.json").read_text(encoding="utf-8"))["models"]
    made = [r for r in many(8) if r["task"] == "ruler/vt" and r["length"] == 1024]
    mine = [r["score"] for r in made if (r["method"], r["ratio"]) == ("octavo", 4)]
    about = {"board": "RULER at 1,024 tokens", "label": "octavo@4"}
    (score,) = [r for r in model["scores"] if r.items() >= (about | {"task": "ruler/vt"}).items()]
    assert score["value"] == pytest.approx(100 * sum(mine) / 8)
    assert model["masked"] == ["kvzip@16", "kvzip@4", "kvzip@8"]
    text = (report / "report.md").read_text(encoding="utf-8")
    (mean,) = [r for r in model["means"] if r.items() >= about.items()]
    shown = f"{mean['value']:.1f} ({mean['low']:.1f}–{mean['high']:.1f})"
    assert re.search(rf"(?m)^\| octavo@4 \| {re.escape(shown)} \|", text)
    assert "| kvzip@4 (masks only: holds the whole cache) |" in text
    assert "accuracy\\_q4" in text
    assert "What the paper reports" in text


def test_names_from_rows_can_neither_run_nor_draw_nor_hide_anything(tmp_path: Path) -> None:
    rows = rows_of("octavo", [1, 0], 4, task=f"{EVIL}/a", model=f"../{EVIL}")
    rows += rows_of("octavo", [1, 0], 4, task=f"{EVIL}/b", model=f"../{EVIL}")
    for task in "ab":  # as octavo does, so that it is drawn
        about = {"task": f"{EVIL}/{task}", "machine": EVIL, "model": f"../{EVIL}"}
        rows += rows_of(EVIL, [1, 0], 2, **about)
    rows += rows_of("raw@x", [1, 0], None, task=f"{EVIL}/b", metric=EVIL, model=f"../{EVIL}")
    rows[0]["metrics"][EVIL] = 1.0
    rows[1] |= {"score": None, "skipped": f"{EVIL}\ud800"}
    place = save(tmp_path / "rows", [])
    (place / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    (place / "run.json").write_text(json.dumps({EVIL: [EVIL, "\x9b2J"]}))
    headlines = write([place], tmp_path / "out")
    texts = [(tmp_path / "out" / name).read_text("utf-8") for name in
             ("report.md", "report.html", "tables.json")]  # fmt: skip
    for text in (*headlines, *texts):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    page = _Page(texts[1])
    assert "script" not in page.counts
    assert "<script>alert(1)</script>" in page.text
    assert not re.search(r"(?<!\\)<script", texts[0])
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {
        ".md", ".html", ".json", ".png", ".svg"
    }  # fmt: skip
    for file in (tmp_path / "out").glob("*.svg"):
        ElementTree.fromstring(file.read_text("utf-8"))


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    place = save(tmp_path / "rows", rows_of("octavo", [1, 0], 4) + rows_of("raw", [1, 1]))
    for name in ("one", "two"):
        write([place], tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert "frontier-ttft-squad.svg" in one


@pytest.mark.slow
def test_a_report_of_several_models_keeps_their_pictures_apart(tmp_path: Path) -> None:
    rows = rows_of("octavo", [1, 0], 4)
    place = save(tmp_path / "rows", [*rows, *(one | {"model": "owner/other"} for one in rows)])
    write([place], tmp_path / "out")
    assert (tmp_path / "out" / "smol-ratio.png").is_file()
    assert (tmp_path / "out" / "owner-other-ratio.png").is_file()


def test_models_that_answered_the_same_items_are_compared_pair_by_pair(tmp_path: Path) -> None:
    for name, scores in (("old", [0, 0, 0, 0, 0, 0, 1, 0]), ("new", [1, 1, 1, 1, 1, 1, 0])):
        rows = rows_of("octavo", scores, 4, model="smol", fingerprint=name * 5)
        save(tmp_path / name, rows)
    old, new = sorted(
        summarise(read([tmp_path / "old", tmp_path / "new"]).rows),
        key=lambda one: one.fingerprint, reverse=True,
    )  # fmt: skip
    (found,) = compare_models(new, old).itertuples(index=False)
    assert (found.label, found.different) == ("octavo@4", 7)
    assert found.value == pytest.approx(500 / 7)  # the eighth item has no partner
    assert found.is_clear
    (back,) = compare_models(old, new).itertuples(index=False)
    assert (back.value, back.low, back.high) == (-found.value, -found.high, -found.low)
    write([tmp_path / "old", tmp_path / "new"], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "### This model minus smol (oldoldol)" in page
    assert "**+71.4**" in page


def test_rows_without_times_or_rivals_make_a_report(tmp_path: Path) -> None:
    untimed = dict.fromkeys(("ttft_seconds", "decode_seconds", "cache_bytes", "peak_bytes"))
    rows = [one | untimed for one in rows_of("bm25", [1, 0], 4)]
    (headline,) = write([save(tmp_path / "rows", rows)], tmp_path / "out")
    assert headline == "No octavo answers on squad. Its scores: bm25@4 50.0%."
    assert not list((tmp_path / "out").glob("frontier*"))


def test_rows_that_were_all_skipped_make_a_report(tmp_path: Path) -> None:
    skipped = {"score": None, "skipped": "too long", "metrics": {}}
    rows = [one | skipped for one in rows_of("octavo", [1, 0], 4)]
    (headline,) = write([save(tmp_path / "rows", rows)], tmp_path / "out")
    assert headline == "No octavo answers on squad. Its scores: none."
    assert "2 rows were skipped: too long" in (tmp_path / "out" / "report.md").read_text("utf-8")


@pytest.mark.parametrize("library", ["matplotlib", "pandas", "jinja2", "adjustText"])
def test_a_report_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    place = save(tmp_path / "rows", rows_of("raw", [1]))
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="is a file; give a folder"):
        write([place], tmp_path / "file")
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"needs {library}: pip install 'octavo\[eval\]'"):
        write([place], tmp_path / "out")


def test_the_verb_prints_the_headlines_and_writes_beside_the_rows(tmp_path: Path) -> None:
    rows = rows_of("octavo", [1, 0, 0, 0, 0, 0, 0, 1], 4) + rows_of("raw", [1] * 8)
    rows += rows_of("snapkv", [0] * 8, 4) + rows_of("none", [0] * 8)
    place = save(tmp_path / "rows", rows)
    app = typer.Typer()
    app.command()(report_verb)
    done = CliRunner().invoke(app, [str(place)])
    assert done.exit_code == 0
    assert done.stdout.startswith("octavo@4 scores 25.0% (")
    assert "; raw text scores 100.0% (100.0–100.0), no text 0.0%." in done.stdout
    assert "It loses 75.0 points (" in done.stdout
    assert "not clearly different from snapkv@4 (+25.0)" in done.stdout  # only two items differ
    assert (place / "report" / "report.html").is_file()
    done = CliRunner().invoke(app, [str(place), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0  # the report beside the rows is none of them
    assert (tmp_path / "out" / "report.html").is_file()


def test_every_method_has_a_colour_of_its_own_on_light_and_on_dark() -> None:
    for side in (0, 1):
        colours = [entry.colours[side] for entry in METHODS.values()]
        assert len(set(colours)) == len(colours)
    assert list(itertools.islice(METHODS, 3)) == ["raw", "none", "octavo"]


def test_the_papers_numbers_add_up() -> None:
    """The mean over tasks of Tables 7 to 9 is Table 6, but for what the paper itself rounded."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    for length, by_label in paper["ruler"].items():
        for label, by_task in by_label.items():
            assert sorted(by_task) == sorted(RULER)
            printed = paper["scores"][label][f"ruler@{length}"]
            assert statistics.fmean(by_task.values()) == pytest.approx(printed, abs=0.06)
