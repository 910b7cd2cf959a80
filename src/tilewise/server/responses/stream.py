"""ResponseStream: events of the Responses API, and the whole response, made from the pieces of a growing answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

from tilewise.outputs.group import AnswerDelta
from tilewise.outputs.parts import AnswerReader, PartsDelta
from tilewise.server.answers import ChosenScore, ChunkInterval, chat_scores, checked_reason
from tilewise.server.problems import Problem
from tilewise.server.responses.call import ResponseCall
from tilewise.server.responses.items import (
    EventType,
    ItemStatus,
    OpenCall,
    OpenItem,
    OpenReasoning,
    OpenText,
    OutputItem,
    ResponseEvent,
    ResponseObject,
    UnnumberedEvent,
    response_object,
    response_usage,
)
from tilewise.types import Usage


class ResponseStream:
    """A response's events in order: created, in progress; for each item its opening, its deltas, its end; completed.

    A response that is not streamed is what the last event holds: take all pieces, and ask for `response`.
    """

    def __init__(self, call: ResponseCall, interval: int = 1) -> None:
        """Events of deltas come every `interval` tokens."""
        self._call = call
        self.reader = AnswerReader(call.chat.parts)
        self._interval, self._held = ChunkInterval(interval), PartsDelta()
        self._done: list[OutputItem] = []
        self._open: OpenItem | None = None
        self._numbers = itertools.count()
        self._logprobs: list[ChosenScore] = []
        self.response: ResponseObject = response_object(call, "in_progress", [])
        """The response object: in progress, and whole behind the last piece."""

    def opening(self) -> list[ResponseEvent]:
        created: UnnumberedEvent = {"type": "response.created", "response": self.response}
        return self._numbered([created, {"type": "response.in_progress", "response": self.response}])

    def take(self, piece: AnswerDelta, usage: Usage) -> list[ResponseEvent]:
        """Return the events that a token gives. Raises BrokenAnswer."""
        reason = checked_reason(piece.finish_reason)
        self._score(piece)
        self._held += self.reader.add(piece.text, reason is not None)
        if not self._interval.is_due(reason is not None):
            return []
        held, self._held = self._held, PartsDelta()
        events = list(self._grow(held))
        if reason is not None:
            events += self._end("incomplete" if reason == "length" else "completed", usage)
        return self._numbered(events)

    def failed(self, problem: Problem) -> list[ResponseEvent]:
        """End a response that cannot go on, and return its last event."""
        self.response = response_object(self._call, "failed", self._done)
        self.response["error"] = {"code": "server_error", "message": problem.body["error"]["message"]}
        return self._numbered([{"type": "response.failed", "response": self.response}])

    def _score(self, piece: AnswerDelta) -> None:
        top = self._call.chat.sampling.scored_tokens
        if piece.scores is not None and top is not None:
            as_ids = self._call.chat.reply.tokens_as_ids
            self._logprobs += chat_scores([piece.scores], [piece.token_id], top, as_ids)

    def _grow(self, delta: PartsDelta) -> Iterator[UnnumberedEvent]:
        if not self._call.chat.include_reasoning:
            if self.reader.in_reasoning:
                self._logprobs.clear()  # what is hidden is not told by its tokens either
        elif delta.reasoning:
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

    def _item(self, kind: type[OpenReasoning] | type[OpenText]) -> Iterator[UnnumberedEvent]:
        """Open an item of this kind, and close what is open, unless that is of this kind already."""
        if isinstance(self._open, kind):
            return
        yield from self._close("completed")
        self._open = kind(len(self._done))
        yield from self._open.opening()

    def _deltas(self, text: str) -> Iterator[UnnumberedEvent]:
        assert self._open is not None
        if text:
            logprobs, self._logprobs = self._logprobs, []
            yield self._open.grow(text, logprobs)

    def _close(self, status: ItemStatus) -> Iterator[UnnumberedEvent]:
        if self._open is not None:
            yield from self._open.closing(status)
            self._done.append(self._open.item(status))
            self._open = None

    def _end(self, status: Literal["completed", "incomplete"], usage: Usage) -> Iterator[UnnumberedEvent]:
        if self._open is None and not self._done:  # an answer of nothing is an empty text
            yield from self._item(OpenText)
        yield from self._close(status)
        counts = response_usage(usage, self.reader.reasoning_tokens)
        self.response = response_object(self._call, status, self._done, counts)
        kind: EventType = "response.completed" if status == "completed" else "response.incomplete"
        yield {"type": kind, "response": self.response}

    def _numbered(self, events: Iterable[UnnumberedEvent]) -> list[ResponseEvent]:
        return [{**event, "sequence_number": next(self._numbers)} for event in events]
