"""Score one answer against one reference, by the rules of the benchmarks that octavo runs.

Every score is between 0 and 1. The rules are those of the original scorers, each named at its
function, so that figures may stand beside published ones; the code is ours.
"""

import importlib
import re
import string
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from octavo.errors import MissingExtraError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏."
)
"""LongBench's list (THUDM/LongBench, metrics.py, commit f6227eb); it has 》 but not 《."""
_DROP_ASCII = str.maketrans("", "", string.punctuation)
_DROP_ALL = str.maketrans("", "", string.punctuation + _CHINESE_PUNCTUATION)


def best(scorer: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """Return the score against the reference that the answer comes nearest to; 0 without any."""
    return max((scorer(answer, reference) for reference in references), default=0.0)


def squad_words(text: str) -> list[str]:
    """Return the words of a text without case, punctuation and articles.

    The rules of SQuAD's evaluation script (arXiv 1606.05250), which LongBench shares.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_DROP_ASCII)).split()


def word_f1(answer: str, reference: str) -> float:
    """Return SQuAD's word F1."""
    return overlap_f1(squad_words(answer), squad_words(reference))


def exact_match(answer: str, reference: str) -> float:
    """Return SQuAD's exact match."""
    return float(squad_words(answer) == squad_words(reference))


def chinese_f1(answer: str, reference: str) -> float:
    """Return LongBench's F1 of Chinese texts, over words as jieba cuts them."""
    said, wanted = (
        [
            kept
            for word in _library("jieba").cut(text)
            if (kept := "".join(word.lower().translate(_DROP_ALL).split()))
        ]
        for text in (answer, reference)
    )
    return overlap_f1(said, wanted)


def overlap_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Return the F1 of two bags of words."""
    shared = (Counter(said) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge_l(answer: str, reference: str) -> float:
    """Return the F of ROUGE-L as the package `rouge` has it, which LongBench uses.

    It counts each word once, splits sentences at full stops and takes the union of their longest
    common subsequences. An empty text scores 0. The package calls itself once a word: where it
    runs out of stack the original scores 0, and this does not.
    """
    rouge = _library("rouge").Rouge(metrics=["rouge-l"])
    with _room_for_calls(len(answer) + len(reference)):
        try:
            return float(rouge.get_scores(answer, reference)[0]["rouge-l"]["f"])
        except ValueError:  # one of them has no sentence
            return 0.0


def chinese_rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L over words as jieba cuts them."""
    jieba = _library("jieba")
    return rouge_l(" ".join(jieba.cut(answer)), " ".join(jieba.cut(reference)))


def class_match(answer: str, label: str, classes: Sequence[str]) -> float:
    """Return one over the number of classes named in the answer if `label` is among them, else 0.

    LongBench's rule for TREC and LSHT: classes that are a part of the label's own name do not
    count. The original drops those from the list that it is walking, which spares the name after
    each; so does this.
    """
    named = [name for name in classes if name in answer]
    position = 0
    while position < len(named):
        if named[position] != label and named[position] in label:
            del named[position]
        position += 1
    return 1 / len(named) if label in named else 0.0


def number_share(answer: str, reference: str) -> float:
    """Return the share of the answer's numbers that are the first one of the reference.

    LongBench's rule for passage counts (`7`) and passage retrieval (`Paragraph 7`, `段落7`).
    """
    wanted = re.search(r"\d+", reference)
    said: list[str] = re.findall(r"\d+", answer)
    return said.count(wanted[0]) / len(said) if wanted and said else 0.0


def code_similarity(answer: str, reference: str) -> float:
    """Return how alike the answer's first line of code and the reference are.

    LongBench's rule: the first line without a backtick, `#` or `//`, compared by fuzzywuzzy's
    `ratio`. rapidfuzz gives the figure that fuzzywuzzy has with python-Levenshtein, once rounded to
    a whole percent; without it fuzzywuzzy compares by another rule, and scores some pairs lower.
    """
    lines = answer.lstrip("\n").split("\n")
    code = next((line for line in lines if not re.search("`|#|//", line)), "")
    ratio: float = _library("rapidfuzz.fuzz").ratio(code, reference)
    return round(ratio) / 100


def _library(name: str) -> Any:
    """Import an optional library, without its warnings and logs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about their own syntax, on the first import
            module = importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise MissingExtraError(
            f"this task's scorer needs {package}: pip install 'octavo[eval]'"
        ) from error
    if name == "jieba":
        module.setLogLevel("WARNING")
    return module


@contextmanager
def _room_for_calls(count: int) -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + count)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
