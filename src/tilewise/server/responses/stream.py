"""ResponseStream: events of the Responses API, and the whole response, made from the pieces of a growing answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tilewise.outputs.group import AnswerDelta
from tilewise.outputs.parts import PartsDelta, PartsSplitter
from tilewise.server.chat_answers import checked_reason, parts_rule
from tilewise.server.errors import Problem
from tilewise.server.responses.items import (
    Item,
    OpenCall,
    OpenItem,
    OpenReasoning,
    OpenText,
    response_object,
    response_usage,
)
from tilewise.server.responses.read import ResponseCall
from tilewise.server.scores import chat_logprobs
from tilewise.types import Usage

Event = dict[str, Any]


class ResponseStream:
    """A response's events in order: created, in progress; for each item its opening, its deltas, its end; completed.

    A response that is not streamed is what the last event holds: take all pieces, and ask for `response`.
    """

    def __init__(self, call: ResponseCall) -> None:
        self._call = call
        self._splitter = PartsSplitter(parts_rule(call.chat))
        self._done: list[Item] = []
        self._open: OpenItem | None = None
        self._numbers = 0
        self._reasoning_tokens = 0
        self._logprobs: list[dict[str, Any]] = []
        self.response: dict[str, Any] = response_object(call, "in_progress", [])
        """The response object: in progress, and whole behind the last piece."""

    def opening(self) -> list[Event]:
        kinds = ("response.created", "response.in_progress")
        return self._numbered({"type": kind, "response": self.response} for kind in kinds)

    def take(self, piece: AnswerDelta, usage: Usage) -> list[Event]:
        """Return the events that a token gives. Raises BrokenAnswer."""
        reason = checked_reason(piece.finish_reason)
        self._score(piece)
        delta = self._splitter.add(piece.text)
        self._reasoning_tokens += self._splitter.in_reasoning
        events = list(self._grow(delta))
        if reason is not None:
            events += self._grow(self._splitter.finish())
            events += self._end("incomplete" if reason == "length" else "completed", usage)
        return self._numbered(events)

    def failed(self, problem: Problem) -> list[Event]:
        """End a response that cannot go on, and return its last event."""
        error = {"code": "server_error", "message": problem.body["error"]["message"]}
        self.response = {**response_object(self._call, "failed", self._done), "error": error}
        return self._numbered([{"type": "response.failed", "response": self.response}])

    def _score(self, piece: AnswerDelta) -> None:
        top = self._call.chat.sampling.scored_tokens
        if piece.scores is not None and top is not None:
            self._logprobs += chat_logprobs([piece.scores], [piece.token_id], top, as_ids=False)["content"]

    def _grow(self, delta: PartsDelta) -> Iterator[Event]:
        if delta.reasoning and self._call.chat.include_reasoning:
            yield from self._item(OpenReasoning)
            yield from self._deltas(delta.reasoning)
        if delta.content:
            yield from self._item(OpenText)
            yield from self._deltas(delta.content)
        for call in delta.calls:
            if call.name is not None:
                yield from self._close("completed")
                self._open = OpenCall(len(self._done), call.name)
                yield from self._open.opening()
            yield from self._deltas(call.arguments)

    def _item(self, kind: type[OpenReasoning] | type[OpenText]) -> Iterator[Event]:
        """Open an item of this kind, and close what is open, unless that is of this kind already."""
        if isinstance(self._open, kind):
            return
        yield from self._close("completed")
        self._open = kind(len(self._done))
        yield from self._open.opening()

    def _deltas(self, text: str) -> Iterator[Event]:
        assert self._open is not None
        if text:
            logprobs, self._logprobs = self._logprobs, []
            yield self._open.grow(text, logprobs)

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.closing(status)
            self._done.append(self._open.item(status))
            self._open = None

    def _end(self, status: str, usage: Usage) -> Iterator[Event]:
        if self._open is None and not self._done:  # an answer of nothing is an empty text
            yield from self._item(OpenText)
        yield from self._close(status)
        counts = response_usage(usage, self._reasoning_tokens)
        self.response = response_object(self._call, status, self._done, counts)
        yield {"type": f"response.{status}", "response": self.response}

    def _numbered(self, events: Any) -> list[Event]:
        numbered = []
        for event in events:
            numbered.append({**event, "sequence_number": self._numbers})
            self._numbers += 1
        return numbered
