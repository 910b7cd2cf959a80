"""Answers of the Messages API: blocks of thinking, text and calls, whole and as events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from tilewise.outputs.group import AnswerDelta
from tilewise.outputs.parts import AnswerParts, AnswerReader, PartsDelta
from tilewise.server.answers import ChunkInterval, checked_reason
from tilewise.server.chat.call import ChatCall
from tilewise.server.problems import ErrorObject, Problem
from tilewise.types import CompletionOutput, Usage

Kind = Literal["thinking", "text", "tool_use"]


class AnswerBlock(TypedDict):
    """A block of thinking, of text, or a call of a tool; which fields it has depends on its type."""

    type: Kind
    thinking: NotRequired[str]
    signature: NotRequired[str]
    text: NotRequired[str]
    citations: NotRequired[None]
    id: NotRequired[str]
    name: NotRequired[str]
    input: NotRequired[dict[str, Any]]


class MessageUsage(TypedDict):
    input_tokens: int
    """Tokens of the prompt that were not cached."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


StopKind = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageObject(TypedDict):
    """A whole answer, or at the beginning of a stream one without content."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopKind | None
    stop_sequence: str | None
    usage: MessageUsage


class BlockDelta(TypedDict):
    """The growth of a block; or, with the event message_delta, why the answer has ended."""

    type: NotRequired[Literal["thinking_delta", "text_delta", "input_json_delta", "signature_delta"]]
    thinking: NotRequired[str]
    signature: NotRequired[str]
    text: NotRequired[str]
    partial_json: NotRequired[str]
    stop_reason: NotRequired[StopKind | None]
    stop_sequence: NotRequired[str | None]


class MessageEvent(TypedDict):
    """An event of a stream, whose fields depend on its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: NotRequired[MessageObject]
    index: NotRequired[int]
    content_block: NotRequired[AnswerBlock]
    delta: NotRequired[BlockDelta]
    usage: NotRequired[MessageUsage]
    error: NotRequired[ErrorObject]


def message_object(call: ChatCall, usage: Usage) -> MessageObject:
    """Return an answer that has no content yet."""
    return {
        "id": call.reply.id,
        "type": "message",
        "role": "assistant",
        "model": call.reply.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage, 0),
    }


def whole_message(call: ChatCall, answer: CompletionOutput, parts: AnswerParts, usage: Usage) -> MessageObject:
    """Return the body of a whole answer. Raises BrokenAnswer."""
    content = []
    if parts.reasoning:
        content.append(_opened("thinking", parts.reasoning))
    if parts.content:
        content.append(_opened("text", parts.content))
    content += [_called(made.name, _arguments(made.arguments)) for made in parts.calls]
    reason, sequence = _stop(answer.finish_reason, answer.stop_reason, bool(parts.calls))
    return {
        **message_object(call, usage),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(usage, usage.completion_tokens),
    }


class MessageStream:
    """The events of an answer in order: its start; each block's start, deltas and end; why it ended; its end."""

    def __init__(self, call: ChatCall, interval: int = 1) -> None:
        """Deltas come every `interval` tokens."""
        self._call = call
        self._reader = AnswerReader(call.parts)
        self._interval, self._held = ChunkInterval(interval), PartsDelta()
        self._begun = False
        self._blocks = 0
        self._open: Kind | None = None

    def take(self, piece: AnswerDelta, usage: Usage) -> list[MessageEvent]:
        """Return the events that a token gives. Raises BrokenAnswer."""
        ended = piece.finish_reason is not None
        self._held += self._reader.add(piece.text, ended)
        events: list[MessageEvent] = []
        if not self._begun:  # with the first token, as what was cached of the prompt is not known before
            events.append({"type": "message_start", "message": message_object(self._call, usage)})
            self._begun = True
        if self._interval.is_due(ended):
            held, self._held = self._held, PartsDelta()
            events += self._grow(held)
        if ended:
            events += self._end(piece, usage)
        return events

    @staticmethod
    def failed(problem: Problem) -> MessageEvent:
        """Return the event of a stream that cannot go on."""
        return {"type": "error", "error": problem.anthropic_body["error"]}

    def _grow(self, delta: PartsDelta) -> Iterator[MessageEvent]:
        if delta.reasoning:
            yield from self._enter("thinking", _opened("thinking", ""))
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            yield from self._enter("text", _opened("text", ""))
            yield self._delta({"type": "text_delta", "text": delta.content})
        for call in delta.calls:
            if call.name is not None:
                yield from self._leave()
                yield from self._enter("tool_use", _called(call.name, {}))
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _enter(self, kind: Kind, block: AnswerBlock) -> Iterator[MessageEvent]:
        """Open a block, and close what is open, unless that is of this kind already."""
        if self._open != kind:
            yield from self._leave()
            self._open = kind
            yield {"type": "content_block_start", "index": self._blocks, "content_block": block}

    def _leave(self) -> Iterator[MessageEvent]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._blocks}
            self._open = None
            self._blocks += 1

    def _delta(self, delta: BlockDelta) -> MessageEvent:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _end(self, piece: AnswerDelta, usage: Usage) -> Iterator[MessageEvent]:
        yield from self._leave()
        reason, sequence = _stop(piece.finish_reason, piece.stop_reason, bool(self._reader.parts.calls))
        delta: BlockDelta = {"stop_reason": reason, "stop_sequence": sequence}
        yield {"type": "message_delta", "delta": delta, "usage": _usage(usage, usage.completion_tokens)}
        yield {"type": "message_stop"}


def _opened(kind: Literal["thinking", "text"], text: str) -> AnswerBlock:
    if kind == "thinking":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text, "citations": None}


def _called(name: str, arguments: dict[str, Any]) -> AnswerBlock:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": name, "input": arguments}


def _arguments(text: str) -> dict[str, Any]:
    """Return a call's arguments; none of one that was cut short, as `stop_reason` says of the answer then."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _stop(finish: str | None, stop: str | int | None, has_calls: bool) -> tuple[StopKind, str | None]:
    """Return why an answer has ended, and the text that ended it. Raises BrokenAnswer."""
    if checked_reason(finish) == "length":
        return "max_tokens", None
    if has_calls:
        return "tool_use", None
    return ("stop_sequence", stop) if isinstance(stop, str) else ("end_turn", None)


def _usage(usage: Usage, output: int) -> MessageUsage:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": output,
    }
