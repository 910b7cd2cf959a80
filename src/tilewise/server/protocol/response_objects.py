"""Types of what /v1/responses answers: the response, its items, and the events that tell of them."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.server.protocol.answers import ChosenScore
from tilewise.server.protocol.common import Strict

ItemStatus = Literal["in_progress", "completed", "incomplete"]
EventType = Literal[
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class OutputText(Strict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenScore]


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: str


class MessageItem(Strict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningItem(Strict):
    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: None
    status: ItemStatus


class CallItem(Strict):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


Item = MessageItem | ReasoningItem | CallItem


class InputDetails(Strict):
    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int
    tiles: int


class OutputDetails(Strict):
    reasoning_tokens: int


class ResponseUsage(Strict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Strict):
    code: str
    message: str


class IncompleteDetails(Strict):
    reason: Literal["max_output_tokens"]


class RawMessage(Strict):
    """What the model reads or writes, as text and token ids; vLLM's."""

    type: Literal["raw_message_tokens"]
    message: str
    tokens: list[int]


class DeletedResponse(Strict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseObject(Strict):
    """Beside the answer, it repeats what the request said."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[Item]
    previous_response_id: str | None
    service_tier: None
    store: bool
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    temperature: float
    top_p: float
    top_logprobs: int
    instructions: str | None
    max_output_tokens: int | None
    metadata: Any
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    user: Any
    input_messages: list[RawMessage] | None = None
    output_messages: list[RawMessage] | None = None
    schema_errors: list[str] | None = None
    """Violations of the schema of which `strict: true` was asked; absent if there are none."""


class ResponseEvent(Strict):
    """Which fields an event has depends on its type."""

    type: EventType
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    item: Item | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: OutputText | None = None
    delta: str | None = None
    logprobs: list[ChosenScore] | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
