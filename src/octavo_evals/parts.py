"""Cut an item's prompt into the ids before its context, of its context, and after it.

    head + context + tail          what raw text reads
    head + <start> slots <end> + tail   what `octavo` reads
    head + tail                    what `none` reads

The three are tokenised apart, so every method reads the same tokens around the context, and the
context's own tokens are the same for all that read any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo_evals.task import Item


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """An item in the decoder's ids."""

    item: Item
    head: tuple[int, ...]
    context: tuple[int, ...]
    tail: tuple[int, ...]
    """Question, template and the beginning of the answer."""
    num_question: int
    """How many ids of the tail belong to the user's turn: what a method that compresses with the
    question in sight may see."""
    target: tuple[int, ...] = ()
    other_context: str = ""
    """The context of another item: what the `shuffled` control compresses."""


@dataclass(frozen=True, slots=True)
class _Hole:
    """Stands in a prompt where the context goes."""

    num_latents: int = 1


def cut(prompts: Any, item: Item, other_context: str = "") -> Parts:
    """Return the parts of an item; `prompts` is the model's `PromptEncoder`."""
    if item.is_chat:
        content = [
            {"type": "text", "text": item.before},
            {"type": "memory", "context": _Hole()},
            {"type": "text", "text": item.after},
        ]
        turn = [{"role": "user", "content": content}]
        encoded = prompts.encode_messages(turn)
        start, stop = encoded.slots[0]
        head, after = encoded.input_ids[: start - 1], encoded.input_ids[stop + 1 :]
        bare = prompts.encode_messages(turn, add_generation_prompt=False).input_ids[stop + 1 :]
        # What closes the user's turn is taken for part of the question: it does not matter.
        num_question = len(bare) if after[: len(bare)] == bare else 0
    else:
        before = prompts.encode_text("").input_ids  # what the tokenizer puts before any text
        head = [*before, *prompts.text_ids(item.before, is_start=True)]
        after = prompts.text_ids(item.after)
        if not head and not after:
            # Without a context nothing would come before the first token of the target.
            tokenizer = prompts.decoder_tokenizer
            firsts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            head = [one for one in firsts if one is not None][:1]
        num_question = len(after)
    return Parts(
        item=item,
        head=tuple(head),
        context=tuple(prompts.text_ids(item.context)),
        tail=(*after, *prompts.text_ids(item.prefix)),
        num_question=num_question,
        target=() if item.target is None else tuple(prompts.text_ids(item.target)),
        other_context=other_context,
    )


def other_context(contexts: Sequence[str], at: int) -> str:
    """Return the next context that is not the one at a place; "" if there is none."""
    around = (contexts[(at + step) % len(contexts)] for step in range(1, len(contexts)))
    return next((context for context in around if context not in ("", contexts[at])), "")
