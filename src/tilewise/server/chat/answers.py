"""Answers to chat calls, whole and as chunks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NotRequired, cast

from typing_extensions import TypedDict

from tilewise.outputs.boxes import read_boxes
from tilewise.outputs.group import AnswerDelta
from tilewise.outputs.parts import AnswerParts, AnswerReader, Call, PartsDelta
from tilewise.outputs.tools import CallDelta
from tilewise.server.answers import (
    ChatScores,
    ChunkInterval,
    CompletionChunk,
    Explanation,
    Finish,
    PromptScores,
    SchemaChecked,
    Scores,
    StopReason,
    WholeCompletion,
    chat_scores,
    checked_reason,
    explanation,
    prompt_scores,
    usage_body,
)
from tilewise.server.chat.call import ChatCall
from tilewise.types import CompletionOutput, RequestOutput, Usage


class FunctionCall(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class LabelledBox(TypedDict):
    """A box of an answer; corners are left, top, right and bottom in thousandths of the picture."""

    label: str
    corners: list[float]


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: None
    audio: None
    function_call: None
    tool_calls: list[ToolCall]
    reasoning: str | None
    reasoning_content: str | None
    boxes: NotRequired[list[LabelledBox]]
    """Present where return_boxes asks for them."""


class ChatChoice(SchemaChecked):
    index: int
    message: ChatMessage
    logprobs: ChatScores | None
    finish_reason: Finish
    stop_reason: StopReason
    token_ids: list[int] | None


class ChatCompletion(WholeCompletion):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptScores | None
    prompt_token_ids: list[int] | None
    explanation: NotRequired[Explanation]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """The first of a call has its id and name; arguments grow."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]
    boxes: NotRequired[list[LabelledBox]]
    """All boxes of the answer, with its last chunk, where return_boxes asks for them."""


class ChatChunkChoice(SchemaChecked):
    index: int
    delta: ChatDelta
    logprobs: ChatScores | None
    finish_reason: Finish | None
    stop_reason: NotRequired[StopReason]
    token_ids: NotRequired[list[int]]


