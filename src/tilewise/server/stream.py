"""ChatStream: pieces of growing answers to chunks of a streamed chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.outputs.group import Piece
from tilewise.outputs.parts import PartsDelta, PartsSplitter
from tilewise.server.calls import ChatCall
from tilewise.server.respond import finish_reason, new_call_id, parts_rule, usage_body
from tilewise.server.scores import Scores, chat_logprobs
from tilewise.types import Usage


@dataclass
class _Choice:
    """One answer, and what its tokens brought since the last chunk."""

    splitter: PartsSplitter
    called: bool = False
    token_ids: list[int] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)


class ChatStream:
    """Chunks in order: each choice's role, with the first token; deltas; each choice's end; the usage.

    Tokens that show nothing yet (half a character, the beginning of a tag) wait for the next chunk, with their ids and
    log-probabilities.
    """

    def __init__(self, call: ChatCall, prompt_token_ids: Sequence[int] = ()) -> None:
        self._call = call
        self._prompt_token_ids = prompt_token_ids
        self._choices = [_Choice(PartsSplitter(parts_rule(call))) for _ in range(call.sampling.n)]
        self._begun = False
        self._tokens = 0
        self._reasoning_tokens = 0

    def take(self, piece: Piece, usage: Usage) -> list[dict[str, Any]]:
        """The chunks that a token gives; `usage` counts the prompt. Raises BrokenAnswer, as `chat_body` does.

        A chunk counts the tokens taken up to it: `usage` may be ahead, where a step brought several, and the count of
        each chunk has to be above that of the one before, or 0.
        """
        usage = replace(usage, completion_tokens=self._tokens)
        chunks = [] if self._begun else list(self._opening(usage))
        self._begun = True
        self._tokens += 1
        usage = replace(usage, completion_tokens=self._tokens)
        choice = self._choices[piece.index]
        choice.token_ids.append(piece.token_id)
        if piece.scores is not None:
            choice.scores.append(piece.scores)
        delta = choice.splitter.add(piece.text)
        self._reasoning_tokens += choice.splitter.in_reasoning
        if piece.finish_reason is None:
            shown = self._delta(choice, delta)
            return [*chunks, self._chunk(piece.index, shown, usage)] if shown else chunks
        last = self._delta(choice, delta, choice.splitter.finish())
        reason = finish_reason(self._call, piece.finish_reason, choice.called)
        return [*chunks, self._chunk(piece.index, last, usage, finish=reason, stop_reason=piece.stop_reason)]

    def finish(self, usage: Usage) -> list[dict[str, Any]]:
        """What comes behind all answers: the usage, if it is wanted."""
        if not self._call.reply.include_usage:
            return []
        return [{**self._head(), "choices": [], "usage": usage_body(usage, self._reasoning_tokens)}]

    def _opening(self, usage: Usage) -> Iterator[dict[str, Any]]:
        for index in range(len(self._choices)):
            chunk = self._chunk(index, {"role": "assistant", "content": ""}, usage)
            if self._call.reply.token_ids:
                chunk["prompt_token_ids"] = list(self._prompt_token_ids)
            yield chunk
        if self._call.echo:
            for index in range(len(self._choices)):
                yield self._chunk(index, {"content": self._call.echo}, usage)

    def _delta(self, choice: _Choice, *deltas: PartsDelta) -> dict[str, Any]:
        reasoning = "".join(delta.reasoning for delta in deltas)
        content = "".join(delta.content for delta in deltas)
        calls = _call_deltas(deltas)
        choice.called = choice.called or bool(calls)
        shown: dict[str, Any] = {}
        if reasoning and self._call.include_reasoning:
            shown |= {"reasoning": reasoning, "reasoning_content": reasoning}
        if content:
            shown["content"] = content
        if calls:
            shown["tool_calls"] = calls
        return shown

    def _chunk(self, index: int, delta: dict[str, Any], usage: Usage, **end: Any) -> dict[str, Any]:
        reply = self._call.reply
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if end:
            choice |= {"finish_reason": end["finish"], "stop_reason": end["stop_reason"]}
        if "role" not in delta:
            choice |= self._of_tokens(self._choices[index])
        chunk = {**self._head(), "choices": [choice]}
        if reply.continuous_usage:
            chunk["usage"] = usage_body(usage, self._reasoning_tokens)
        return chunk

    def _of_tokens(self, choice: _Choice) -> dict[str, Any]:
        reply, top = self._call.reply, self._call.sampling.scored_tokens
        found: dict[str, Any] = {}
        if choice.scores and top is not None:
            found["logprobs"] = chat_logprobs(choice.scores, choice.token_ids, top, reply.tokens_as_ids)
        if reply.token_ids:
            found["token_ids"] = list(choice.token_ids)
        choice.token_ids.clear()
        choice.scores.clear()
        return found

    def _head(self) -> dict[str, Any]:
        reply = self._call.reply
        return {"id": reply.id, "object": "chat.completion.chunk", "created": reply.created, "model": reply.model}


def _call_deltas(deltas: Sequence[PartsDelta]) -> list[dict[str, Any]]:
    """One entry for each call that has grown; its first has id and name."""
    grown: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for call in delta.calls:
            entry = grown.setdefault(call.index, {"index": call.index, "function": {"arguments": ""}})
            if call.name is not None:
                function = {"name": call.name, "arguments": ""}
                entry |= {"id": new_call_id(), "type": "function", "function": function}
            entry["function"]["arguments"] += call.arguments
    return list(grown.values())
