"""`Agent`: skims contexts as latents, opens passages as needed, and answers with their places."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import octavo.expand as expand
from octavo.agent.answer import AgentAnswer, OnRound, Tool
from octavo.agent.document import FoldedDocument
from octavo.agent.policies import find_policy
from octavo.agent.run import AgentRun
from octavo.confidence import THRESHOLD, read_measured
from octavo.errors import ConfigError, InputError, TemplateError
from octavo.expand import LAYOUTS, Layout
from octavo.generate import ContextLike, list_contexts
from octavo.model import Model

MAX_ROUNDS = 5
"""As in the paper's agent (arXiv 2606.09659)."""
PASSAGE_TOKENS = 64
"""Of a part where a search chooses: the best of the sizes that were tried (docs/agent.md)."""
SKIMMED_TOKENS = 256
"""Of a part where the model chooses: smaller ones cost more in numbers and tags than in latents."""
BUDGET_SHARE, LEAST_BUDGET, MOST_BUDGET = 0.10, 256, 1024
"""Tokens of parts in full: a tenth of the document, within bounds."""
_PROBE = "octavo-probe-7f3a"


class Agent:
    """A model with contexts that it skims and expands."""

    def __init__(
        self,
        model: Model,
        contexts: ContextLike,
        *,
        policy: str | None = None,
        layout: Layout | None = None,
        tools: Sequence[Tool] = (),
        max_rounds: int = MAX_ROUNDS,
        budget: int | None = None,
        part_tokens: int | None = None,
        fold_after: int | None = None,
        ratio: int | None = None,
        max_new_tokens: int = 128,
        threshold: float = THRESHOLD,
    ) -> None:
        """Prepare contexts, given as texts or compressed, for questions.

        `policy` and `layout` are by default those that this model was measured to be best at
        (`octavo agent --calibrate`), else `retrieval` and `alone`, which need nothing of the
        compressor. `budget` bounds the tokens of parts in full. `fold_after` folds calls, results
        and what was said with them into latents once they are so many rounds old.
        """
        self.model, self.tools = model, tuple(tools)
        self.measured = read_measured(model.fingerprint)
        self.policy = find_policy(policy or self.measured.policy or "retrieval")
        chosen = layout or self.measured.layout or "alone"
        if chosen not in LAYOUTS:
            raise ConfigError(f"unknown layout {chosen!r}, expected one of {', '.join(LAYOUTS)}")
        self.layout = chosen
        for name, least in (("max_rounds", 1), ("budget", 1), ("part_tokens", 8)):
            value = {"max_rounds": max_rounds, "budget": budget, "part_tokens": part_tokens}[name]
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}, expected at least {least}")
        self.max_rounds, self.max_new_tokens = max_rounds, max_new_tokens
        self.fold_after, self.ratio, self.threshold = fold_after, ratio, threshold
        skims = self.policy.name == "model"
        self.document = FoldedDocument(
            model,
            list_contexts(contexts),
            part_tokens=part_tokens or (SKIMMED_TOKENS if skims else PASSAGE_TOKENS),
            ratio=ratio,
        )
        share = int(BUDGET_SHARE * self.document.num_tokens)
        self.budget = budget or min(MOST_BUDGET, max(LEAST_BUDGET, share))
        if len(set(self.tool_names)) < len(self.tool_names):
            raise ConfigError(
                f"two tools have one name ({', '.join(self.tool_names)}); {expand.NAME!r} is ours"
            )

    def ask(self, question: str, on_round: OnRound | None = None) -> AgentAnswer:
        """Answer a question; raises `InputError` for one that is empty or exceeds the budget."""
        return self.run(question, on_round).answer()

    def run(self, question: str, on_round: OnRound | None = None) -> AgentRun:
        """Return a question yet to be worked on; `skim` and `answer` do it.

        `on_round` is called with every round that has ended; what it raises ends the work.
        """
        if not question.strip():
            raise InputError("the question is empty; say what to answer")
        length = len(self.model.prompts.text_ids(question))
        if length > max(self.budget, LEAST_BUDGET):
            raise InputError(
                f"the question has {length:,} tokens, more than the budget of {self.budget:,} for "
                "what may be read; shorten it, or raise the budget"
            )
        return AgentRun(self, question, on_round)

    @property
    def max_result_chars(self) -> int:
        """How much of a tool's result the model is shown."""
        return 4 * self.budget

    @property
    def tool_names(self) -> list[str]:
        """Every tool that the model may call."""
        own = [expand.NAME] if self.policy.lets_model_choose else []
        return [*own, *(tool.name for tool in self.tools)]

    @property
    def schemas(self) -> list[Any]:
        """The tools as chat templates read them."""
        own = [expand.TOOL] if self.policy.lets_model_choose else []
        return [*own, *(tool.schema for tool in self.tools)]

    @property
    def how(self) -> str:
        """What a model without tool calls of its own is told."""
        said = expand.HOW if self.policy.lets_model_choose else ""
        for tool in self.tools:
            names = ", ".join(tool.parameters.get("properties", {}))
            said += f"\nOr reply with one line CALL {tool.name} {{…}} ({names}): {tool.description}"
        return said

    @cached_property
    def is_native(self) -> bool:
        """Whether the chat template shows tools, calls and their results."""
        call = {
            "id": "call00000", "type": "function",
            "function": {"name": expand.NAME, "arguments": {"ids": [_PROBE + "2"]}},
        }  # fmt: skip
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": expand.NAME, "tool_call_id": "call00000",
             "content": _PROBE + "3"},
        ]  # fmt: skip
        tool = {**expand.TOOL["function"], "description": _PROBE + "1"}
        tools = [{"type": "function", "function": tool}]
        try:
            shown = self.model.prompts.encode_messages(turns, template={"tools": tools}).rendered
        except TemplateError:
            return False
        return all(_PROBE + digit in shown for digit in "123")
