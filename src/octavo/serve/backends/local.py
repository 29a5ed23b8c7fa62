"""A model in this process as a backend: prompts made in threads, rows answered in one batch."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import octavo.generate as generate
from octavo.context import CompressedContext
from octavo.engine.base import Prompt
from octavo.errors import ContextError, PromptTooLongError
from octavo.model import Model
from octavo.prompt import EncodedPrompt, Message
from octavo.serve.backends.agent import AgentReply
from octavo.serve.backends.base import Answering, AnswerJob, Piece, TokenTally
from octavo.serve.backends.scheduler import Event, Scheduler, Ticket, Token
from octavo.serve.backends.tools import (
    THINK,
    CallReader,
    ThoughtReader,
    described,
    knows_tools,
    spelled_out,
)
from octavo.serve.limits import Limits
from octavo.serve.wire import RequestError
from octavo.text import TextStream, sha256_of, token_bytes

KEPT_CONTEXT_BYTES = 256 << 20
"""Of contexts made on the way to an answer, which are found again when a text comes again."""
KEPT_PREFIXES = 8
"""Contexts whose KV caches wait for another question."""
BUSY_SECONDS = "1"


class LocalBackend:
    """A model in this process, whose rows all run in one batch."""

    capabilities: frozenset[str] = frozenset()

    def __init__(self, model: Model, limits: Limits) -> None:
        """Serve a model; the scheduler starts with the first job."""
        self.model: Model | None = model
        self._model, self._limits = model, limits
        self.name, self.fingerprint = model.name, model.fingerprint
        model.engine.keep_prefixes(KEPT_PREFIXES)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="octavo-prepare")
        self._contexts: OrderedDict[tuple[str, int], CompressedContext] = OrderedDict()
        self._lock = threading.Lock()
        self._num_jobs = 0
        self._scheduler: Scheduler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def check(self) -> bool:
        """Return that it is ready, as it is once it is there."""
        return True

    async def count(self, text: str) -> int:
        """Return the decoder's tokens of a text."""
        return len(await self._in_thread(self._model.prompts.text_ids, text))

    async def measure(self, job: AnswerJob) -> TokenTally:
        """Encode a job's prompt and count it."""
        _, tally = await self._in_thread(self._encode, job, threading.Event())
        return TokenTally(**asdict(tally))

    @property
    def load(self) -> dict[str, float]:
        """How much is going on."""
        active = self._scheduler.num_active if self._scheduler else 0
        kept = sum(one.num_bytes for one in self._contexts.values())
        return {
            "jobs": self._num_jobs,
            "rows": active,
            "kept_prefix_bytes": self._model.engine.kept_bytes,
            "kept_context_bytes": kept,
        }

    async def open(self, job: AnswerJob) -> Answering:
        """Make a job's prompt and let its rows wait; raises 429 where too many do."""
        if self._num_jobs >= self._limits.max_waiting:
            raise RequestError(
                f"{self._num_jobs} requests are at work or waiting; come again in a moment",
                status=429, code="rate_limit_exceeded", headers={"retry-after": BUSY_SECONDS},
            )  # fmt: skip
        if job.is_agents:
            reply = AgentReply(self._model, job, self.fold, self.end)
            self._num_jobs += 1
            return reply
        self._num_jobs += 1
        is_gone = threading.Event()
        try:
            encoded, tally = await self._in_thread(self._encode, job, is_gone)
            prompt, sampling = self._settle(job, encoded)
        except BaseException:
            is_gone.set()
            self._num_jobs -= 1
            raise
        if self._scheduler is None:
            self._loop = asyncio.get_running_loop()
            engine, rows = self._model.engine, self._limits.max_rows
            self._scheduler = Scheduler(engine, self._deliver, max_rows=rows)
        is_thinking = job.prompt is None and encoded.rendered.rstrip().endswith(THINK)
        return LocalReply(self, job, prompt, sampling, tally, is_thinking=is_thinking)

    def end(self) -> None:
        """Count a job as done."""
        self._num_jobs -= 1

    async def close(self) -> None:
        """End all answers."""
        if self._scheduler is not None:
            await asyncio.to_thread(self._scheduler.close)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._model.close()

    async def _in_thread(self, work: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    def _deliver(self, events: list[tuple[Ticket, Event]]) -> None:
        """Hand on what the scheduler says, in the event loop's own thread."""
        assert self._loop is not None
        if events and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_dispatch, events)

    # -- prompts, in a thread of the pool --------------------------------------------------------

    def _encode(self, job: AnswerJob, is_gone: threading.Event) -> tuple[EncodedPrompt, TokenTally]:
        prompts, tally = self._model.prompts, TokenTally()
        ratio = generate.served_ratio(self._model.engine, job.ratio)
        if job.prompt is not None:
            ids = prompts.text_ids(job.prompt, is_start=True)
            if not ids:
                raise RequestError("the prompt is empty; give it some text", param="prompt")
            encoded = EncodedPrompt(input_ids=ids, slots=[], spans=[], rendered=job.prompt)
        else:
            template = prompts.decoder_tokenizer.chat_template
            messages = [self._read(one, ratio, is_gone) for one in job.messages or ()]
            given = {"tools": list(job.tools)} if job.tools and knows_tools(template) else None
            if not knows_tools(template):
                messages = [spelled_out(one) for one in messages]
                if job.tools:
                    messages.insert(0, {"role": "system", "content": described(job.tools)})
            encoded = prompts.encode_messages(messages, ratio=ratio, template=given)
        tally.prompt_tokens = len(encoded.input_ids)
        for span in encoded.spans:
            tally.source_tokens += span.context.source_tokens
            tally.latents += span.num_latents
        return encoded, tally

    def _read(self, message: Message, ratio: int, is_gone: threading.Event) -> dict[str, Any]:
        """Return a message all of whose memory parts hold contexts."""
        content = message.get("content")
        if isinstance(content, str) or not isinstance(content, Sequence):
            return dict(message)
        parts = []
        for part in content:
            if part.get("type") == "memory" and "context" not in part:
                made = self.fold(part["text"], part.get("ratio") or ratio, is_gone)
                part = {"type": "memory", "context": made}
            elif part.get("type") == "memory":
                part["context"].check_made_by(self.fingerprint, self.name)
            parts.append(part)
        return {**message, "content": parts}

    def fold(
        self, text: str, ratio: int | None = None, is_gone: threading.Event | None = None
    ) -> CompressedContext:
        """Return the context of a text, kept from before where it came before.

        A text that goes on from one that is kept costs its new windows only.
        """
        ratio = generate.served_ratio(self._model.engine, ratio)
        key = sha256_of(text), ratio
        with self._lock:
            if (found := self._contexts.get(key)) is not None:
                self._contexts.move_to_end(key)
                return found
            kept = [one for (_, its), one in self._contexts.items() if its == ratio]
        begun = [one for one in kept if one.text and text.startswith(one.text)]

        def advance(done: int, total: int) -> None:
            if is_gone is not None and is_gone.is_set():
                raise RequestError("the client left", status=499)

        try:
            if begun:
                longest = max(begun, key=len)
                assert longest.text is not None
                made = self._model.extend(longest, text[len(longest.text) :])
            else:
                made = self._model.compress(text, ratio, on_tokens=advance)
        except ContextError as error:  # all that compressing refuses is too much text
            raise PromptTooLongError(str(error)) from error
        with self._lock:
            self._contexts[key] = made
            while len(self._contexts) > 1 and self.load["kept_context_bytes"] > KEPT_CONTEXT_BYTES:
                self._contexts.popitem(last=False)
        return made

    def _settle(self, job: AnswerJob, encoded: EncodedPrompt) -> tuple[Prompt, Any]:
        """Return the engine's prompt and sampling; raises `PromptTooLongError`."""
        engine = self._model.engine
        (question,) = generate.gather(engine, [encoded], job.ratio or 1)
        wanted = job.max_new_tokens
        if wanted is None:
            room = engine.max_positions - len(encoded.input_ids)
            wanted = max(1, min(room, self._limits.max_new_tokens))
        sampling = generate.check_sampling(
            engine, [encoded], None, wanted,
            temperature=job.temperature, top_p=job.top_p, seed=job.seed,
            logprobs=job.num_alternatives is not None,
            num_alternatives=job.num_alternatives or 0,
        )  # fmt: skip
        prompt = question.prompt
        if job.n > 1:  # the whole prompt is what its answers share
            prompt = replace(prompt, prefix_length=len(prompt.input_ids) - 1)
        return prompt, sampling


