"""The model `octavo-agent`: an agent reads a conversation's documents and answers its last turn.

Its rounds are streamed as reasoning; the passages that it opened stand beside the answer.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from octavo.agent import Agent, AgentAnswer, Round
from octavo.expand import ranges
from octavo.model import Model
from octavo.serve.backends.base import AnswerJob, Piece, TokenTally
from octavo.serve.wire import RequestError

AGENT_NAME = "octavo-agent"
Fold = Callable[[str, int | None, threading.Event], Any]


class AgentReply:
    """The answer of an agent, as an answer to a job."""

    def __init__(
        self, model: Model, job: AnswerJob, fold: Fold, on_end: Callable[[], None]
    ) -> None:
        """Take a job; `fold` compresses a text, and `on_end` is called once when all is over."""
        self.tally = TokenTally()
        self._model, self._job, self._fold, self._on_end = model, job, fold, on_end
        self._contexts, self._question = _documents(job)
        self._is_gone = threading.Event()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield every round as it ends, then the answer with its passages."""
        loop, rounds = asyncio.get_running_loop(), asyncio.Queue[Round | None]()

        def note(one: Round) -> None:
            loop.call_soon_threadsafe(rounds.put_nowait, one)
            if self._is_gone.is_set():
                raise RequestError("the client left", status=499)

        def end(work: asyncio.Future[AgentAnswer]) -> None:
            if not work.cancelled():
                work.exception()  # looked at here: nobody waits for it where the client left
            rounds.put_nowait(None)

        work = asyncio.ensure_future(asyncio.to_thread(self._ask, note))
        work.add_done_callback(end)
        try:
            while (one := await rounds.get()) is not None:
                self.tally.prompt_tokens += one.prompt_tokens
                self.tally.cached_tokens += one.cached_tokens
                self.tally.completion_tokens += one.new_tokens
                yield Piece(index=0, reasoning=_line_of(one))
            found = await work
            text = found.text
            for stop in self._job.stop:
                text = text.partition(stop)[0]
            yield Piece(index=0, text=text, citations=[_shown(one) for one in found.citations])
            yield Piece(index=0, finish="stop")
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Let the agent end with its round."""
        if not self._is_gone.is_set():
            self._is_gone.set()
            self._on_end()

    def _ask(self, note: Callable[[Round], None]) -> AgentAnswer:
        contexts = [
            part["context"]
            if "context" in part
            else self._fold(part["text"], part.get("ratio") or self._job.ratio, self._is_gone)
            for part in self._contexts
        ]
        self.tally.source_tokens = sum(one.source_tokens for one in contexts)
        self.tally.latents = sum(len(one) for one in contexts)
        limit = self._job.max_new_tokens or 128
        agent = Agent(self._model, contexts, ratio=self._job.ratio, max_new_tokens=limit)
        return agent.ask(self._question, on_round=note)


def _documents(job: AnswerJob) -> tuple[list[Any], str]:
    """Return the memory parts of a conversation, and what its last turn asks."""
    if job.messages is None or job.n > 1 or job.tools or job.num_alternatives is not None:
        raise RequestError(
            f"{AGENT_NAME} answers chats, once, with tools of its own; leave out tools, n and "
            "logprobs", code="unsupported_parameter",
        )  # fmt: skip
    documents: list[Any] = []
    question = ""
    for message in job.messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        documents += [part for part in parts if part["type"] == "memory"]
        if message["role"] == "user":
            question = "".join(part["text"] for part in parts if part["type"] == "text").strip()
    if not documents:
        raise RequestError(
            f'{AGENT_NAME} reads documents; give a file, a context, or a text with "memory": true',
            param="messages",
        )
    return documents, question


def _line_of(one: Round) -> str:
    """Return a round in a line."""
    if one.expanded:
        return f"Read passages {ranges(one.expanded)}: {one.expanded_tokens:,} tokens.\n"
    return "Looked for passages.\n" if one.action == "search" else "Wrote the answer.\n"


def _shown(one: Any) -> dict[str, Any]:
    return {
        "document": one.context, "start": one.start, "end": one.end, "line": one.line,
        "heading": one.heading, "text": one.text, "holds_answer": one.holds_answer,
    }  # fmt: skip
