"""`octavo ask` and `octavo store`: passages first, and an answer only where it can be trusted."""

import json
from pathlib import Path

import pytest
from conftest import CHECKPOINT, TEXT, Run
from engines import oracle

import octavo
from octavo.ask.answer import answer_from
from octavo.ask.index import PassageIndex
from octavo.ask.passages import cut_passages
from octavo.ask.sources import TextSource, find_passages
from octavo.confidence import Curve, Measured, write_measured
from octavo.store import Store

FAKE = ("--model", str(CHECKPOINT), "--engine", "fake")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a log in Markdown, a program and something that is no text."""
    place = tmp_path / "docs"
    place.mkdir()
    (place / "log.md").write_text(f"# Log\n\n## Ferry\n\n{TEXT * 3}\n\n## Cellar\n\nDry.\n")
    (place / "tide.py").write_text("def low_tide(hour):\n    return hour % 12 == 4\n")
    (place / "broken.txt").write_bytes(b"\xff\xfa\xfb lamp")
    return place


def test_passages_come_with_file_line_heading_characters_and_marks(run: Run, folder: Path) -> None:
    result = run("ask", "Who signed for the lamp oil?", folder / "log.md", "--no-answer")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()[:2]
    place, _, rest = first.partition("  ")
    assert place.startswith(f"{folder / 'log.md'}:5")
    assert rest.endswith("]  Log > Ferry")
    assert "**signed** for the **lamp** **oil**" in result.out
    assert second.startswith("    ")


def test_json_holds_exact_places(run: Run, folder: Path) -> None:
    path = folder / "log.md"
    result = run(
        "ask", "Who signed for the lamp oil?", path, "--no-answer", "--json", "--passages", "2"
    )
    values = json.loads(result.out)
    text = path.read_text()
    assert values["answer"] is None
    assert 1 <= len(values["passages"]) <= 2
    for one in values["passages"]:
        assert text[one["start"] : one["end"]] == one["text"]
        assert one["source"] == str(path)
        assert one["text"][slice(*one["marks"][0])].lower() in ("signed", "lamp", "oil")


def test_a_folder_is_asked_at_once_and_what_is_no_text_is_counted(run: Run, folder: Path) -> None:
    result = run("ask", "When is low tide?", folder, "--no-answer", "--passages", "9")
    assert f"{folder / 'tide.py'}:1" in result.out
    assert f"{folder / 'log.md'}:" in result.out
    assert "1 file could not be read" in result.err


def test_asking_a_second_time_finds_the_index(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("ask", "When is low tide?", folder, "--no-answer")
    first = run(*line)
    monkeypatch.setattr(PassageIndex, "build", lambda *_: pytest.fail("built anew"))
    assert run(*line).out == first.out


def test_an_answer_that_was_never_measured_is_not_shown(run: Run, folder: Path) -> None:
    result = run("ask", "Who signed for the lamp oil?", folder / "log.md", *FAKE)
    assert result.code == 0
    last = result.out.splitlines()[-1]
    assert last.startswith("how far this model can be trusted was never measured")
    values = json.loads(run("ask", "Who signed?", folder / "log.md", "--json", *FAKE).out)
    assert values["answer"]["is_sure"] is False
    assert values["answer"]["confidence"] is None


@pytest.mark.parametrize(("intercept", "is_shown"), [(3.0, True), (-3.0, False)])
def test_an_answer_is_shown_with_its_confidence_only_if_the_model_is_sure(
    run: Run, folder: Path, fake_model: octavo.Model, intercept: float, is_shown: bool
) -> None:
    curve = Curve(slope=1.0, intercept=intercept, num_items=20, auc=0.9)
    write_measured(Measured(fingerprint=fake_model.fingerprint, curves={"passages": curve}))
    result = run("ask", "Who signed for the lamp oil?", folder / "log.md", *FAKE)
    last = result.out.splitlines()[-1]
    if is_shown:
        assert last.endswith("(95% sure)")
    else:
        assert last == "the model is not sure; the passages above are what the text says"


def test_the_model_reads_the_best_passages_within_the_budget_in_their_order(
    fake_model: octavo.Model,
) -> None:
    text = "Ash falls. " * 40 + "The clerk is Ines. " + "Ash falls. " * 40 + "The clerk hums. "
    read: list[str] = []

    def solve(prompt: str) -> list[str]:
        read.append(prompt)
        return ["Ines"]

    index = PassageIndex.build(text, cut_passages(text, max_tokens=16))
    source = TextSource(title="t", index=index, read=lambda: text)
    found = find_passages("Who is the clerk?", [source], 9)
    model = oracle(fake_model, solve)
    answer = answer_from(model, "Who is the clerk?", found, budget=400)
    assert answer.text == "Ines"
    prompt = read[-1]
    assert 0 < prompt.index("Ines") < prompt.index("hums") < prompt.index("Who is the clerk?")
    answer_from(model, "Who is the clerk?", found, budget=1)
    assert ("Ines" in read[-1]) + ("hums" in read[-1]) == 1  # one passage, however small the budget


def test_raw_lets_the_model_read_everything(run: Run, folder: Path) -> None:
    line = ("ask", "Who signed?", folder / "log.md", "--json", *FAKE)
    some, everything = (json.loads(run(*line, *more).out) for more in ((), ("--raw",)))
    assert everything["answer"]["usage"]["prompt_tokens"] > some["answer"]["usage"]["prompt_tokens"]


def test_the_whole_store_is_asked_without_a_place_and_an_entry_by_its_name(
    run: Run, folder: Path
) -> None:
    assert "empty" in run("ask", "Who?", "--no-answer").error
    assert run("store", "add", folder / "log.md", "--name", "log", *FAKE).code == 0
    assert run("store", "add", folder / "tide.py", "--index-only").code == 0
    for places in ((), ("log",)):
        result = run("ask", "Who signed for the lamp oil?", *places, "--no-answer")
        assert result.out.startswith("log:5")
    assert "tide.py:1" in run("ask", "low_tide hour", "--no-answer").out
    assert "nor is there a file" in run("ask", "Who?", "nothing.txt", "--no-answer").error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("ask", "Wherefore zeppelins?", "log.md", "--no-answer"), "no passage of 1 text"),
        (("ask", "Who is it? " * 200, "log.md", "--no-answer"), "more than the budget of 256"),
        (("ask", "Who?", "log.md", "--raw", "--no-answer"), "--raw"),
        (("ask", "-", "-"), "stdin"),
        (("ask", " ", "log.md"), "question"),
        (("ask", "Who?", "empty.md", "--no-answer"), "empty"),
        (("ask", "Who?", "missing/*.md", "--no-answer"), "names no document"),
    ],
)
def test_wrong_questions_are_one_line(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], said: str
) -> None:
    (folder / "empty.md").write_text("")
    monkeypatch.chdir(folder)
    assert said in run(*line).error


def test_escape_sequences_of_a_text_reach_no_terminal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "evil.txt"
    path.write_text("The lamp \x1b[2J\x1b]0;owned\x07 is lit. \u202edne\n")
    result = run("ask", "the lamp", path, "--no-answer")
    assert "\x1b" not in result.out
    assert "\u202e" not in result.out
    assert "\\x1b[2J" in result.out


def test_files_are_asked_about_even_where_nothing_can_be_kept(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "file"))
    assert run("ask", "low tide", folder / "tide.py", "--no-answer").code == 0
    assert run("store", "list").code == 1


# -- the store's commands --------------------------------------------------------------------------


def test_compress_without_a_place_puts_the_context_in_the_store(run: Run, folder: Path) -> None:
    result = run("compress", folder / "log.md", *FAKE)
    (entry,) = Store().list()
    assert result.out.startswith(f"{entry.id}  {folder / 'log.md'}  ")
    assert result.out.count("\n") == 1
    again = json.loads(run("compress", folder / "log.md", "--json", *FAKE).out)
    assert again["id"] == entry.id
    assert Store().context(entry.id).text == (folder / "log.md").read_text()


def test_entries_are_added_listed_shown_and_removed(run: Run, folder: Path) -> None:
    added = json.loads(run("store", "add", folder, "--tag", "docs", "--int8", "--json", *FAKE).out)
    assert [Path(one["source"]).name for one in added] == ["log.md", "tide.py"]
    assert added[0]["precision"] == "int8"
    assert added[0]["loss"] > 0
    listed = run("store", "list", "--tag", "docs").out.splitlines()
    assert len(listed) == 2
    assert all(one.endswith("#docs") for one in listed)
    assert json.loads(run("store", "list", "--tag", "no", "--json").out) == []
    assert "nothing is kept tagged no; `octavo store add" in run("store", "list", "--tag", "no").err
    shown = run("store", "show", added[0]["id"][:10])
    assert "log.md" in shown.out
    assert run("store", "rm", added[0]["id"], "nothing").code == 1
    assert len(Store().list()) == 2
    assert run("store", "rm", *[one["id"] for one in added]).code == 0
    assert Store().list() == []


def test_a_store_is_verified_swept_exported_and_imported(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("store", "add", folder / "log.md", "--name", "log", *FAKE)
    assert run("store", "verify").out == "1 entries, 0 problems\n"
    assert "listed 0" in run("store", "gc", "--max-size", "2GB").out
    assert Store().max_bytes == 2 * 10**9
    assert "expected such as" in run("store", "gc", "--max-size", "large").error
    assert run("store", "export", tmp_path / "out.zip").code == 0
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "elsewhere"))
    assert "log" in run("store", "import", tmp_path / "out.zip").out
    (path,) = Store().folder.rglob("text.txt")
    path.write_text("altered")
    result = run("store", "verify")
    assert result.code == 1
    assert "does not match its sha256" in result.out


def test_stdin_is_added_and_one_name_is_for_one_document(run: Run, folder: Path) -> None:
    assert run("store", "add", "-", "--name", "said", "--index-only", stdin=TEXT.encode()).code == 0
    assert Store().text("said") == TEXT
    assert "--name names one" in run("store", "add", folder, "--name", "x", "--index-only").error


# -- generate(cite=True) ---------------------------------------------------------------------------


def test_an_answer_cites_the_passages_it_rests_on(fake_model: octavo.Model) -> None:
    text = "Ash falls. " * 60 + "The clerk is Ines Vane. " + "Ash falls. " * 60
    model = oracle(fake_model, lambda prompt: ["Ines Vane"])
    plain = model.generate("Who is the clerk?", context=text)
    assert plain.citations == ()
    answer = model.generate("Who is the clerk?", context=[TEXT, text], cite=True)
    first = answer.citations[0]
    assert first.holds_answer
    assert first.context == 1
    assert text[first.start : first.end] == first.text
    both = model.generate(["Who is the clerk?", "What falls?"], context=text, cite=True)
    assert all(one.citations for one in both)
    assert json.dumps(answer.to_dict())
