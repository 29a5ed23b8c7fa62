r"""Where a flat prompt is cut: what of it is the context, and what stands around it.

A harness gives each prompt as one string. `split` looks, in this order, for

1. the tags `<|memory_start|>` and `<|memory_end|>`, which the task's author writes around it:
   `doc_to_text: "<|memory_start|>{{context}}<|memory_end|>\n\n{{question}}"`;
2. with `compress=all` the whole prompt, with `compress=none` nothing;
3. with `compress=auto` a prompt of lm_eval's RULER tasks: the context is everything between the
   last instruction line and the last question, so that a worked example is read raw.

What none of them fits is an error: a prompt is never read raw unless that was asked for.
"""

import re
from typing import Literal, NamedTuple

from octavo.config import MEMORY_END, MEMORY_START
from octavo.errors import EvaluationError

Compress = Literal["auto", "all", "none"]


class Cut(NamedTuple):
    """A flat prompt in three."""

    before: str
    context: str
    """What methods compress, shorten or drop; "" if the prompt was empty or is to be read raw."""
    after: str


# What encloses the context in each RULER prompt of lm_eval 0.4.13: the instruction's end and the
# question's beginning. https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/ruler/
_RULER = tuple(
    (re.compile(opening), re.compile(closing))
    for opening, closing in (
        (  # niah_utils.py; in the singular for one needle and one query
            r"special magic \w+ (?:is|are) hidden within the following text\. Make sure to "
            r"memorize it\. I will quiz you about the \w+ afterwards\.\n",
            r"\nWhat (?:is the|are all the) special magic \w+ for .+ mentioned in the provided "
            r"text\?",
        ),
        (  # vt_utils.py
            r"Memorize and track the chain\(s\) of variable assignment hidden in the following "
            r"text\.\n\n",
            r"\nQuestion: Find all variables that are assigned the value \S+ in the text above\.",
        ),
        (  # cwe_utils.py
            r"Below is a numbered list of words\. In these words, some appear more often than "
            r"others\. Memorize the ones that appear most often\.\n",
            r"\nQuestion: What are the 10 most common words in the above list\?",
        ),
        (  # fwe_utils.py; a space, not a new line, leads to the text
            r"Find the three most frequently appeared coded words\. ",
            r"\nQuestion: Do not provide any explanation\. Please ignore the dots '\.\.\.\.'\. "
            r"What are the three most frequently appeared words in the above coded text\?",
        ),
        (  # qa_utils.py
            r"The following are given documents\.\n\n",
            r"\n\nAnswer the question based on the given documents\. Only give me the answer and "
            r"do not output any other words\.\n\nQuestion: ",
        ),
    )
)


def split(prompt: str, compress: Compress = "auto") -> Cut:
    """Return a prompt in three, by the rules at the head of this module.

    Joined again they are the prompt, less its tags. Raises `EvaluationError` when no rule fits,
    and for tags that are not one pair around some text.
    """
    if MEMORY_START in prompt or MEMORY_END in prompt:
        return _split_at_tags(prompt)
    if compress == "none" or not prompt:
        return Cut(prompt, "", "")
    if compress == "all":
        return Cut("", prompt, "")
    for opening, closing in _RULER:
        starts = list(opening.finditer(prompt))
        stops = list(closing.finditer(prompt))
        if starts and stops and starts[-1].end() < stops[-1].start():
            start, stop = starts[-1].end(), stops[-1].start()
            return Cut(prompt[:start], prompt[start:stop], prompt[stop:])
    raise EvaluationError(
        f"cannot tell what to compress in the prompt {shorten(prompt)}: it has no {MEMORY_START} "
        f"… {MEMORY_END} and is no RULER prompt; let the task's doc_to_text write the tags around "
        "its context, or give --model_args compress=all, or method=raw,compress=none"
    )


def _split_at_tags(prompt: str) -> Cut:
    before, _, rest = prompt.partition(MEMORY_START)
    context, _, after = rest.partition(MEMORY_END)
    counts = prompt.count(MEMORY_START), prompt.count(MEMORY_END)
    if counts != (1, 1) or MEMORY_END in before or not context:
        raise EvaluationError(
            f"the prompt {shorten(prompt)} has {counts[0]} {MEMORY_START} and {counts[1]} "
            f"{MEMORY_END}, expected one of each around some text; give --num_fewshot 0 if it is "
            "the examples that have tags of their own"
        )
    return Cut(before, context, after)


def shorten(text: str) -> str:
    """Return the beginning of a text, quoted."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
