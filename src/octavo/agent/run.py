"""One question to an agent: search, let the model ask for parts and tools, and answer.

Budgets are hard: so many rounds, so many tokens of parts in full, and the same call with the same
result three times ends the choosing. Whatever happens, an answer comes out. The first turn stays as
it is and rounds are added behind it, so that the engine reads only what is new; parts that are put
in place of their latents change it, and cost what stands behind them.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import octavo.expand as expand
from octavo.agent.answer import Action, AgentAnswer, Finish, OnRound, Round
from octavo.agent.calls import Call, Said, check_arguments, read_calls
from octavo.ask.citations import Citation, holds
from octavo.ask.passages import fill
from octavo.completion import Completion
from octavo.confidence import Reading
from octavo.generate import Options

if TYPE_CHECKING:
    from octavo.agent.agent import Agent

MAX_SAME = 3
"""Times that the same calls may have the same results."""
NO_MORE = "Nothing more can be read. Answer the question now."
_SHORTEST_FOLD = 64
"""Characters; what is shorter stays text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exchange:
    """A turn of the model with calls, and what came of each."""

    said: Said
    raw: str
    results: list[str]


class AgentRun:
    """The state of one question."""

    def __init__(self, agent: "Agent", question: str, on_round: OnRound | None = None) -> None:
        """Begin."""
        self.agent, self.question, self._on_round = agent, question, on_round
        self.expanded: list[int] = []
        """Parts in full, in the order in which they were opened."""
        self.rounds: list[Round] = []
        self.logprob: float | None = None
        """Of the answer, once it is there."""
        self._history: list[_Exchange] = []
        self._first: tuple[int, ...] = ()
        self._spent = 0
        self._note = ""
        self._started = time.perf_counter()

    def skim(self) -> tuple[Completion, str] | None:
        """Open parts until the policy, the model or a budget ends it; return the model's answer.

        None where it gave none, or where it is to be given again with the passages alone.
        """
        self._search()
        agent = self.agent
        if not agent.policy.lets_model_choose and not agent.tools:
            return None
        for left in range(agent.max_rounds, 0, -1):
            completion = self._say()
            said = read_calls(completion.text)
            if not said.calls:
                is_anew = agent.layout == "alone" and agent.policy.lets_model_choose
                if said.text and not (is_anew and self.expanded):
                    self._add("answer", completion)
                    return completion, said.text
                self._add("call", completion)
                return None
            before, spent = len(self.expanded), self._spent
            results = [self._do(call) for call in said.calls]
            exchange = _Exchange(said=said, raw=completion.text, results=results)
            self._history.append(exchange)
            self._add(
                "call", completion, expanded=self.expanded[before:], results=results,
                expanded_tokens=self._spent - spent,
            )  # fmt: skip
            same = sum(
                (one.said.calls, one.results) == (said.calls, results) for one in self._history
            )
            if same >= MAX_SAME or left == 1 or (self._room == 0 and not agent.tools):
                break
        self._note = NO_MORE
        return None

    def answer(self) -> AgentAnswer:
        """Skim, then answer from what was opened."""
        agent, finish = self.agent, "answered"
        found = self.skim()
        if found is None:
            completion = self._say(is_last=True)
            self._add("answer", completion)
            text, finish = read_calls(completion.text).text, "forced"
        else:
            completion, text = found
        is_read = bool(self.expanded or any(one.results for one in self._history))
        reading: Reading = "passages" if is_read else "latents"
        self.logprob = completion.logprob
        confidence = agent.measured.confidence(reading, completion.logprob)
        if not text:
            text, finish, confidence = self._quote(), "quoted", None
        ending: Finish = finish  # type: ignore[assignment]
        return AgentAnswer(
            text=text,
            citations=self._citations(text),
            rounds=tuple(self.rounds),
            confidence=confidence,
            is_sure=confidence is not None and confidence >= agent.threshold,
            finish=ending,
            reading=reading,
            source_tokens=agent.document.num_tokens,
            seconds=time.perf_counter() - self._started,
        )

    # -- opening parts ---------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        return max(0, self.agent.budget - self._spent)

    def _search(self) -> None:
        """Open what the policy ranks highest."""
        agent, started = self.agent, time.perf_counter()
        ranking = agent.policy.rank(agent.model, agent.document, self.question)
        opened, _ = self._open(ranking.numbers)
        self._first = tuple(opened)
        if ranking.numbers or ranking.positions:
            self._record(
                Round(
                    action="search", expanded=tuple(opened), prompt_tokens=ranking.positions,
                    expanded_tokens=self._spent, seconds=time.perf_counter() - started,
                )
            )  # fmt: skip

    def _open(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Open parts in order while the budget has room; return them, and those left folded."""
        parts = self.agent.document.parts
        asked = [number for number in dict.fromkeys(numbers) if number not in self.expanded]
        opened = list(fill(((one, parts[one - 1].num_tokens) for one in asked), self._room))
        self._spent += sum(parts[number - 1].num_tokens for number in opened)
        self.expanded += opened
        return opened, [number for number in asked if number not in opened]

    def _do(self, call: Call) -> str:
        """Carry a call out, and return what the model is told."""
        agent = self.agent
        if call.problem:
            return f"The call failed: {call.problem}."
        if call.name == expand.NAME and agent.policy.lets_model_choose:
            return self._expand(call)
        tool = next((one for one in agent.tools if one.name == call.name), None)
        if tool is None:
            return f"There is no tool {call.name[:40]!r}; there are: {', '.join(agent.tool_names)}."
        if problem := check_arguments(call.arguments, tool.parameters):
            return f"The call failed: {problem}."
        try:
            result = str(tool.run(**call.arguments))
        except Exception as error:  # whatever the user's function does wrong
            return f"{tool.name} failed: {type(error).__name__}: {error}"[: agent.max_result_chars]
        if len(result) > agent.max_result_chars:
            return f"{result[: agent.max_result_chars]}\n(cut off: {len(result):,} characters)"
        return result

    def _expand(self, call: Call) -> str:
        document, given = self.agent.document, {**call.arguments}
        given |= {"ids": []} if "ids" in given else {}  # a list, or the text of a line
        if problem := check_arguments(given, expand.TOOL["function"]["parameters"]):
            return f"The call failed: {problem}."
        numbers, problems = expand.read_numbers(call.arguments.get("ids", []), len(document.parts))
        known = [number for number in numbers if number in self.expanded]
        opened, refused = self._open(numbers)
        told = []
        if opened and self.agent.layout == "in place":
            told.append(f"Now in full in the document: {expand.ranges(opened)}.")
        elif opened:
            told.append(document.numbered(opened))
        if known:
            told.append(f"Already in full: {expand.ranges(known)}.")
        if refused:
            told.append(f"The budget has no room for {expand.ranges(refused)}; they stay folded.")
        told += [f"{problem}." for problem in problems]
        return "\n".join(told)

    # -- talking to the model --------------------------------------------------------------------

    def _say(self, *, is_last: bool = False) -> Completion:
        """Let the model speak, offering tools unless it `is_last`."""
        agent = self.agent
        options: Options = {
            "messages": self._messages(is_last), "max_new_tokens": agent.max_new_tokens,
            "is_turn": True, "shows_control": agent.is_native, "ratio": agent.ratio,
        }  # fmt: skip
        if agent.is_native and (not is_last or self._history):
            options["template"] = {"tools": agent.schemas}
        return agent.model.generate(None, **options)

    def _messages(self, is_last: bool) -> list[dict[str, Any]]:
        """Return the conversation so far."""
        agent, document = self.agent, self.agent.document
        if is_last and agent.layout == "alone" and (self.expanded or self._history):
            return [{"role": "user", "content": self._alone()}]
        if agent.layout == "alone" and not agent.policy.lets_model_choose and self.expanded:
            parts = [{"type": "text", "text": document.raw(self.expanded)}]
        else:
            parts = document.folded(self.expanded if agent.layout == "in place" else ())
            if self._first and agent.layout != "in place":
                parts += document.appended(self._first)
        offers = agent.policy.lets_model_choose or bool(agent.tools)
        how = agent.how if offers and not agent.is_native else ""
        said = expand.asking(self.question, how) if offers else f"\n\n{self.question}"
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [*parts, {"type": "text", "text": said}]}
        ]
        for at, exchange in enumerate(self._history):
            age = len(self._history) - at
            is_old = agent.fold_after is not None and age > agent.fold_after
            is_end = age == 1 and is_last
            turns += self._turns_of(exchange, is_old, self._note if is_end else "")
        return turns

    def _alone(self) -> str:
        """Return the passages alone, what tools said, and the question."""
        pieces = [self.agent.document.raw(self.expanded)] if self.expanded else []
        pieces += [
            f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)}): {result}"
            for exchange in self._history
            for call, result in zip(exchange.said.calls, exchange.results, strict=True)
            if call.name != expand.NAME
        ]
        return "\n\n".join([*pieces, self.question])

    def _turns_of(self, exchange: _Exchange, is_old: bool, note: str) -> list[dict[str, Any]]:
        """Return an exchange as turns: in the template's own form, or as plain lines."""
        results = [*exchange.results[:-1], "\n\n".join(filter(None, [exchange.results[-1], note]))]
        shown = [self._shown(result, is_old) for result in results]
        if not self.agent.is_native:
            content: Any = "\n\n".join(results)
            return [
                {"role": "assistant", "content": self._shown(exchange.raw.strip(), is_old)},
                {"role": "user", "content": self._shown(content, is_old)},
            ]
        ids = [f"call{at:05}" for at in range(len(shown))]  # nine characters, as Mistral wants them
        calls = [
            {
                "id": one, "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for one, call in zip(ids, exchange.said.calls, strict=True)
        ]  # fmt: skip
        said = self._shown(exchange.said.text, is_old)
        turns = [{"role": "assistant", "content": said, "tool_calls": calls}]
        for one, call, content in zip(ids, exchange.said.calls, shown, strict=True):
            turns.append(
                {"role": "tool", "name": call.name, "tool_call_id": one, "content": content}
            )
        return turns

    def _shown(self, text: str, is_old: bool) -> Any:
        """Return a text, or, where it is old and long, the latents that stand for it."""
        if not is_old or len(text) < _SHORTEST_FOLD:
            return text
        return [{"type": "memory", "text": text}]

    # -- the account -----------------------------------------------------------------------------

    def _record(self, done: Round) -> None:
        self.rounds.append(done)
        if self._on_round is not None:
            self._on_round(done)

    def _add(self, action: Action, completion: Completion, **others: Any) -> None:
        usage = completion.usage
        self._record(
            Round(
                action=action, said=completion.text, prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens, new_tokens=usage.completion_tokens,
                seconds=completion.timings.total_seconds, **others,
            )
        )  # fmt: skip

    def _quote(self) -> str:
        """Return the passage that promises most, where the model said nothing."""
        document = self.agent.document
        best = [*self.expanded, *document.search(self.question, 1), 1][0]
        return document.parts[best - 1].text.strip()

    def _citations(self, text: str) -> tuple[Citation, ...]:
        found = []
        for number in self.expanded:
            part = self.agent.document.parts[number - 1]
            place = part.passage
            found.append(
                Citation(
                    context=part.context, number=number, start=place.start, end=place.end,
                    line=place.line, heading=place.heading, text=part.text,
                    holds_answer=holds(part.text, text),
                )
            )  # fmt: skip
        return tuple(sorted(found, key=lambda one: not one.holds_answer))
