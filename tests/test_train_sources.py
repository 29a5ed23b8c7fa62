"""Sources: files of every format, records of every form, drawing, and holding texts out."""

import itertools
import json
import random
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import records
from octavo.data.documents import CONTINUAL, Document
from octavo.data.sources import (
    Library,
    fingerprint,
    read_libraries,
    read_library,
    read_source,
    split_held_out,
)
from octavo.errors import InputError, MissingExtraError, TrainingError
from octavo.recipe import DataSection, RunConfig, SourceSection

LONG = "A sentence of some length. " * 10


def read(pattern: str, root: Path, data: DataSection | None = None) -> list[Document]:
    return read_source("s", SourceSection(files=[pattern]), data or DataSection(), root)


def texts(pattern: str, root: Path, data: DataSection | None = None) -> list[str]:
    return [document.text for document in read(pattern, root, data)]


def record(tmp_path: Path, row: Any) -> Document:
    (tmp_path / "r.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (document,) = read("r.jsonl", tmp_path)
    return document


def test_txt_jsonl_zst_and_parquet_hold_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    import zstandard

    rows = [{"text": "first"}, {"text": "second"}]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    frames = [zstandard.ZstdCompressor().compress(line.encode()) for line in lines]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))  # as appended to
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for index, row in enumerate(rows):
        (tmp_path / f"{index}.txt").write_text(row["text"], encoding="utf-8")
    for pattern in ("a.jsonl", "a.jsonl.zst", "a.parquet", "[0-9].txt"):
        assert texts(pattern, tmp_path) == ["first", "second"]


def test_a_zst_with_a_window_beyond_the_usual_limit_is_read(tmp_path: Path) -> None:
    import zstandard

    wide = zstandard.ZstdCompressionParameters(window_log=28)
    packed = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    line = json.dumps({"text": "far"}).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(packed.compress(line) + packed.flush())
    assert texts("a.jsonl.zst", tmp_path) == ["far"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.json.zst", "a.txt"])
def test_a_text_without_an_end_is_refused_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import zstandard

    monkeypatch.setattr(records, "MAX_RECORD_CHARS", 1 << 16)
    data = b"\n" + json.dumps({"text": "a" * (1 << 22)}).encode()
    packed = zstandard.ZstdCompressor().compress(data)
    assert len(packed) < 1000  # a bomb
    (tmp_path / name).write_bytes(packed if name.endswith("zst") else data)
    where = ", line 2," if "jsonl" in name else ""
    with pytest.raises(InputError, match=rf"{name}{where} has more than 65,536 characters"):
        list(records.read_dataset(tmp_path / name))


def test_a_line_separator_inside_a_text_ends_no_record(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    line = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(line + "\r\n\n" + line, encoding="utf-8")
    assert texts("a.jsonl", tmp_path) == [text, text]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    assert texts("a.txt", tmp_path) == ["one"]


def test_a_long_text_file_becomes_several_documents_and_a_long_record_is_cut_off(
    tmp_path: Path,
) -> None:
    data = DataSection(max_document_chars=4)
    (tmp_path / "a.txt").write_text("0123456789", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "0123456789"}), encoding="utf-8")
    assert texts("a.txt", tmp_path, data) == ["0123", "4567", "89"]
    assert texts("a.jsonl", tmp_path, data) == ["0123"]


@pytest.mark.parametrize("count", [9, 10, 19, 20, 21, 57, 1000])
def test_documents_are_taken_evenly_from_the_whole_file(tmp_path: Path, count: int) -> None:
    lines = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(count))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    kept = [int(text) for text in texts("a.jsonl", tmp_path, DataSection(max_documents=10))]
    assert len(kept) == min(count, 10)
    steps = [b - a for a, b in itertools.pairwise(kept)]
    assert kept[0] == 0
    assert kept[-1] >= count * 0.8 - 1
    assert max(steps) <= 2 * min(steps)
    section = SourceSection(files=["a.jsonl"], max_documents=3)
    assert len(read_source("s", section, DataSection(), tmp_path)) == 3


def test_the_rehearsal_needs_no_text_of_yours(tmp_path: Path) -> None:
    config = RunConfig.load(Path(octavo.__file__).parent / "recipes" / "tiny.toml")
    train, held_out = read_libraries(config, tmp_path)
    assert train.has("prose")
    assert held_out.has("prose")
    with pytest.raises(TrainingError, match="no file matches 'octavo:nosuch'"):
        read("octavo:nosuch", tmp_path)


