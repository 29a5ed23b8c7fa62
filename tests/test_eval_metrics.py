"""Scorers: each against examples worked by hand, and ROUGE-L against its package."""

import sys

import pytest

from octavo.errors import MissingExtraError
from octavo_evals import metrics


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # The, a and punctuation go: {cat, sat} and {cat, sat, down}: 1 and 2/3.
        ("The cat sat!", "a cat sat down", 4 / 5),
        ("Denver Broncos", "denver broncos.", 1.0),
        # {new, york, new, york} and {new, york}: two are shared: 1/2 and 1.
        ("New York, New York", "New York", 2 / 3),
        ("Paris", "London", 0.0),
        ("", "London", 0.0),
        ("the", "a", 0.0),  # nothing is left of either
    ],
)
def test_word_f1_counts_shared_words_as_squad_does(
    answer: str, reference: str, score: float
) -> None:
    assert metrics.word_f1(answer, reference) == pytest.approx(score)


def test_exact_match_ignores_case_articles_and_punctuation_only() -> None:
    assert metrics.exact_match(" The Nile.", "nile") == 1.0
    assert metrics.exact_match("the Nile river", "nile") == 0.0
    assert metrics.exact_match("isn't", "isnt") == 1.0  # letters join where punctuation was


def test_the_best_reference_counts_and_none_scores_nothing() -> None:
    assert metrics.best(metrics.word_f1, "October 1973", ["1973", "October 1973"]) == 1.0
    assert metrics.best(metrics.word_f1, "October 1973", []) == 0.0


def test_chinese_f1_is_over_words_without_punctuation() -> None:
    # 我 | 来到 | 北京 | 清华大学 and 北京 | 清华大学: two of four, two of two.
    assert metrics.chinese_f1("我来到北京清华大学。", "北京清华大学") == pytest.approx(2 / 3)
    assert metrics.chinese_f1("《北京》", "北京") == pytest.approx(2 / 3)  # 《 is kept, as there
    assert metrics.chinese_f1("。，", "北京") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # The longest common subsequence is "the cat mat": 3 of 4 distinct words, and 3 of 5.
        ("the cat on mat", "the cat sat near the mat", 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5)),
        ("one two", "one two", 1.0),
        ("one", "two", 0.0),
        ("", "two", 0.0),
        ("...", "two", 0.0),
    ],
)
def test_rouge_l_is_the_packages(answer: str, reference: str, score: float) -> None:
    assert metrics.rouge_l(answer, reference) == pytest.approx(score, abs=1e-6)


def test_rouge_l_equals_the_package_over_several_sentences() -> None:
    import rouge

    answer = "The act passed. It funds roads, and the roads are long. Nobody spoke."
    reference = "Roads are funded by the act. The act passed in May. Somebody spoke."
    (wanted,) = rouge.Rouge().get_scores(answer, reference)
    assert metrics.rouge_l(answer, reference) == pytest.approx(wanted["rouge-l"]["f"])
    assert 0 < metrics.rouge_l(answer, reference) < 1


def test_rouge_l_has_room_for_long_sentences_and_leaves_the_stack_as_it_was() -> None:
    limit = sys.getrecursionlimit()
    answer = " ".join(f"w{index}" for index in range(limit))
    # One of `limit` words, and the one of one.
    wanted = 2 * (1 / limit) / (1 / limit + 1)
    assert metrics.rouge_l(answer, "w0") == pytest.approx(wanted, abs=1e-6)
    assert wanted > 1e-4
    assert sys.getrecursionlimit() == limit


def test_chinese_rouge_l_is_over_words() -> None:
    # 北京 清华大学 is a subsequence of 我 来到 北京 清华大学: 2 of 2 and 2 of 4.
    score = metrics.chinese_rouge_l("北京清华大学", "我来到北京清华大学")
    assert score == pytest.approx(2 / 3, abs=1e-6)


def test_a_class_counts_in_parts_where_several_are_named() -> None:
    classes = ["City", "Country", "Other location", "location"]
    assert metrics.class_match("City", "City", classes) == 1.0
    assert metrics.class_match("City or Country", "City", classes) == 0.5
    assert metrics.class_match("Mountain", "City", classes) == 0.0
    assert metrics.class_match("Country", "City", classes) == 0.0
    # "location" is a part of the label's own name, and does not count against it
    assert metrics.class_match("Other location", "Other location", classes) == 1.0
    # of two such in a row the second is spared, as in the original
    assert metrics.class_match("abc", "abc", ["a", "b", "abc"]) == 0.5


def test_the_share_of_right_numbers_counts() -> None:
    assert metrics.number_share("Paragraph 7", "Paragraph 7") == 1.0
    assert metrics.number_share("7, or 12, or 7, or 9", "Paragraph 7") == 0.5
    assert metrics.number_share("段落17", "段落7") == 0.0
    assert metrics.number_share("seven", "7") == 0.0


def test_code_is_compared_by_its_first_line_that_is_no_comment() -> None:
    assert metrics.code_similarity("\n# next\n```\nreturn x\ny", "return x") == 1.0
    # "abcd" and "abce" share abc: 2 * 3 / 8
    assert metrics.code_similarity("abcd", "abce") == 0.75
    # 2 * 5 / 16 is 62.5 %, rounded to even as fuzzywuzzy does
    assert metrics.code_similarity("abcdefgh", "abcde123") == 0.62
    assert metrics.code_similarity("# only a comment", "return x") == 0.0


def test_a_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge", None)  # None: cannot be imported
    with pytest.raises(MissingExtraError, match=r"needs rouge: pip install 'octavo\[eval\]'"):
        metrics.rouge_l("one", "one")