class LocalReply:
    """The answers to a job of a local backend."""

    def __init__(
        self,
        backend: LocalBackend,
        job: AnswerJob,
        prompt: Prompt,
        sampling: Any,
        tally: TokenTally,
        *,
        is_thinking: bool,
    ) -> None:
        """Let the rows wait; `is_thinking` where the prompt has begun a thought."""
        self.tally, self._is_thinking = tally, is_thinking
        self._backend, self._job, self._prompt, self._sampling = backend, job, prompt, sampling
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._tickets = [self._ticket(index) for index in range(job.n)]
        assert backend._scheduler is not None
        for ticket in self._tickets:
            backend._scheduler.submit(ticket)
        self._is_ended = False

    def _ticket(self, index: int) -> Ticket:
        seed = self._job.seed
        sampling = replace(
            self._sampling, seed=None if seed is None else (seed + index) % (1 << 63)
        )
        return Ticket(self._prompt, sampling, lambda event: self._events.put_nowait((index, event)))

    async def aclose(self) -> None:
        """End what still runs."""
        if not self._is_ended:
            self._is_ended = True
            assert self._backend._scheduler is not None
            for ticket in self._tickets:
                self._backend._scheduler.cancel(ticket)
            self._backend.end()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the answers as they grow."""
        model, job = self._backend._model, self._job
        tokenizer = model.prompts.decoder_tokenizer
        texts = [TextStream(tokenizer, job.stop) for _ in range(job.n)]
        readers = [CallReader() if job.tools else None for _ in range(job.n)]
        thoughts = [ThoughtReader(self._is_thinking) for _ in range(job.n)]
        open_rows = set(range(job.n))
        try:
            while open_rows:
                index, event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                if index not in open_rows:
                    continue
                text, reader = texts[index], readers[index]
                logprobs: tuple[Mapping[str, Any], ...] = ()
                if event is None:
                    said = text.finish()
                else:
                    said = text.push(event.id)
                    self.tally.completion_tokens += 1
                    self.tally.cached_tokens = max(self.tally.cached_tokens, event.reused)
                    if event.logprob is not None and job.num_alternatives is not None:
                        logprobs = (_logprob(tokenizer, event),)
                calls: list[dict[str, Any]] = []
                is_over = event is None or text.is_finished
                thought = ""
                if job.prompt is None:
                    thought, said = thoughts[index].push(said, is_last=is_over)
                if reader is not None:
                    said, calls = reader.push(said, is_last=is_over)
                finish = None
                if is_over:
                    open_rows.remove(index)
                    finish = self._finish(text, reader)
                    assert self._backend._scheduler is not None
                    self._backend._scheduler.cancel(self._tickets[index])
                if thought or said or calls or logprobs or finish:
                    yield Piece(
                        index=index, text=said, reasoning=thought, calls=calls,
                        logprobs=logprobs, finish=finish,
                    )  # fmt: skip
        finally:
            await self.aclose()

    def _finish(self, text: TextStream, reader: CallReader | None) -> str:
        if reader is not None and reader.num_calls:
            return "tool_calls"
        is_cut = text.num_tokens >= self._sampling.max_new_tokens and not text.was_stopped
        return "length" if is_cut else "stop"


def _dispatch(events: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.on_event(event)


def _logprob(tokenizer: Any, token: Token) -> dict[str, Any]:
    """Return one entry of `logprobs.content`."""

    def entry(id: int, logprob: float) -> dict[str, Any]:
        read = token_bytes(tokenizer, id)
        said = read.decode(errors="backslashreplace")  # of part of a character: \xf0\x9f
        return {"token": said, "logprob": max(logprob, -9999.0), "bytes": list(read)}

    assert token.logprob is not None
    best = [entry(id, logprob) for id, logprob in token.alternatives]
    return {**entry(token.id, token.logprob), "top_logprobs": best}
