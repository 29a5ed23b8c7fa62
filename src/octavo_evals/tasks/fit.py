"""Fit texts to a number of tokens: how many words, lines or letters of one may stay."""

from collections.abc import Callable
from dataclasses import replace

from octavo_evals.task import Item, Request

TEMPLATE_TOKENS = 64
"""Room left for the chat template around a prompt that is cut to fit."""
_MAX_JUMPS = 8
"""After so many guesses the search for a size just halves what is left."""


def largest_fit(
    tokens: Callable[[int], int], budget: int, low: int, high: int, *, guess: int
) -> int | None:
    """Return the largest number in low..high whose tokens are within budget, or None.

    Tokens must grow with the number. Counting the tokens of a long text is slow, so each try is
    where the line through the last two points meets the budget; three or four are enough.
    """
    fits, over = low - 1, high + 1
    at, last = min(max(guess, low), high), None
    jumps = 0
    while over - fits > 1:
        count = tokens(at)
        if count <= budget:
            fits = at
        else:
            over = at
        if last is not None:
            slope = (count - last[1]) / (at - last[0])
        else:
            slope = count / at if at > 0 else 0
        last = at, count
        jumps += 1
        if jumps > _MAX_JUMPS:
            at = (fits + over) // 2
        elif slope <= 0:
            at += 1 if count <= budget else -1
        else:
            at += int((budget - count) // slope)
        at = min(max(at, fits + 1), over - 1)
    return None if fits < low else fits


def fit_item(request: Request, item: Item) -> Item:
    """Cut an item's context so that prompt, template and answer fit the decoder.

    `about` says how many tokens were dropped. LongBench cuts the middle out of the whole prompt;
    here only the context loses its middle, so that instructions and question stay whole and every
    method reads the same ones. Nothing of the context is left where they fill the decoder alone.
    """
    count = request.count_tokens
    around = count(item.before) + count(item.after) + item.max_new_tokens + TEMPLATE_TOKENS
    context, dropped = _without_middle(item.context, request.max_prompt_tokens - around, count)
    return replace(item, context=context, about={**item.about, "cut_tokens": dropped})


def _without_middle(context: str, room: int, count: Callable[[str], int]) -> tuple[str, int]:
    """Return both ends of a context, at most `room` tokens, and how many tokens were dropped."""
    total = count(context)
    if total <= room:
        return context, 0
    kept, allowed, end = "", room, len(context)
    while allowed > 0:
        half, guess = allowed // 2, end * allowed // (2 * total)
        head = largest_fit(lambda n: count(context[:n]), allowed - half, 0, end, guess=guess)
        tail = largest_fit(lambda n: count(context[end - n :]), half, 0, end, guess=guess)
        kept = context[: head or 0] + context[end - (tail or 0) :]
        over = count(kept) - room  # where the ends meet, letters may need other tokens
        if over <= 0:
            break
        allowed -= over
        kept = ""
    return kept, total - count(kept)
