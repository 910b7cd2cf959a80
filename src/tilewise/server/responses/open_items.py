"""Items of a response while they grow, each with the events that tell of it."""

from __future__ import annotations

import uuid
from typing import Any, Protocol

from tilewise.server.responses.items import Item, call_item, message_item, reasoning_item, text_part

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
    """The text of the answer."""

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
    """What the model thinks before it answers."""

    def __init__(self, index: int) -> None:
        self._id, self._index, self._text = _new_id("rs"), index, ""

    def opening(self) -> list[Event]:
        item = reasoning_item(self._id, "", "in_progress")
        return [{"type": "response.output_item.added", "output_index": self._index, "item": item}]

    def grow(self, text: str, logprobs: Logprobs) -> Event:
        """Log-probabilities are reported of texts alone."""
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
    """A call of a function."""

    def __init__(self, index: int, name: str) -> None:
        self._id, self._call_id, self._index, self._name = _new_id("fc"), _new_id("call"), index, name
        self._arguments = ""

    def opening(self) -> list[Event]:
        item = self.item("in_progress")
        return [{"type": "response.output_item.added", "output_index": self._index, "item": item}]

    def grow(self, text: str, logprobs: Logprobs) -> Event:
        """Log-probabilities are reported of texts alone."""
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