def test_brackets_in_a_folder_or_file_name_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    folder.mkdir()
    (folder / "a [2].txt").write_text("one", encoding="utf-8")
    assert texts("a [2].txt", folder) == ["one"]
    assert texts("*.txt", folder) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2, is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2, is not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1, is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 200_000, "line 2, is not JSON"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "line 1, is not JSON"),
        ("a.json", b'{"text": "\xff"}', "a.json is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "holds no text"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "x"}]}\n', "holds no text"),
        ("a.jsonl", b'{"messages": [{"role": "bot", "content": "x"}]}\n', "holds no text"),
        ("a.jsonl", b"[1]\n", "holds no text"),
        ("a.txt", b" \n", "holds no text"),
        ("a.txt", b"\xff\xfe\xfa", "cannot read"),
        ("a.parquet", b"PAR?", "cannot read"),
        ("a.jsonl.zst", b"not zstandard", "not a zstandard file"),
        ("a.csv", b"x", "unknown format"),
    ],
)
def test_an_unusable_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, TrainingError), match=says):
        read(name, tmp_path)


def test_a_pattern_without_a_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no file matches 'b\*\.txt' \(looked from"):
        read("b*.txt", tmp_path)


@pytest.mark.parametrize(("name", "package"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pya")])
def test_a_missing_package_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install"):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("answers", "read"),
    [
        (["Rain", 3, " "], ("Rain",)),
        ("Rain", ("Rain",)),
        ({"text": ["Rain"], "answer_start": [3]}, ("Rain",)),  # as SQuAD has them on the hub
        (5, ()),
        (True, ()),
        ({"start": 3}, ()),
    ],
)
def test_answers_of_every_shape_are_read_or_left_out(
    tmp_path: Path, answers: Any, read: tuple[str, ...]
) -> None:
    row = {"context": "It rains.", "question": "What?", "answers": answers}
    assert record(tmp_path, row).answers == read


def test_records_of_every_form_are_told_apart(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    forms: dict[str, Any] = {
        "prose": {"text": LONG},
        "questions": {"context": "It rains.", "question": "What?", "answers": ["Rain"]},
        "chats": {"messages": chat},
        "pairs": {"prompt": "A long prompt", "target": "yes"},
    }
    for use, row in forms.items():
        assert record(tmp_path, row).use == use
    assert record(tmp_path, {"text": "short"}).use is None
    assert record(tmp_path, {"context": "x", "question": "y", "answers": []}).use is None
    assert record(tmp_path, {"context": "x", "question": "y", "answer": "z"}).answers == ("z",)


def test_a_released_row_becomes_parts_and_only_there_are_tags_live(tmp_path: Path) -> None:
    tagged = "Read <|memory_start|>much\ntext<|memory_end|> and <|memory_end|> answer."
    message = {"role": "user", "content": tagged}
    row = {"compression_prompt": [message], "target": CONTINUAL}
    document = record(tmp_path, row)
    assert document.use == "pairs"
    assert document.messages[0]["content"] == [
        {"type": "text", "text": "Read "},
        {"type": "memory", "text": "much\ntext"},
        {"type": "text", "text": " and <|memory_end|> answer."},
    ]
    chat = [message, {"role": "assistant", "content": "Yes."}]
    assert record(tmp_path, {"messages": chat}).messages[0]["content"] == tagged


class _Hub(types.ModuleType):
    """Stands in for `datasets`: streams numbers, or fails as the hub may."""

    asked: tuple[Any, ...] = ()
    error: Exception | None = None

    def load_dataset(self, name: str, config: str | None, **settings: Any) -> Iterator[Any]:
        self.asked = (name, config, settings)
        if self.error:
            raise self.error
        return ({"text": f"number {i}"} for i in range(10**9))


def test_a_hub_dataset_is_streamed_no_further_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub("datasets")
    monkeypatch.setitem(sys.modules, "datasets", hub)
    data = DataSection(max_documents=3)
    assert texts("hf:owner/set:train", tmp_path, data) == ["number 0", "number 1", "number 2"]
    assert hub.asked == ("owner/set", None, {"split": "train", "streaming": True})
    assert len(texts("hf:owner/set:en:test", tmp_path, data)) == 3
    assert hub.asked[:2] == ("owner/set", "en")
    hub.error = ConnectionError("no route")
    with pytest.raises(InputError, match=r"cannot stream hf:owner/set:train: .*no route"):
        read("hf:owner/set:train", tmp_path)
    with pytest.raises(InputError, match="is not hf:NAME:SPLIT"):
        read("hf:owner/set", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'octavo\[data\]'"):
        read("hf:owner/set:train", tmp_path)


def prose(*names: str, each: int = 1) -> dict[str, list[Document]]:
    return {
        name: [Document(f"{name}{i} {LONG}", origin=f"{name}:{i}") for i in range(each)]
        for name in names
    }


def test_a_weight_decides_how_often_a_source_is_drawn() -> None:
    sources = {**prose("few", each=1), **prose("many", each=9), **prose("never", each=50)}
    rng = random.Random(0)
    library = Library(sources, {"never": 0.0})
    drawn = Counter(library.prose(rng).origin.split(":")[0] for _ in range(2000))
    assert set(drawn) == {"few", "many"}
    assert drawn["few"] == pytest.approx(200, abs=50)
    library = Library(sources, {"few": 3.0, "many": 1.0, "never": 0.0})
    drawn = Counter(library.prose(rng).origin.split(":")[0] for _ in range(2000))
    assert drawn["few"] == pytest.approx(1500, abs=80)
    assert not Library(prose("never"), {"never": 0.0}).has("prose")


def test_draws_depend_on_the_random_state_alone() -> None:
    one = Library(prose("a", "b", each=20))
    other = Library(dict(reversed(prose("a", "b", each=20).items())))
    first, second = random.Random(7), random.Random(7)
    drawn = [one.prose(first).origin for _ in range(20)]
    assert [other.prose(second).origin for _ in range(20)] == drawn
    assert len(set(drawn)) > 10


def test_questions_about_one_context_come_together() -> None:
    documents = [
        Document("It rains.", "What falls?", ("Rain",), origin="s:0"),
        Document("It snows.", "What falls?", ("Snow",), origin="s:1"),
        Document("It rains.", "Is it dry?", ("No", "Not at all"), origin="s:2"),
    ]
    library = Library({"s": documents})
    asked = {library.questions(random.Random(seed)).context for seed in range(20)}
    assert asked == {"It rains.", "It snows."}
    _, turns, origin = next(
        group
        for seed in range(20)
        if (group := library.questions(random.Random(seed))).context == "It rains."
    )
    assert turns == [("What falls?", ("Rain",)), ("Is it dry?", ("No", "Not at all"))]
    assert origin == "s:0"
    assert not library.has("prose")


def test_origins_name_the_source_and_the_number(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(LONG + name, encoding="utf-8")
    library = read_library({"x": SourceSection(files=["*.txt"])}, DataSection(), tmp_path)
    assert [d.origin for d in library.sources["x"]] == ["x:0", "x:1"]


def test_one_document_gives_its_end_to_be_measured_on() -> None:
    train, held_out = split_held_out(Library({"s": [Document("x" * 95 + "y" * 5)]}))
    assert [d.text for d in train.sources["s"]] == ["x" * 95]
    assert [d.text for d in held_out.sources["s"]] == ["y" * 5]


def test_every_fiftieth_document_is_held_out() -> None:
    train, held_out = split_held_out(Library({"s": [Document(str(i)) for i in range(100)]}))
    assert [d.text for d in held_out.sources["s"]] == ["49", "99"]
    assert len(train) == 98
    assert len(split_held_out(Library({"s": [Document("a"), Document("b")]}))[1]) == 1


def test_questions_about_a_held_out_context_are_never_trained_on() -> None:
    documents = [Document(f"c{i % 60}", f"q{i}", ("a",)) for i in range(300)]
    train, held_out = split_held_out(Library({"s": documents}))
    assert {d.text for d in held_out.sources["s"]} == {"c49"}
    assert len(held_out) == 5
    assert len(train) == 295


def test_a_held_out_text_that_is_also_trained_on_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name + LONG, encoding="utf-8")
    config = RunConfig(data=DataSection(root="here", train=["a.txt"], held_out=["b.txt"]))
    config.data.root = str(tmp_path)
    train, held_out = read_libraries(config, Path("elsewhere"))
    assert (len(train), len(held_out)) == (1, 1)
    config.data.held_out = ["*.txt"]
    with pytest.raises(TrainingError, match="1 of 2 held-out texts are trained on too"):
        read_libraries(config, tmp_path)
    config.data.held_out = []
    train, held_out = read_libraries(config, tmp_path)
    assert train.sources["train"][0].text + held_out.sources["train"][0].text == "a" + LONG


def test_a_fingerprint_follows_contents_and_nothing_else() -> None:
    library = Library(prose("a", "b"))
    assert fingerprint(library) == fingerprint(Library(prose("b", "a")))
    assert fingerprint(library) == fingerprint(Library(prose("a", "b"), {"a": 5.0}))
    assert fingerprint(library) != fingerprint(Library(prose("a", "c")))
    changed = {"s": [Document("t", "q", ("a",))]}
    other = {"s": [Document("t", "q", ("b",))]}
    assert fingerprint(Library(changed)) != fingerprint(Library(other))
    assert fingerprint(library, Library(other)) != fingerprint(Library(other), library)
