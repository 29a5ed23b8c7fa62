"""What an agent gives back: an answer, the passages it read, and what every round cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from octavo.ask.citations import Citation
from octavo.confidence import Reading

Action = Literal["search", "call", "answer"]
Finish = Literal["answered", "forced", "quoted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function of the user's that the model may call beside `expand`."""

    name: str
    description: str
    run: Callable[..., object]
    """Called with the arguments by name; what it returns, or raises, is shown to the model."""
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )
    """A JSON schema of the arguments; names, needs and plain types are checked."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """What chat templates read."""
        own = {name: getattr(self, name) for name in ("name", "description", "parameters")}
        return {"type": "function", "function": own}


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One step: a search, a turn with calls, or the answer."""

    action: Action
    said: str = ""
    """By the model, word for word."""
    expanded: Sequence[int] = ()
    """Parts that this round opened."""
    results: Sequence[str] = ()
    """What each call was answered."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those that were not read again."""
    new_tokens: int = 0
    expanded_tokens: int = 0
    """Of the parts that this round opened."""
    seconds: float = 0.0

    @property
    def positions(self) -> int:
        """What the decoder read and wrote."""
        return self.prompt_tokens - self.cached_tokens + self.new_tokens


OnRound = Callable[[Round], None]
"""Called with every round that has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentAnswer:
    """An answer with its passages and its account."""

    text: str
    citations: Sequence[Citation]
    """Passages that were read, those that hold the answer first."""
    rounds: Sequence[Round]
    confidence: float | None
    """How likely the answer is right, as measured for this model; None where nothing was."""
    is_sure: bool
    """Whether that is above the threshold; an answer that is not must not be shown as a fact."""
    finish: Finish
    """`answered` by the model's own choice, `forced` at the end of rounds or budget (or where there
    was nothing to choose), `quoted` where the model said nothing: the text is the best passage."""
    reading: Reading
    source_tokens: int
    """What reading everything would have cost, in the decoder's tokens."""
    seconds: float

    @property
    def positions(self) -> int:
        """What the decoder read and wrote in all rounds; compressing is not counted."""
        return sum(one.positions for one in self.rounds)

    @property
    def cost(self) -> float:
        """The positions against reading everything: 0.1 is a tenth."""
        return self.positions / max(1, self.source_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "positions": self.positions, "cost": self.cost}
