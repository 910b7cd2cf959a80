"""Response objects, the items in them, and items while they grow."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from tilewise.sampling_params import SamplingParams
from tilewise.server.responses.read import ResponseCall
from tilewise.types import RequestOutput, Usage

Item = dict[str, Any]


def response_object(
    call: ResponseCall, status: str, output: list[Item], usage: dict[str, Any] | None = None
) -> dict[str, Any]:
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
        **_sampling(sampling),
        **call.said,
    }


def _sampling(sampling: SamplingParams) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": max(sampling.logprobs or 0, 0),
    }


def raw_messages(output: RequestOutput) -> dict[str, Any]:
    """Return prompt and answer as the model sees them, in vLLM's form."""
    answer = output.outputs[0]
    return {
        "input_messages": [_raw_message(output.prompt or "", output.prompt_token_ids)],
        "output_messages": [_raw_message(answer.text, answer.token_ids)],
    }


def _raw_message(text: str, token_ids: Sequence[int]) -> dict[str, Any]:
    return {"type": "raw_message_tokens", "message": text, "tokens": list(token_ids)}


def response_usage(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
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


def reasoning_item(item_id: str, text: str, status: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [],
        "content": content,
        "encrypted_content": None,
        "status": status,
    }


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def message_item(item_id: str, content: list[dict[str, Any]], status: str) -> Item:
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> Item:
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


Event = dict[str, Any]
Logprobs = list[dict[str, Any]]


class OpenItem(Protocol):
    def opening(self) -> list[Event]: ...
    def grow(self, text: str, logprobs: Logprobs) -> Event: ...
    def closing(self, status: str) -> list[Event]: ...
    def item(self, status: str) -> Item: ...


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class OpenText:
    """A message that grows by the text of the answer."""

    def __init__(self, index: int) -> None:
        self._id, self._index, self._text, self._logprobs = _new_id("msg"), index, "", Logprobs()

    def opening(self) -> list[Event]:
        item = message_item(self._id, [], "in_progress")
        return [
            {"type": "response.output_item.added", "output_index": self._index, "item": item},
            {"type": "response.content_part.added", **self._place(), "part": text_part("", [])},
        ]

    def grow(self, text: str, logprobs: Logprobs) -> Event:
        self._text += text
        self._logprobs += logprobs
        return {"type": "response.output_text.delta", **self._place(), "delta": text, "logprobs": logprobs}

    def closing(self, status: str) -> list[Event]:
        part = text_part(self._text, self._logprobs)
        done = {"type": "response.output_text.done", "text": self._text, "logprobs": self._logprobs}
        return [
            {**done, **self._place()},
            {"type": "response.content_part.done", **self._place(), "part": part},
            {"type": "response.output_item.done", "output_index": self._index, "item": self.item(status)},
        ]

    def item(self, status: str) -> Item:
        return message_item(self._id, [text_part(self._text, self._logprobs)], status)

    def _place(self) -> Event:
        return {"item_id": self._id, "output_index": self._index, "content_index": 0}


class OpenReasoning:
    """A reasoning item that grows by what the model thinks before it answers."""

    def __init__(self, index: int) -> None:
        self._id, self._index, self._text = _new_id("rs"), index, ""

    def opening(self) -> list[Event]:
        item = reasoning_item(self._id, "", "in_progress")
        return [{"type": "response.output_item.added", "output_index": self._index, "item": item}]

    def grow(self, text: str, logprobs: Logprobs) -> Event:
        """Add text and return its event. Log-probabilities are reported of the answer's text alone."""
        self._text += text
        return {"type": "response.reasoning_text.delta", **self._place(), "delta": text}

    def closing(self, status: str) -> list[Event]:
        return [
            {"type": "response.reasoning_text.done", **self._place(), "text": self._text},
            {"type": "response.output_item.done", "output_index": self._index, "item": self.item(status)},
        ]

    def item(self, status: str) -> Item:
        return reasoning_item(self._id, self._text, status)

    def _place(self) -> Event:
        return {"item_id": self._id, "output_index": self._index, "content_index": 0}


class OpenCall:
    """A call of a function that grows by its arguments."""

    def __init__(self, index: int, name: str) -> None:
        self._id, self._call_id, self._index, self._name = _new_id("fc"), _new_id("call"), index, name
        self._arguments = ""

    def opening(self) -> list[Event]:
        item = self.item("in_progress")
        return [{"type": "response.output_item.added", "output_index": self._index, "item": item}]

    def grow(self, text: str, logprobs: Logprobs) -> Event:
        """Add text and return its event. Log-probabilities are reported of the answer's text alone."""
        self._arguments += text
        return {"type": "response.function_call_arguments.delta", **self._place(), "delta": text}

    def closing(self, status: str) -> list[Event]:
        done = {"type": "response.function_call_arguments.done", "name": self._name, "arguments": self._arguments}
        return [
            {**done, **self._place()},
            {"type": "response.output_item.done", "output_index": self._index, "item": self.item(status)},
        ]

    def item(self, status: str) -> Item:
        return call_item(self._id, self._call_id, self._name, self._arguments, status)

    def _place(self) -> Event:
        return {"item_id": self._id, "output_index": self._index}
