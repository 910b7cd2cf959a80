"""Response objects, the items in them, and items while they grow."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NotRequired

from typing_extensions import TypedDict

from tilewise.server.answers import ChosenScore, SchemaChecked
from tilewise.server.responses.call import Repeated, ResponseCall
from tilewise.types import Usage

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
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


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenScore]


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningItem(TypedDict):
    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: None
    status: ItemStatus


class CallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = MessageItem | ReasoningItem | CallItem


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int
    tiles: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(TypedDict):
    code: str
    message: str


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class RawMessage(TypedDict):
    """A text that the model reads or writes, as text and token ids; vLLM's."""

    type: Literal["raw_message_tokens"]
    message: str
    tokens: list[int]


class ResponseObject(Repeated, SchemaChecked):
    """Beside the answer, it repeats what the request said."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: ResponseStatus
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    previous_response_id: str | None
    service_tier: None
    store: bool
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    temperature: float
    top_p: float
    top_logprobs: int
    input_messages: NotRequired[list[RawMessage]]
    output_messages: NotRequired[list[RawMessage]]


class UnnumberedEvent(TypedDict):
    """An event before a stream has given it its number."""

    type: EventType
    response: NotRequired[ResponseObject]
    output_index: NotRequired[int]
    item: NotRequired[OutputItem]
    item_id: NotRequired[str]
    content_index: NotRequired[int]
    part: NotRequired[OutputText]
    delta: NotRequired[str]
    logprobs: NotRequired[list[ChosenScore]]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]


class ResponseEvent(UnnumberedEvent):
    """An event of a stream, whose fields depend on its type."""

    sequence_number: int


def response_object(
    call: ResponseCall, status: ResponseStatus, output: list[OutputItem], usage: ResponseUsage | None = None
) -> ResponseObject:
    reply, sampling = call.chat.reply, call.chat.sampling
    return {
        "id": call.id,
        "object": "response",
        "created_at": reply.created,
        "model": reply.model,
        "status": status,
        "background": call.background,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": output,
        "previous_response_id": call.previous,
        "service_tier": None,
        "store": call.store,
        "truncation": "disabled",
        "usage": usage,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": max(sampling.logprobs or 0, 0),
        **call.echoed,  # type: ignore[typeddict-item]  # mypy: it might have further keys
    }


def raw_message(text: str, token_ids: Sequence[int]) -> RawMessage:
    return {"type": "raw_message_tokens", "message": text, "tokens": list(token_ids)}


def response_usage(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
            "tiles": usage.tiles,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def listed_item(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an item that came with a request as OpenAI lists it: with an id, and text in parts."""
    found = {"type": "message", "status": "completed", "id": name, **item}
    if found["type"] == "message" and isinstance(text := found.get("content"), str):
        kind = "output_text" if found.get("role") == "assistant" else "input_text"
        found["content"] = [{"type": kind, "text": text}]
    return found


class OpenItem(ABC):
    """An item that grows by what the model writes."""

    prefix: ClassVar[str]
    """The beginning of an item's id."""
    grown: ClassVar[EventType]
    whole: ClassVar[EventType]

    def __init__(self, index: int) -> None:
        self.id, self.index, self.text = _new_id(self.prefix), index, ""

    @abstractmethod
    def item(self, status: ItemStatus) -> OutputItem: ...

    def opening(self) -> list[UnnumberedEvent]:
        return [self._told("response.output_item.added", self.item("in_progress"))]

    def grow(self, text: str, logprobs: list[ChosenScore]) -> UnnumberedEvent:
        """Add text and return its event. Log-probabilities are reported of the answer's text alone."""
        self.text += text
        return self.place({"type": self.grown, "delta": text})

    def closing(self, status: ItemStatus) -> list[UnnumberedEvent]:
        whole = self.place({"type": self.whole, "text": self.text})
        return [whole, self._told("response.output_item.done", self.item(status))]

    def place(self, event: UnnumberedEvent) -> UnnumberedEvent:
        """Add to an event where in the response its text stands."""
        event.update({"item_id": self.id, "output_index": self.index, "content_index": 0})
        return event

    def _told(self, kind: EventType, item: OutputItem) -> UnnumberedEvent:
        return {"type": kind, "output_index": self.index, "item": item}


class OpenText(OpenItem):
    """A message, whose text is the answer's."""

    prefix = "msg"
    grown, whole = "response.output_text.delta", "response.output_text.done"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[ChosenScore] = []

    def opening(self) -> list[UnnumberedEvent]:
        empty: MessageItem = {**self.item("in_progress"), "content": []}
        part: OutputText = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [
            self._told("response.output_item.added", empty),
            self.place({"type": "response.content_part.added", "part": part}),
        ]

    def grow(self, text: str, logprobs: list[ChosenScore]) -> UnnumberedEvent:
        self._logprobs += logprobs
        return {**super().grow(text, logprobs), "logprobs": logprobs}

    def closing(self, status: ItemStatus) -> list[UnnumberedEvent]:
        whole, done = super().closing(status)
        part = self.place({"type": "response.content_part.done", "part": self._part()})
        return [{**whole, "logprobs": self._logprobs}, part, done]

    def item(self, status: ItemStatus) -> MessageItem:
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": [self._part()]}

    def _part(self) -> OutputText:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self._logprobs}


class OpenReasoning(OpenItem):
    """A reasoning item: what the model thinks before it answers."""

    prefix = "rs"
    grown, whole = "response.reasoning_text.delta", "response.reasoning_text.done"

    def item(self, status: ItemStatus) -> ReasoningItem:
        return {
            "id": self.id,
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": self.text}] if self.text else [],
            "encrypted_content": None,
            "status": status,
        }


class OpenCall(OpenItem):
    """A call of a function, whose text is its arguments."""

    prefix = "fc"
    grown = "response.function_call_arguments.delta"

    def __init__(self, index: int, name: str) -> None:
        super().__init__(index)
        self._call_id, self._name = _new_id("call"), name

    def closing(self, status: ItemStatus) -> list[UnnumberedEvent]:
        kind: EventType = "response.function_call_arguments.done"
        done = self.place({"type": kind, "name": self._name, "arguments": self.text})
        return [done, self._told("response.output_item.done", self.item(status))]

    def place(self, event: UnnumberedEvent) -> UnnumberedEvent:
        event.update({"item_id": self.id, "output_index": self.index})
        return event

    def item(self, status: ItemStatus) -> CallItem:
        return {
            "id": self.id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
            "status": status,
        }