class ChatChunk(CompletionChunk):
    """The last one has no choices, but the usage, if stream_options asks for it, or an explanation, if explain does."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: NotRequired[list[int]]
    explanation: NotRequired[Explanation]


def chat_body(call: ChatCall, output: RequestOutput, readers: Sequence[AnswerReader]) -> ChatCompletion:
    """Return the body of whole answers, each of which a reader has read. Raises BrokenAnswer."""
    reply = call.reply
    body: ChatCompletion = {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [_choice(call, *pair) for pair in zip(output.outputs, readers, strict=True)],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage_body(output.usage, sum(reader.reasoning_tokens for reader in readers)),
        "prompt_logprobs": prompt_scores(output.prompt_logprobs),
        "prompt_token_ids": output.prompt_token_ids if reply.token_ids else None,
        "kv_transfer_params": None,
    }
    if reply.explain:
        body["explanation"] = explanation(output)
    return body


def _finish_reason(call: ChatCall, reason: str | None, has_calls: bool) -> Finish | None:
    """Return tool_calls for an answer with calls, or else the engine's reason. Raises BrokenAnswer.

    A call of a function that the request itself named ends with stop, as in OpenAI's API.
    """
    if reason == "stop" and has_calls and call.parts.calls in ("auto", "required"):
        return "tool_calls"
    return checked_reason(reason)


def _choice(call: ChatCall, answer: CompletionOutput, reader: AnswerReader) -> ChatChoice:
    reply, top, parts = call.reply, call.sampling.scored_tokens, reader.parts
    scores: ChatScores | None = None
    if answer.logprobs is not None and top is not None:
        scores = {"content": chat_scores(answer.logprobs, answer.token_ids, top, reply.tokens_as_ids)}
    return {
        "index": answer.index,
        "message": _message(call, parts),
        "logprobs": scores,
        "finish_reason": cast(Finish, _finish_reason(call, answer.finish_reason, bool(parts.calls))),  # it is whole
        "stop_reason": answer.stop_reason,
        "token_ids": answer.token_ids if reply.token_ids else None,
    }


def _message(call: ChatCall, parts: AnswerParts) -> ChatMessage:
    reasoning = parts.reasoning if call.include_reasoning and parts.reasoning else None
    content = call.echo + parts.content
    message: ChatMessage = {
        "role": "assistant",
        "content": None if not content and (parts.calls or parts.reasoning) else content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [_tool_call(made) for made in parts.calls],
        "reasoning": reasoning,
        # Open WebUI takes it for a text wherever there is no content, and fails over null.
        "reasoning_content": reasoning if reasoning or content or parts.calls else "",
    }
    if call.reply.boxes:
        message["boxes"] = _boxes(parts.content)
    return message


def _boxes(content: str) -> list[LabelledBox]:
    return [{"label": box.label, "corners": list(box.corners)} for box in read_boxes(content)]


def _tool_call(made: Call) -> ToolCall:
    return {"id": _call_id(), "type": "function", "function": {"name": made.name, "arguments": made.arguments}}


def _call_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


@dataclass
class _ChatChoice:
    """One answer of a stream, and what its tokens brought since its last chunk."""

    reader: AnswerReader
    interval: ChunkInterval
    held: PartsDelta = field(default_factory=PartsDelta)
    token_ids: list[int] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)


class ChatStream:
    """The chunks of a stream in order: each choice's role, with the first token; deltas; each choice's end; the usage.

    Tokens that show nothing yet (half a character, the beginning of a tag) wait for the next chunk, with their ids and
    log-probabilities; so do those between two chunks, if there is an `interval`.
    """

    def __init__(self, call: ChatCall, prompt_token_ids: Sequence[int] = (), interval: int = 1) -> None:
        self._call = call
        self._prompt_token_ids = prompt_token_ids
        self._choices = [_ChatChoice(AnswerReader(call.parts), ChunkInterval(interval)) for _ in range(call.sampling.n)]
        self._begun = False
        self._tokens = 0

    @property
    def readers(self) -> list[AnswerReader]:
        """The readers of the answers, by index."""
        return [choice.reader for choice in self._choices]

    def take(self, piece: AnswerDelta, usage: Usage) -> list[ChatChunk]:
        """Return the chunks that a token gives; `usage` counts the prompt. Raises BrokenAnswer.

        A chunk counts the tokens taken up to it: `usage` may be ahead, where a step brought several, and the count of
        each chunk has to be above that of the one before, or 0.
        """
        chunks = [] if self._begun else list(self._opening(replace(usage, completion_tokens=0)))
        self._begun = True
        self._tokens += 1
        usage = replace(usage, completion_tokens=self._tokens)
        choice, ended = self._choices[piece.index], piece.finish_reason is not None
        choice.token_ids.append(piece.token_id)
        if piece.scores is not None:
            choice.scores.append(piece.scores)
        choice.held += choice.reader.add(piece.text, ended)
        if not choice.interval.is_due(ended):
            return chunks
        shown = self._shown(choice)
        if ended and self._call.reply.boxes:
            shown["boxes"] = _boxes(choice.reader.parts.content)
        if not shown and not ended:
            return chunks
        chunk = self._chunk(piece.index, shown, usage)
        if ended:
            reason = _finish_reason(self._call, piece.finish_reason, bool(choice.reader.parts.calls))
            chunk["choices"][0].update({"finish_reason": reason, "stop_reason": piece.stop_reason})
        return [*chunks, chunk]

    def finish(self, output: RequestOutput) -> list[ChatChunk]:
        """Return the chunk behind all answers: the usage and the explanation, as far as they are wanted."""
        reply = self._call.reply
        if not (reply.include_usage or reply.explain):
            return []
        chunk = self._of(None, output.usage if reply.include_usage else None)
        if reply.explain:
            chunk["explanation"] = explanation(output)
        return [chunk]

    def _opening(self, usage: Usage) -> Iterator[ChatChunk]:
        for index in range(len(self._choices)):
            chunk = self._chunk(index, {"role": "assistant", "content": ""}, usage)
            if self._call.reply.token_ids:
                chunk["prompt_token_ids"] = list(self._prompt_token_ids)
            yield chunk
        if self._call.echo:
            for index in range(len(self._choices)):
                yield self._chunk(index, {"content": self._call.echo}, usage)

    def _shown(self, choice: _ChatChoice) -> ChatDelta:
        """Return what is held of an answer, as far as it is shown."""
        held, choice.held = choice.held, PartsDelta()
        shown: ChatDelta = {}
        if held.reasoning and self._call.include_reasoning:
            shown = {"reasoning": held.reasoning, "reasoning_content": held.reasoning}
        if held.content:
            shown["content"] = held.content
        if held.calls:
            shown["tool_calls"] = _call_deltas(held.calls)
        return shown

    def _chunk(self, index: int, delta: ChatDelta, usage: Usage) -> ChatChunk:
        choice: ChatChunkChoice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if "role" not in delta:
            self._add_tokens(choice, self._choices[index])
        return self._of(choice, usage if self._call.reply.continuous_usage else None)

    def _add_tokens(self, body: ChatChunkChoice, choice: _ChatChoice) -> None:
        """Add ids and log-probabilities of the tokens since the last chunk, as far as they are wanted."""
        reply, top = self._call.reply, self._call.sampling.scored_tokens
        if choice.scores and top is not None:
            body["logprobs"] = {"content": chat_scores(choice.scores, choice.token_ids, top, reply.tokens_as_ids)}
        if reply.token_ids:
            body["token_ids"] = list(choice.token_ids)
        choice.token_ids.clear()
        choice.scores.clear()

    def _of(self, choice: ChatChunkChoice | None, usage: Usage | None) -> ChatChunk:
        reply = self._call.reply
        chunk: ChatChunk = {
            "id": reply.id,
            "object": "chat.completion.chunk",
            "created": reply.created,
            "model": reply.model,
            "choices": [] if choice is None else [choice],
        }
        if usage is not None:
            chunk["usage"] = usage_body(usage, sum(reader.reasoning_tokens for reader in self.readers))
        return chunk


def _call_deltas(calls: Sequence[CallDelta]) -> list[ToolCallDelta]:
    """Return one entry for each call that has grown; a call's first entry has its id and name."""
    grown: dict[int, ToolCallDelta] = {}
    for call in calls:
        entry = grown.setdefault(call.index, {"index": call.index, "function": {"arguments": ""}})
        if call.name is not None:
            entry.update({"id": _call_id(), "type": "function", "function": {"name": call.name, "arguments": ""}})
        entry["function"]["arguments"] += call.arguments
    return list(grown.values())
