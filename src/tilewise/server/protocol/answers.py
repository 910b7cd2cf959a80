"""Types of what chat and text completions answer, whole and in chunks, and of what goes wrong.

Answers are put together as plain dicts; these say what they look like to whoever reads the OpenAPI document.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tilewise.server.protocol.common import Strict

Finish = Literal["stop", "length", "tool_calls", "abort"]
StopReason = str | int | None


class ErrorObject(Strict):
    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(Strict):
    """What went wrong, with the value, the limit and the remedy."""

    error: ErrorObject


class Unauthorized(Strict):
    error: Literal["Unauthorized"]


class PromptDetails(Strict):
    cached_tokens: int
    image_tokens: int
    tiles: int


class CompletionDetails(Strict):
    reasoning_tokens: int


class UsageCounts(Strict):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | None = None
    """Absent where an answer has no reasoning."""


class TokenScore(Strict):
    token: str
    logprob: float
    bytes: list[int]


class ChosenScore(TokenScore):
    top_logprobs: list[TokenScore]


class ChatScores(Strict):
    content: list[ChosenScore]


class PromptScore(Strict):
    logprob: float
    rank: int
    decoded_token: str | None


PromptScores = list[dict[str, PromptScore] | None]


class FunctionCall(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Strict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: None
    audio: None
    function_call: None
    tool_calls: list[ToolCall]
    reasoning: str | None
    reasoning_content: str | None


class ChatChoice(Strict):
    index: int
    message: ChatMessage
    logprobs: ChatScores | None
    finish_reason: Finish
    stop_reason: StopReason
    token_ids: list[int] | None
    schema_errors: list[str] | None = None
    """Violations of the schema of which `strict: true` was asked; absent if there are none."""


class ChatCompletion(Strict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None
    system_fingerprint: None
    usage: UsageCounts
    prompt_logprobs: PromptScores | None
    prompt_token_ids: list[int] | None
    kv_transfer_params: None
    metrics: RequestTimes | None = None


class FunctionDelta(Strict):
    name: str | None = None
    arguments: str


class ToolCallDelta(Strict):
    """The first of a call has its id and name; arguments grow."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(Strict):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Strict):
    index: int
    delta: ChatDelta
    logprobs: ChatScores | None
    finish_reason: Finish | None
    stop_reason: StopReason = None
    token_ids: list[int] | None = None
    schema_errors: list[str] | None = None
    """Violations of the schema of which `strict: true` was asked; absent if there are none."""


class ChatChunk(Strict):
    """The last one has no choices, but the usage, if stream_options asks for it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageCounts | None = None
    prompt_token_ids: list[int] | None = None
    metrics: RequestTimes | None = None


class TextScores(Strict):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TextChoice(Strict):
    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: Finish
    stop_reason: StopReason
    token_ids: list[int] | None
    prompt_logprobs: PromptScores | None
    prompt_token_ids: list[int] | None


class TextCompletion(Strict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    service_tier: None
    system_fingerprint: None
    usage: UsageCounts
    kv_transfer_params: None
    metrics: RequestTimes | None = None


class TextChunkChoice(Strict):
    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: Finish | None
    stop_reason: StopReason = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class TextChunk(Strict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: UsageCounts | None = None
    metrics: RequestTimes | None = None


class RequestTimes(Strict):
    """Under --enable-per-request-metrics; milliseconds, and tokens a second."""

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None
    mean_itl_ms: float | None = None
    tokens_per_second: float | None = None


class Reset(Strict):
    success: bool


class ServerInfo(Strict):
    vllm_config: str | dict[str, Any]
    vllm_env: dict[str, str]
    system_env: dict[str, Any]


class TokenizerInfo(BaseModel):
    """All that the checkpoint's tokenizer_config.json says."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str


class Tokens(Strict):
    """A prompt may be longer than the context here."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Strict):
    prompt: str


class ModelCard(Strict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    permission: list[dict[str, Any]]


class ModelList(Strict):
    object: Literal["list"]
    data: list[ModelCard]


class Version(Strict):
    version: str


class Load(Strict):
    server_load: int
