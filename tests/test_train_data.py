"""Training data: files of every format, and examples that are a function of their number."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKPOINT, TEXT

from octavo.checkpoint import read_tokenizers
from octavo.config import Extension, ModelConfig
from octavo.errors import TrainingError
from octavo.prompt import PromptEncoder
from octavo.train.config import DataSection
from octavo.train.data import IGNORED, Document, Examples, read_documents, split_held_out

DATA = DataSection(span_tokens=[8, 24], copy_tokens=[4, 12], target_tokens=[4, 12])
PROSE = [Document(TEXT * 6), Document(TEXT[::-1] * 5)]


@pytest.fixture(scope="module")
def prompts() -> PromptEncoder:
    tokenizers = read_tokenizers(CHECKPOINT, Extension())
    return PromptEncoder(*tokenizers, ModelConfig.read(CHECKPOINT))


def examples(prompts: PromptEncoder, documents: list[Document], **changes: Any) -> Examples:
    settings = {"ratios": [2, 4], "weights": {"interleaved": 1.0}, "seed": "s", **changes}
    return Examples(documents, prompts, settings.pop("data", DATA), **settings)


def texts(paths: list[str], root: Path, data: DataSection = DATA) -> list[str]:
    return [document.text for document in read_documents(paths, data, root)]


def test_txt_jsonl_zst_and_parquet_hold_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    import zstandard

    rows = [{"text": "first"}, {"text": "second"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for index, row in enumerate(rows):
        (tmp_path / f"{index}.txt").write_text(row["text"], encoding="utf-8")
    for pattern in ("a.jsonl", "a.jsonl.zst", "a.parquet", "[0-9].txt"):
        assert texts([pattern], tmp_path) == ["first", "second"]


def test_a_line_separator_inside_a_text_ends_no_record(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    line = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(line + "\r\n\n" + line, encoding="utf-8")
    assert texts(["a.jsonl"], tmp_path) == [text, text]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    assert texts(["a.txt"], tmp_path) == ["one"]


def test_a_long_text_file_becomes_several_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789", encoding="utf-8")
    assert texts(["a.txt"], tmp_path, DataSection(max_document_chars=4)) == ["0123", "4567", "89"]


def test_documents_are_taken_evenly_from_the_whole_file(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(19))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    kept = [int(text) for text in texts(["a.jsonl"], tmp_path, DataSection(max_documents=10))]
    assert len(kept) == 10
    assert kept[-1] >= 17


def test_brackets_in_a_folder_or_file_name_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    folder.mkdir()
    (folder / "a [2].txt").write_text("one", encoding="utf-8")
    assert texts(["a [2].txt"], folder) == ["one"]
    assert texts(["*.txt"], folder) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2, is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "holds no text"),
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
    with pytest.raises(TrainingError, match=says):
        texts([name], tmp_path)


def test_a_pattern_without_a_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no file matches 'b\*\.txt' \(looked from"):
        texts(["b*.txt"], tmp_path)


def test_an_example_is_the_same_whenever_it_is_asked_for(prompts: PromptEncoder) -> None:
    weights = {"reconstruction": 0.4, "interleaved": 0.4, "repeat": 0.2}
    one = examples(prompts, PROSE, weights=weights)
    forward = [one[index] for index in range(12)]
    random.seed(5)
    other = examples(prompts, PROSE, weights=dict(reversed(weights.items())))
    assert [other[index] for index in reversed(range(12))] == forward[::-1]
    assert len({tuple(example.input_ids) for example in forward}) > 6
    assert examples(prompts, PROSE, weights=weights, seed="t")[0] != forward[0]


def test_nothing_inside_a_span_and_no_tag_is_scored(prompts: PromptEncoder) -> None:
    tags = {prompts.start_id, prompts.end_id, prompts.slot_id}
    weights = {"reconstruction": 1.0, "interleaved": 1.0, "repeat": 1.0}
    stream = examples(prompts, PROSE, weights=weights)
    for index in range(30):
        example = stream[index]
        assert len(example.input_ids) == len(example.labels)
        pairs = list(zip(example.input_ids, example.labels, strict=True))
        assert all(label in (IGNORED, token) for token, label in pairs)
        assert all(label == IGNORED for token, label in pairs if token in tags)
        assert any(label != IGNORED for _, label in pairs)
        slots = example.input_ids.count(prompts.slot_id)
        assert slots == sum(-(-len(span) // example.ratio) for span in example.spans)


def test_an_interleaved_example_starts_with_a_span_and_ends_scored(prompts: PromptEncoder) -> None:
    stream = examples(prompts, PROSE)
    for index in range(10):
        example = stream[index]
        assert example.input_ids[0] == prompts.start_id
        assert example.labels[-1] != IGNORED


def test_a_reconstruction_scores_the_text_of_its_span(prompts: PromptEncoder) -> None:
    example = examples(prompts, PROSE, weights={"reconstruction": 1.0})[0]
    assert [label for label in example.labels if label != IGNORED] == example.raw_spans[0]


def test_a_question_scores_its_answer_and_the_end_of_the_turn(prompts: PromptEncoder) -> None:
    document = Document("The oil is in the cellar.", "Where is the oil?", ("In the cellar.",))
    example = examples(prompts, [document], weights={"qa": 1.0})[0]
    scored = [label for label in example.labels if label != IGNORED]
    end = prompts.decoder_tokenizer.eos_token_id
    assert scored == [*prompts.text_ids("In the cellar."), end]


def test_rare_long_texts_among_short_ones_are_found(prompts: PromptEncoder) -> None:
    short = [Document("word " * 45)] * 60
    data = DataSection(span_tokens=[300, 400], target_tokens=[60, 80])
    stream = examples(prompts, [*short, Document(TEXT * 12)], data=data)
    assert [stream[index].kind for index in range(5)] == ["interleaved"] * 5


def test_texts_that_are_all_too_short_are_refused(prompts: PromptEncoder) -> None:
    with pytest.raises(TrainingError, match="none of 1 documents is prose of more than 200"):
        examples(prompts, [Document("short")])
    long_spans = DataSection(span_tokens=[5000, 6000])
    with pytest.raises(TrainingError, match="documents in a row were too short"):
        _ = examples(prompts, [Document(TEXT)], data=long_spans)[0]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"copying": 1.0}, "names 'copying'"),
        ({"qa": 0.0}, "all zero"),
        ({"qa": 1.0}, "asks for qa"),
    ],
)
def test_impossible_weights_are_refused(
    prompts: PromptEncoder, weights: dict[str, float], says: str
) -> None:
    with pytest.raises(TrainingError, match=says):
        examples(prompts, PROSE, weights=weights)


def test_one_document_gives_its_end_to_be_measured_on() -> None:
    documents, held_out = split_held_out([Document("x" * 95 + "y" * 5)])
    assert (documents[0].text, held_out[0].text) == ("x" * 95, "y" * 5)


def test_every_fiftieth_document_is_held_out() -> None:
    documents, held_out = split_held_out([Document(str(i)) for i in range(100)])
    assert [d.text for d in held_out] == ["49", "99"]
    assert len(documents) == 98
    assert len(split_held_out([Document("a"), Document("b")])[1]) == 1
