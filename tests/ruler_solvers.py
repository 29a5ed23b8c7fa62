"""Plain programs that answer RULER's tasks from nothing but the prompt's text.

`solve` takes the whole prompt as a model sees it, chat template and all. That it finds every answer
shows that the prompts hold them; an engine made of it must score 100.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

Answers = Mapping[str, Sequence[str]]


def solve(prompt: str, answers: Answers | None = None) -> list[str]:
    """Return the answers that a prompt asks for.

    `answers` gives those of the questions of `qa_1` and `qa_2`, which no plain program can answer;
    they only count if a document of the prompt holds them. Raises `ValueError` for other prompts.
    """
    for mark, solver in SOLVERS.items():
        start = prompt.rfind(mark)  # the last: worked examples stand before it
        if start >= 0:
            return solver(prompt[start:], answers or {})
    raise ValueError(f"no RULER task: {prompt[:80]!r}")


def solve_needles(text: str, answers: Answers) -> list[str]:
    """Serve all eight needle tasks."""
    query = re.findall(
        r"(?:are all the|is the) special magic \w+ for (.+?) mentioned in the provided text\?", text
    )[-1]
    return [
        value
        for key in re.split(r", and |, ", query)
        for value in re.findall(
            rf"One of the special magic \w+ for {re.escape(key)} is: ([\w-]+)\.", text
        )
    ]


def solve_variables(text: str, answers: Answers) -> list[str]:
    """Follow the chain from the value that is asked for."""
    value = re.findall(r"assigned the value (\d+) in the text above", text)[-1]
    names = {value}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
        if source in names:
            names.add(name)
    return sorted(names - {value})


def solve_common_words(text: str, answers: Answers) -> list[str]:
    """Count the entries of the numbered list."""
    listed = text.split("\nQuestion:")[0].split("\n", 1)[1]
    words = re.split(r" ?\b\d+\. ", listed)[1:]
    return [word for word, _ in Counter(words).most_common(10)]


def solve_coded_words(text: str, answers: Answers) -> list[str]:
    """Count the coded words, without the dots."""
    coded = text.split("\nQuestion:")[0].split("coded words. ", 1)[1].split()
    return [word for word, _ in Counter(coded).most_common(4) if word != "..."]


def solve_documents(text: str, answers: Answers) -> list[str]:
    """Look the question up, and see that some document holds one of its answers."""
    documents, asked = text.rsplit("\n\nQuestion: ", 1)
    question = max((q for q in answers if asked.startswith(q)), key=len, default=None)
    if question is None:
        raise ValueError(f"no answers are given for {asked[:80]!r}")
    return [one for one in answers[question] if one in documents]


SOLVERS: dict[str, Callable[[str, Answers], list[str]]] = {
    "The following are given documents.": solve_documents,
    "Memorize and track the chain(s) of variable": solve_variables,
    "Below is a numbered list of words.": solve_common_words,
    "Read the following coded text": solve_coded_words,
    "I will quiz you about the ": solve_needles,
}
