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
from typing import Literal

from octavo.config import MEMORY_END, MEMORY_START
from octavo.errors import EvaluationError
from octavo_evals.task import prompts

Compress = Literal["auto", "all", "none"]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(template)))


_RULER = [
    (_pattern(prompts()[name]["before"]), _pattern(prompts()[name]["after"]))
    for name in ("needle", "needles", "chain", "common", "coded", "documents")
]
"""What encloses the context in a RULER prompt of lm_eval 0.4.13 (lm_eval/tasks/ruler)."""


def split(prompt: str, compress: Compress = "auto") -> tuple[str, str, str]:
    """Return what is before the context, the context and what is after, by the rules above.

    Joined again they are the prompt, less its tags. The context is "" where nothing is to be
    compressed. Raises `EvaluationError` when no rule fits, and for tags that are not one pair
    around some text.
    """
    if MEMORY_START in prompt or MEMORY_END in prompt:
        return _split_at_tags(prompt)
    if compress == "none" or not prompt:
        return prompt, "", ""
    if compress == "all":
        return "", prompt, ""
    for opening, closing in _RULER:
        starts = [match.end() for match in opening.finditer(prompt)]
        stops = [match.start() for match in closing.finditer(prompt)]
        if starts and stops and starts[-1] < stops[-1]:
            return prompt[: starts[-1]], prompt[starts[-1] : stops[-1]], prompt[stops[-1] :]
    raise EvaluationError(
        f"cannot tell what to compress in the prompt {shorten(prompt)}: it has no {MEMORY_START} "
        f"… {MEMORY_END} and is no RULER prompt; let the task's doc_to_text write the tags around "
        "its context, or give --model_args compress=all, or method=raw,compress=none"
    )


def _split_at_tags(prompt: str) -> tuple[str, str, str]:
    before, _, rest = prompt.partition(MEMORY_START)
    context, _, after = rest.partition(MEMORY_END)
    counts = prompt.count(MEMORY_START), prompt.count(MEMORY_END)
    if counts != (1, 1) or MEMORY_END in before or not context:
        raise EvaluationError(
            f"the prompt {shorten(prompt)} has {counts[0]} {MEMORY_START} and {counts[1]} "
            f"{MEMORY_END}, expected one of each around some text; give --num_fewshot 0 if it is "
            "the examples that have tags of their own"
        )
    return before, context, after


def shorten(text: str) -> str:
    """Return the beginning of a text, quoted."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
