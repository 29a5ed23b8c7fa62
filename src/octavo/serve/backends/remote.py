"""A server further on that answers: `vllm serve` with the plugin, or another of its kind.

Documents go to it as text parts marked `"memory": true`, which it folds and keeps by itself
(`docs/serving.md`); what this server adds is contexts by id, policies, responses and compaction.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from octavo.errors import ConfigError
from octavo.model import Model
from octavo.serve.backends.base import AnswerJob, Piece, TokenTally
from octavo.serve.limits import Limits
from octavo.serve.wire import RequestError

CHARACTERS_A_TOKEN = 4
"""Where nothing here can count tokens: the usual average of English."""


class RemoteBackend:
    """One model of another OpenAI-compatible server."""

    model: Model | None = None
    capabilities = frozenset({"response_format", "tool_choice"})

    def __init__(self, url: str, limits: Limits, *, key: str | None = None) -> None:
        """Ask the server which model it has; raises `ConfigError` where none answers."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._url, self._limits = url.rstrip("/"), limits
        self._client = httpx.AsyncClient(
            headers=headers, timeout=httpx.Timeout(limits.answer_seconds, connect=5.0)
        )
        try:
            found = httpx.get(f"{self._url}/models", headers=headers, timeout=10.0)
            self.name = str(found.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"no model answers at {self._url}/models ({type(error).__name__}); start it first, "
                "and give its address with the /v1"
            ) from error
        self.fingerprint = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._num_jobs = 0

    async def check(self) -> bool:
        """Whether the other server lists its models."""
        try:
            return (await self._client.get(f"{self._url}/models", timeout=5.0)).status_code == 200
        except httpx.HTTPError:
            return False

    async def count(self, text: str) -> int:
        """Estimate the tokens of a text."""
        return len(text) // CHARACTERS_A_TOKEN

    async def measure(self, job: AnswerJob) -> TokenTally:
        """Estimate what a job's prompt takes."""
        messages = [_message(message)[0] for message in job.messages or ()]
        return TokenTally(prompt_tokens=len(json.dumps(messages)) // CHARACTERS_A_TOKEN)

    async def open(self, job: AnswerJob) -> "RemoteReply":
        """Send a job on; what the other server refuses is refused here with its own words."""
        if self._num_jobs >= self._limits.max_waiting:
            raise RequestError(
                f"{self._num_jobs} requests are at work; come again in a moment", status=429,
                code="rate_limit_exceeded", headers={"retry-after": "1"},
            )  # fmt: skip
        tally = TokenTally()
        body: dict[str, Any] = {
            "model": self.name, "stream": True, "stream_options": {"include_usage": True},
            "n": job.n, "temperature": job.temperature, "top_p": job.top_p, "seed": job.seed,
            "stop": list(job.stop) or None, "max_tokens": job.max_new_tokens,
            "tools": list(job.tools) or None, **job.fields,
        }  # fmt: skip
        if job.prompt is not None:
            path, body["prompt"] = "completions", job.prompt
        else:
            path, body["messages"] = "chat/completions", []
            for message in job.messages or ():
                sent, characters = _message(message)
                body["messages"].append(sent)
                tally.source_tokens += characters // CHARACTERS_A_TOKEN
        if job.ratio is not None:
            body["chat_template_kwargs"] = {"ratio": job.ratio}
        if job.num_alternatives is not None and job.prompt is None:
            body |= {"logprobs": True, "top_logprobs": job.num_alternatives}
        body = {name: value for name, value in body.items() if value is not None}
        self._num_jobs += 1
        try:
            request = self._client.build_request("POST", f"{self._url}/{path}", json=body)
            response = await self._client.send(request, stream=True)
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
        except httpx.HTTPError as error:
            self._num_jobs -= 1
            raise RequestError(
                f"the backend cannot be reached ({type(error).__name__})", status=502
            ) from error
        except BaseException:
            self._num_jobs -= 1
            raise
        return RemoteReply(self, response, tally)

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()


class RemoteReply:
    """The answers of another server, as they come."""

    def __init__(self, backend: RemoteBackend, response: httpx.Response, tally: TokenTally) -> None:
        """Read from an open response."""
        self.tally = tally
        self._backend, self._response, self._is_ended = backend, response, False

    async def aclose(self) -> None:
        """Hang up, which the other server takes as a reason to stop."""
        if not self._is_ended:
            self._is_ended = True
            self._backend._num_jobs -= 1
            await self._response.aclose()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what the other server says."""
        try:
            async for line in self._response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise _refusal(502, data.encode())
                self._count(chunk.get("usage") or {})
                for choice in chunk.get("choices") or ():
                    yield _piece(choice)
        except (httpx.HTTPError, ValueError) as error:
            raise RequestError(
                f"the backend broke off ({type(error).__name__})", status=502
            ) from error
        finally:
            await self.aclose()

    def _count(self, usage: Mapping[str, Any]) -> None:
        self.tally.prompt_tokens = usage.get("prompt_tokens") or self.tally.prompt_tokens
        self.tally.completion_tokens = (
            usage.get("completion_tokens") or self.tally.completion_tokens
        )
        details = usage.get("prompt_tokens_details") or {}
        self.tally.cached_tokens = details.get("cached_tokens") or self.tally.cached_tokens
        # Exact where the plugin's middleware says it (docs/serving.md), else estimated above.
        self.tally.source_tokens = usage.get("source_tokens") or self.tally.source_tokens
        latents = (details.get("multimodal_tokens") or {}).get("memory")
        self.tally.latents = usage.get("latents") or latents or self.tally.latents


def _piece(choice: Mapping[str, Any]) -> Piece:
    delta = choice.get("delta") or {}
    return Piece(
        index=choice.get("index") or 0,
        text=delta.get("content") or choice.get("text") or "",
        reasoning=delta.get("reasoning") or delta.get("reasoning_content") or "",
        calls=delta.get("tool_calls") or (),
        logprobs=(choice.get("logprobs") or {}).get("content") or (),
        finish=choice.get("finish_reason"),
    )


def _message(message: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a message as the other server reads it, and the characters of its documents."""
    sent, content, characters = dict(message), message.get("content"), 0
    if isinstance(content, list):
        parts = []
        for part in content:
            if part["type"] == "memory":
                text = part["context"].text if "context" in part else part["text"]
                memory = {"ratio": part["ratio"]} if "ratio" in part else True
                part = {"type": "text", "text": text, "memory": memory}
                characters += len(text)
            parts.append(part)
        sent["content"] = parts
    if calls := message.get("tool_calls"):
        sent["tool_calls"] = [_as_sent(call) for call in calls]
    return sent, characters


def _as_sent(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    said = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {**call, "function": {**call["function"], "arguments": said}}


def _refusal(status: int, body: bytes) -> RequestError:
    """Return the other server's refusal as ours; that it refuses us is no fault of the client."""
    try:
        found = json.loads(body)["error"]
        message, code = str(found["message"]), found.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code = "the backend refused without saying why", None
    kept = status if status in (400, 413, 422, 429) else 502
    headers = {"retry-after": "1"} if status == 429 else {}
    code = None if code is None or isinstance(code, int) else str(code)
    if "maximum context length" in message or "max_model_len" in message:
        code = "context_length_exceeded"
    return RequestError(message, status=kept, code=code, headers=headers)
