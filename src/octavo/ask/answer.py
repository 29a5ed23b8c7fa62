"""Let a model answer from passages that were found, and say how far it can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.ask.passages import BUDGET, fill, num_tokens
from octavo.ask.sources import FoundPassage, join_passages
from octavo.confidence import THRESHOLD, read_measured
from octavo.errors import PromptTooLongError

if TYPE_CHECKING:
    from octavo.completion import Completion
    from octavo.model import Model

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PassageAnswer:
    """What a model says who read some passages."""

    text: str
    confidence: float | None
    """How likely it is right, as measured for this model; None where nothing was."""
    is_sure: bool
    """Whether that is above the threshold; what is not must not be shown as a fact."""
    completion: "Completion"
    """The answer with its account."""


def check_question(question: str, budget: int) -> None:
    """Refuse a question that is longer than all that is to be read for it."""
    if (length := num_tokens(question)) > budget:
        raise PromptTooLongError(
            f"the question has about {length:,} tokens, more than the budget of {budget:,}; "
            "shorten it, or raise the budget"
        )


def answer_from(
    model: "Model",
    question: str,
    found: Sequence[FoundPassage],
    *,
    budget: int = BUDGET,
    threshold: float = THRESHOLD,
) -> PassageAnswer:
    """Answer from the best passages within a budget of the decoder's tokens.

    They are read alone, raw, in the order of their texts, before the question: of the ways tried,
    the one that a small decoder answers best from. At least one passage is read.
    """
    texts = {(one.source, one.passage.index): one.text for one in found}
    sizes = ((key, len(model.prompts.text_ids(text))) for key, text in texts.items())
    chosen = {key: texts[key] for key in fill(sizes, budget)} or dict([*texts.items()][:1])
    completion = model.generate(
        question, join_passages(chosen), raw=True, max_new_tokens=MAX_NEW_TOKENS
    )
    measured = read_measured(model.fingerprint)
    confidence = measured.confidence("passages", completion.logprob)
    return PassageAnswer(
        text=completion.text.strip(),
        confidence=confidence,
        is_sure=bool(completion.text.strip())
        and confidence is not None
        and confidence >= threshold,
        completion=completion,
    )
