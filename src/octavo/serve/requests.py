"""What requests may hold. Fields that are not named are ignored, and null counts as omitted."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class CompressPolicy(_Fields):
    """Which messages are folded into latents without being asked to."""

    over_tokens: Annotated[int, Field(ge=0)] = 1024
    """Messages of more tokens than this are folded."""
    ratio: Positive | None = None
    """By default the model's own."""
    roles: list[Literal["user", "system", "tool", "assistant"]] = ["user", "system", "tool"]


class _Drawing(_Fields):
    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """By default 0: the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    compress: CompressPolicy | None = None
    ratio: Positive | None = None
    """Of documents in this request; by default the model's own."""


class _Legacy(_Drawing):
    stream_options: dict[str, Any] | None = None
    max_tokens: Positive | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class ChatRequest(_Legacy):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(_Legacy):
    """The body of `/v1/completions`."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class ResponseRequest(_Drawing):
    """The body of `/v1/responses`, `/v1/responses/compact` and `/v1/responses/input_tokens`."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None


class ContextRequest(_Fields):
    """The JSON body of `POST /v1/contexts`."""

    text: str
    name: str | None = None
    ratio: Positive | None = None
    tags: list[str] | None = None


class AppendRequest(_Fields):
    """The body of `POST /v1/contexts/{id}/append`."""

    text: str


class AskRequest(_Fields):
    """The body of `POST /v1/contexts/ask`."""

    question: str
    context_ids: Annotated[list[str], Field(min_length=1, max_length=64)]
    passages: Annotated[int, Field(ge=1, le=50)] = 5
    answer: bool = True
    max_tokens: Positive | None = None
