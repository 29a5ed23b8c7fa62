"""The index: BM25 as by the book, over one text or many, saved without code in it."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.ask.citations import cite, holds
from octavo.ask.index import PassageIndex, search_all
from octavo.ask.passages import cut_passages
from octavo.ask.sources import TextSource, find_passages, join_passages
from octavo.ask.terms import terms_of, terms_of_question
from octavo.errors import ContextError

WORDS = (
    "tide lamp oil clerk crate copper wire signed cellar ferry row empty dawn sealed low".split()
)


def story(seed: int, sentences: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join(
        " ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + "."
        for _ in range(sentences)
    )


def indexed(text: str, max_tokens: int = 20) -> PassageIndex:
    return PassageIndex.build(text, cut_passages(text, max_tokens=max_tokens))


def bm25_by_the_book(texts: list[list[str]], question: str) -> list[list[float]]:
    """Score every passage of every text by the plain formula, worth counted over all of them."""
    everything = [passage for text in texts for passage in text]
    scores = []
    for text in texts:
        average = sum(len(terms_of(one)) for one in text) / len(text)
        row = []
        for passage in text:
            own, score = terms_of(passage), 0.0
            for term in terms_of_question(question):
                holders = sum(term in terms_of(other) for other in everything)
                worth = math.log(1 + (len(everything) - holders + 0.5) / (holders + 0.5))
                often = own.count(term)
                length = 1 - 0.75 + 0.75 * len(own) / average
                score += worth * often / (often + 1.5 * length)
            row.append(score)
        scores.append(row)
    return scores


@pytest.mark.parametrize("num_texts", [1, 3])
def test_scores_are_those_of_the_plain_formula(num_texts: int) -> None:
    texts = [story(seed, sentences=15) for seed in range(num_texts)]
    cut = [[text[p.start : p.end] for p in cut_passages(text, max_tokens=20)] for text in texts]
    question = "Who signed for the lamp oil at dawn?"
    slow = bm25_by_the_book(cut, question)
    hits = search_all([indexed(text) for text in texts], question, 10_000)
    fast = {(which, hit.passage.index): hit.score for which, hit in hits}
    for which, row in enumerate(slow):
        for at, score in enumerate(row):
            assert fast.get((which, at), 0.0) == pytest.approx(score, rel=1e-4)
    ranked = [hit.score for _, hit in hits]
    assert ranked == sorted(ranked, reverse=True)
    assert min(ranked) > 0


def test_equal_passages_come_in_the_order_of_the_text() -> None:
    hits = indexed("Lamp oil. " * 200, max_tokens=5).search("lamp", 5)
    assert [hit.passage.index for hit in hits] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["", "   \n", "?!…", "\ud800"])
def test_a_text_without_words_is_indexed_and_finds_nothing(text: str) -> None:
    assert indexed(text).search("lamp", 3) == []


def test_unknown_words_and_small_texts_find_what_there_is() -> None:
    index = indexed("Lamp oil.")
    assert index.search("zeppelin", 3) == []
    assert index.search("", 3) == []
    assert len(index.search("lamp", 99)) == 1
    assert index.search("lamp", 0) == []


def test_an_index_survives_the_disk(tmp_path: Path) -> None:
    text = "# Tides\n\n" + story(1) + "\n\n## Lamps\n\n" + story(2)
    index = PassageIndex.build(text, cut_passages(text, kind="markdown"))
    index.save(tmp_path / "index")
    again = PassageIndex.load(tmp_path / "index")
    assert again.search("lamp oil", 9) == index.search("lamp oil", 9)
    assert again.passages == index.passages == cut_passages(text, kind="markdown")


def test_a_damaged_or_foreign_index_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with pytest.raises(ContextError, match="make it anew"):
        PassageIndex.load(path)
    path.write_bytes(b"no index")
    with pytest.raises(ContextError, match="make it anew"):
        PassageIndex.load(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(ContextError, match="another version"):
        PassageIndex.load(path)


@pytest.mark.parametrize("name", ["holders", "starts", "places", "weights", "headings"])
def test_an_index_that_points_outside_itself_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "index"
    indexed(story(1)).save(path)
    about = path.read_bytes()
    metadata = {"index": about[about.index(b'{\\"format') : about.index(b'}"') + 1].decode()}
    metadata["index"] = metadata["index"].replace('\\"', '"')
    arrays = load_file(path)
    broken = arrays[name].copy().reshape(-1)
    broken[1] = np.nan if name == "weights" else 10**6 if name != "headings" else 0
    arrays[name] = broken.reshape(arrays[name].shape)
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(ContextError, match="damaged"):
        PassageIndex.load(path)


def test_a_number_of_no_passage_is_refused() -> None:
    with pytest.raises(ContextError, match="0 to"):
        indexed(story(1)).passage(9999)


def test_many_texts_are_searched_at_once_and_only_found_ones_are_read() -> None:
    texts = [story(1), story(2), "The zeppelin lands at noon. Nobody waves."]
    read: list[int] = []

    def source(at: int) -> TextSource:
        def read_it() -> str:
            read.append(at)
            return texts[at]

        return TextSource(title=f"text {at}", index=indexed(texts[at]), read=read_it)

    found = find_passages("Where does the zeppelin land?", [source(at) for at in range(3)], 3)
    assert [(one.source, one.title) for one in found] == [(2, "text 2")]
    assert read == [2]
    assert found[0].text == texts[2][found[0].passage.start : found[0].passage.end]
    assert [found[0].text[a:b] for a, b in found[0].marks] == ["zeppelin", "lands"]


def test_passages_are_joined_in_the_order_of_their_texts_with_gaps_shown() -> None:
    chosen = {(1, 0): "D. ", (0, 4): "C. ", (0, 1): "B. ", (0, 0): "A. "}
    assert join_passages(chosen) == "A. B. \n\nC. \n\nD."


def test_citations_put_first_what_holds_the_answer() -> None:
    text = "Lamp oil is dear. " * 30 + "The clerk is called Ines Vane. " + "Lamp oil burns. " * 30
    first, *_ = cite([text], "Who is the clerk of the lamp oil?", "Ines  Vane.")
    assert first.holds_answer
    assert "Ines Vane" in first.text
    assert text[first.start : first.end] == first.text
    assert not any(one.holds_answer for one in cite([text], "Who is the clerk?", "Bob"))
    assert not holds(text, "")
