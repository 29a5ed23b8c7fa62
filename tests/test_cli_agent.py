"""`octavo agent`: passages first, traces on request, calibration kept, one line for an error."""

import json
from pathlib import Path

import pytest
from conftest import CHECKPOINT, TEXT, Run

from octavo.confidence import read_measured

MODEL = ("--model", CHECKPOINT)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    path = tmp_path / "book.txt"
    path.write_text(f"The <b>first</b> line.\x1b[2J\n{TEXT}", encoding="utf-8")
    return path


def test_passages_come_first_and_a_guess_is_not_shown_as_a_fact(run: Run, book: Path) -> None:
    done = run("agent", "Who signed for the lamp oil?", book, *MODEL)
    assert done.code == 0
    assert f"{book}:2" in done.out.splitlines()[0]
    assert done.out.index("lamp oil") < done.out.index("The model was not calibrated")
    assert "rounds" in done.err
    assert "\x1b" not in done.out


def test_a_screen_shows_the_best_passages_and_says_how_many_more_were_read(
    run: Run, book: Path
) -> None:
    long = book.parent / "long.txt"
    long.write_text("\n\n".join(f"Ferry {n} left late." for n in range(400)), encoding="utf-8")
    budget = ("--budget", 1000)
    cited = json.loads(run("agent", "Which ferry left late?", long, *MODEL, *budget, "--json").out)
    shown = run("agent", "Which ferry left late?", long, *MODEL, *budget).out
    assert len(cited["citations"]) > 5
    assert shown.count(f"{long}:") == 5
    assert f"(and {len(cited['citations']) - 5} more that were read" in shown


def test_what_is_in_the_store_is_asked_by_its_name(run: Run, book: Path) -> None:
    notes = book.parent / "notes"
    notes.mkdir()
    (notes / "tide.md").write_text("# Tide\n\nThe tide turns at six.", encoding="utf-8")
    run("store", "add", book, "--name", "ledger", *MODEL)
    run("store", "add", book, "--name", "plain", "--index-only")
    for name in ("ledger", "plain"):
        done = run("agent", "Who signed for the lamp oil?", name, notes, *MODEL, "--json")
        found = json.loads(done.out)["citations"]
        assert found[0]["file"] == name
        assert "lamp oil" in found[0]["text"]
    assert "nor is there a file of that name" in run("agent", "Who?", "none", *MODEL).err


def test_a_trace_is_written_as_lines_and_as_a_page(run: Run, book: Path) -> None:
    lines, page = book.parent / "run.jsonl", book.parent / "run.html"
    files = ("--trace", lines, "--page", page)
    done = run("agent", "Who wrote the <b>first</b> line?", book, *MODEL, *files, "--json")
    answer = json.loads(done.out)
    assert answer["citations"][0]["file"] == str(book)
    events = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    kinds = [one["event"] for one in events]
    assert (kinds[0], kinds[-1]) == ("question", "answer")
    assert kinds.count("round") == len(answer["rounds"])
    assert events[-1]["text"] == answer["text"]
    shown = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;first&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert "\x1b" not in shown


@pytest.mark.slow
def test_calibration_is_kept_for_the_model_it_measured(run: Run, book: Path) -> None:
    items = book.parent / "items.jsonl"
    item = {"context": TEXT, "question": "Who signed?", "answers": ["Nobody"]}
    items.write_text("".join(json.dumps(item) + "\n" for _ in range(8)), encoding="utf-8")
    done = run("agent", "--calibrate", items, *MODEL, "--json")
    found = json.loads(done.out)
    assert found["accuracy"]["retrieval, alone"] == 0.0
    measured = read_measured(Path(found["path"]).stem)
    assert measured.curves["passages"].num_items >= 8
    # Plain questions alone, one a ratio: not what an agent says of latents.
    assert measured.curves["latents"].num_items == measured.curves["raw"].num_items == 8
    assert (measured.policy, measured.layout) == (found["policy"], found["layout"])
    assert "8 items: items.jsonl" in measured.about


def test_what_cannot_be_asked_is_one_line(run: Run, book: Path) -> None:
    assert "give a question and at least one text" in run("agent", "Who?", *MODEL).error
    assert "unknown policy 'x'" in run("agent", "Who?", book, *MODEL, "--policy", "x").error
    (book.parent / "few.jsonl").write_text('{"context": "a"}\n', encoding="utf-8")
    assert "item 1 is not" in run("agent", "--calibrate", book.parent / "few.jsonl", *MODEL).error
