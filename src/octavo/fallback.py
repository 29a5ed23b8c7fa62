"""What is read anew where an answer from latents is not trusted: passages the question finds."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from octavo.ask.index import PassageIndex, search_all
from octavo.ask.passages import BUDGET, cut_passages, fill
from octavo.ask.sources import join_passages
from octavo.completion import Completion, Fallback
from octavo.errors import ConfigError
from octavo.prompt import PromptEncoder

FALLBACKS: tuple[Fallback, ...] = ("passages", "raw")


def find_passages(
    prompts: PromptEncoder, texts: Sequence[str], question: str, *, budget: int = BUDGET
) -> str:
    """Return the best passages of some texts within a budget of the decoder's tokens.

    They are in the order of the texts, as they stand there; "" where no word of the question does.
    """
    indexes = [PassageIndex.build(text, cut_passages(text)) for text in texts]
    found = {
        (which, hit.passage.index): texts[which][hit.passage.start : hit.passage.end]
        for which, hit in search_all(indexes, question, budget)
    }
    sizes = ((key, len(prompts.text_ids(piece))) for key, piece in found.items())
    return join_passages({key: found[key] for key in fill(sizes, budget)})


def read_anew(
    first: Completion,
    fallback: Fallback,
    prompts: PromptEncoder,
    texts: Sequence[str],
    question: str | None,
    answer: Callable[[str, list[str], Fallback], Completion],
) -> Completion:
    """Return the answer from the text itself; the first one where no passage is found.

    `answer(question, texts, fallback)` reads texts raw. Raises `ConfigError` for an unknown
    fallback, and without a question or a context.
    """
    if fallback not in FALLBACKS:
        raise ConfigError(f"fallback is {fallback!r}, expected {' or '.join(FALLBACKS)}")
    if not question or not texts:
        raise ConfigError("a fallback needs a question and a context; give both, or leave it")
    found = list(texts)
    if fallback == "passages":
        found = [text for text in [find_passages(prompts, texts, question)] if text]
    if not found:
        return first
    second = answer(question, found, fallback)
    before = first.timings.total_seconds
    timings = replace(
        second.timings,
        compress_seconds=first.timings.compress_seconds,
        ttft_seconds=before + second.timings.ttft_seconds,
        total_seconds=before + second.timings.total_seconds,
    )
    return replace(second, fallback=fallback, timings=timings)
