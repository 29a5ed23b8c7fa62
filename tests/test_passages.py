"""Passages: they tile the text, end where sentences and lines end, and know their places."""

import random
import unicodedata

import pytest
import regex

from octavo.ask.passages import (
    LEAST_ROOM,
    Kind,
    Passage,
    cut_passages,
    fill,
    num_tokens,
)
from octavo.ask.terms import find_marks, terms_of, terms_of_question

KINDS: tuple[Kind, ...] = ("prose", "markdown", "code")
ALPHABET = "ab. \n\n#A!?\"'”。、東京한ส\u0301\u200d👩🏻\r\t```=-,;def class 🇩🇪\x00\ud800"


def pieces(text: str, passages: list[Passage]) -> list[str]:
    return [text[one.start : one.end] for one in passages]


def check_tiling(text: str, passages: list[Passage]) -> None:
    """Compare with the slow and obvious: joined they are the text, lines are counted by hand."""
    assert "".join(pieces(text, passages)) == text
    for at, one in enumerate(passages):
        own = text[one.start : one.end]
        assert one.index == at
        assert own
        first_word = one.start + (len(own) - len(own.lstrip()) if own.strip() else 0)
        assert one.line == len(text[:first_word].split("\n"))


@pytest.mark.parametrize("kind", KINDS)
def test_passages_tile_any_text_and_count_its_lines(kind: Kind) -> None:
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choice(ALPHABET) for _ in range(draw.randint(0, 300)))
        check_tiling(text, cut_passages(text, kind=kind, max_tokens=draw.choice([1, 2, 9, 64])))


@pytest.mark.parametrize(
    "unit",
    ["a", "a ", "東", ".", '."', "# #", "1.", "\n ", "\n", "e\u0301", "`", "Mr. ", "\u0301", "'"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_monotonous_texts_are_cut_in_one_pass(kind: Kind, unit: str) -> None:
    text = unit * 20_000
    passages = cut_passages(text, kind=kind)
    check_tiling(text[:1], cut_passages(text[:1], kind=kind))
    assert "".join(pieces(text, passages)) == text
    assert all(num_tokens(piece) <= 64 + 2 for piece in pieces(text, passages))


def test_an_empty_text_has_no_passages() -> None:
    assert cut_passages("") == []


def test_prose_is_cut_behind_sentences_and_not_behind_abbreviations() -> None:
    text = 'Mr. J. R. Hale met Dr. Ox at No. 7, i.e. the inn. "Come in!" he said. They ate. ' * 6
    found = pieces(text, cut_passages(text, max_tokens=30))
    assert len(found) > 5
    assert all(one.rstrip().endswith(("inn.", 'in!"', "said.", "ate.")) for one in found)


def test_sentences_of_scripts_without_spaces_are_found() -> None:
    text = "東京は大きい。大阪も大きい！京都は古い。" * 8
    found = pieces(text, cut_passages(text, max_tokens=20))
    assert all(one.endswith(("。", "！")) for one in found)


def test_a_sentence_that_is_too_long_is_cut_behind_a_clause() -> None:
    text = ("the ferry left at dawn, " * 30).strip()
    found = pieces(text, cut_passages(text, max_tokens=32))
    assert len(found) > 3
    assert all(one.endswith(("dawn, ", "dawn,")) for one in found)


def test_what_people_see_as_one_character_is_never_cut() -> None:
    text = "👩🏻‍🚀" * 200 + "e\u0301" * 300 + "🇩🇪" * 100 + "한" * 300
    marks = {one.end() for one in regex.finditer(r"\X", text)}
    assert all(one.end in marks for one in cut_passages(text, max_tokens=5))
    assert unicodedata.combining("\u0301")


def test_code_is_cut_between_lines_and_knows_its_definitions() -> None:
    body = "".join(f"        value_{n} = compute({n}) + offset\n" for n in range(40))
    text = f"import os\n\n\nclass Tide:\n    def low(self):\n{body}\n    def high(self):\n{body}"
    passages = cut_passages(text, kind="code")
    assert all(one.end == len(text) or text[one.end - 1] == "\n" for one in passages)
    headings = [one.heading for one in passages]
    assert headings[0] is None or headings[0] == "Tide"
    assert set(headings[2:]) == {"Tide > low", "Tide > high"}


def test_markdown_passages_begin_at_headings_and_carry_their_path() -> None:
    text = (
        "Title\n=====\n\nIntro.\n\n## Setup\n\nRun it.\n\n```sh\n# not a heading\n```\n\n"
        "### Linux ###\n\nUse apt.\n\n## Use\n\nAsk.\n"
    )
    found = {one.heading: text[one.start : one.end] for one in cut_passages(text, kind="markdown")}
    assert list(found) == ["Title", "Title > Setup", "Title > Setup > Linux", "Title > Use"]
    assert "# not a heading" in found["Title > Setup"]
    assert found["Title > Use"].startswith("## Use")


def test_chapters_of_a_book_and_pages_of_a_document_are_headings() -> None:
    book = "CHAPTER I. The Inn\n\nIt rained.\n\nCHAPTER II. The Sea\n\nIt blew.\n"
    assert [one.heading for one in cut_passages(book)] == [
        "CHAPTER I. The Inn",
        "CHAPTER II. The Sea",
    ]
    pages = cut_passages("First.\fSecond.\fThird.")
    assert [one.heading for one in pages] == ["page 1", "page 2", "page 3"]


# -- terms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ships shipped shipping", {"ship"}),
        ("The clerk's lamp", {"the", "clerk", "lamp"}),
        ("C++ beats C#", {"c++", "c", "c#", "beat"}),
        ("readFile_v2", {"readfile_v2", "read", "file", "v", "2"}),
        ("HTTPServer", {"httpserver", "http", "server"}),
        ("naïve ﬁsh ＡＢＣ", {"naïv", "fish", "abc"}),
        ("東京都", {"東京", "京都"}),
        ("京", {"京"}),
        ("สวัสดี", {"สวั", "วัส", "ัสด", "สดี"}),
        ("at 04:10 for 3.5", {"at", "04:10", "04", "10", "for", "3.5", "3", "5"}),
        ("\ud800 half", {"half"}),
        ("", set()),
    ],
)  # fmt: skip
def test_words_are_found_by_stems_parts_and_runs(text: str, terms: set[str]) -> None:
    assert set(terms_of(text)) == terms


def test_a_question_is_about_its_telling_words_if_it_has_any() -> None:
    assert terms_of_question("Who signed for the lamp oil?") == ["sign", "lamp", "oil"]
    assert terms_of_question("What is it?") == ["what", "is", "it"]


def test_words_of_a_question_are_marked_where_they_stand() -> None:
    text = "Nobody had signed; the signs of 東京都庁 are naïve ﬁsh."
    marked = [text[a:b] for a, b in find_marks(text, "who signs 東京都 naïve fish")]
    assert marked == ["signed", "signs", "東京都", "naïve", "ﬁsh"]


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_filled_with_whatever_still_fits_the_best_first(seed: int) -> None:
    rng = random.Random(seed)
    sizes = dict(enumerate(rng.choices(range(5, 80), k=40)))
    budget = rng.randint(0, 400)
    kept: list[int] = []
    for key, size in sizes.items():  # the slow twin looks at all, however little room is left
        if sum(sizes[one] for one in kept) + size <= budget:
            kept.append(key)
    found = list(fill(sizes.items(), budget))
    assert kept[: len(found)] == found
    if found != kept:
        assert budget - sum(sizes[one] for one in found) < LEAST_ROOM
    large = [("too large", 401), ("fits", 400)]
    assert list(fill(large, 400)) == ["fits"]
