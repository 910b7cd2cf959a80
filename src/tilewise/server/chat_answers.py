"""Answers to chat calls, whole and as chunks. Nulls are written out: clients of every age find the keys they know."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.errors import BrokenAnswer
from tilewise.outputs.group import AnswerDelta
from tilewise.outputs.parts import AnswerParts, Call, PartsDelta, PartsRule, PartsSplitter, split_parts
from tilewise.server.calls import ChatCall
from tilewise.server.scores import Scores, chat_logprobs, prompt_scores
from tilewise.types import CompletionOutput, RequestOutput, Usage


def chat_body(call: ChatCall, output: RequestOutput, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return the body of a whole answer. Raises BrokenAnswer for a structured answer that could not keep its form."""
    reply = call.reply
    return {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [_choice(call, answer) for answer in output.outputs],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage_body(output.usage, reasoning_tokens),
        "prompt_logprobs": prompt_scores(output.prompt_logprobs),
        "prompt_token_ids": output.prompt_token_ids if reply.token_ids else None,
        "kv_transfer_params": None,
    }


def usage_body(usage: Usage, reasoning_tokens: int = 0) -> dict[str, Any]:
    details = {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}} if reasoning_tokens else {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "tiles": usage.tiles,
        },
        **details,
    }


class ReasoningCount:
    """A count of the reasoning tokens in all answers to a call, shown or not."""

    def __init__(self, call: ChatCall) -> None:
        self._splitters = [PartsSplitter(parts_rule(call)) for _ in range(call.sampling.n)]
        self.tokens = 0

    def take(self, piece: AnswerDelta) -> None:
        splitter = self._splitters[piece.index]
        splitter.add(piece.text)
        self.tokens += splitter.in_reasoning


def parts_rule(call: ChatCall) -> PartsRule:
    tools = call.tools
    return PartsRule(
        call.reasoning,
        call.opened,
        calls=tools.choice,
        name=tools.name or "",
        parallel=tools.parallel,
        form=call.tool_form,
    )


def finish_reason(call: ChatCall, reason: str | None, has_calls: bool) -> str | None:
    """Return tool_calls for an answer with calls, or else the engine's reason. Raises BrokenAnswer.

    A call of a function that the request itself named ends with stop, as in OpenAI's API.
    """
    if reason == "stop" and has_calls and call.tools.choice in ("auto", "required"):
        return "tool_calls"
    return checked_reason(reason)


def checked_reason(reason: str | None) -> str | None:
    if reason == "error":
        raise BrokenAnswer(
            "The answer could not be followed to its end by the form that was asked for: simplify the schema, pattern "
            "or grammar, and leave it the tokens that it needs (allowed_token_ids, bad_words, logit_bias)."
        )
    return reason


def new_call_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


def _choice(call: ChatCall, answer: CompletionOutput) -> dict[str, Any]:
    reply, sampling = call.reply, call.sampling
    parts = split_parts(answer.text, parts_rule(call))
    logprobs = None
    if answer.logprobs is not None and sampling.scored_tokens is not None:
        logprobs = chat_logprobs(answer.logprobs, answer.token_ids, sampling.scored_tokens, reply.tokens_as_ids)
    return {
        "index": answer.index,
        "message": _message(call, parts),
        "logprobs": logprobs,
        "finish_reason": finish_reason(call, answer.finish_reason, bool(parts.calls)),
        "stop_reason": answer.stop_reason,
        "token_ids": answer.token_ids if reply.token_ids else None,
    }


def _message(call: ChatCall, parts: AnswerParts) -> dict[str, Any]:
    reasoning = parts.reasoning if call.include_reasoning and parts.reasoning else None
    content = call.echo + parts.content
    return {
        "role": "assistant",
        "content": None if not content and (parts.calls or parts.reasoning) else content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [_tool_call(made) for made in parts.calls],
        "reasoning": reasoning,
        "reasoning_content": reasoning,
    }


def _tool_call(made: Call) -> dict[str, Any]:
    return {"id": new_call_id(), "type": "function", "function": {"name": made.name, "arguments": made.arguments}}


@dataclass
class _ChatChoice:
    """One answer of a stream, and what its tokens brought since its last chunk."""

    splitter: PartsSplitter
    called: bool = False
    token_ids: list[int] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)


class ChatStream:
    """The chunks of a stream in order: each choice's role, with the first token; deltas; each choice's end; the usage.

    Tokens that show nothing yet (half a character, the beginning of a tag) wait for the next chunk, with their ids and
    log-probabilities.
    """

    def __init__(self, call: ChatCall, prompt_token_ids: Sequence[int] = ()) -> None:
        self._call = call
        self._prompt_token_ids = prompt_token_ids
        self._choices = [_ChatChoice(PartsSplitter(parts_rule(call))) for _ in range(call.sampling.n)]
        self._begun = False
        self._tokens = 0
        self._reasoning_tokens = 0

    def take(self, piece: AnswerDelta, usage: Usage) -> list[dict[str, Any]]:
        """Return the chunks that a token gives; `usage` counts the prompt. Raises BrokenAnswer, as `chat_body` does.

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
        """Return the chunk behind all answers: the usage, if it is wanted."""
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

    def _delta(self, choice: _ChatChoice, *deltas: PartsDelta) -> dict[str, Any]:
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

    def _of_tokens(self, choice: _ChatChoice) -> dict[str, Any]:
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
    """Return one entry for each call that has grown; a call's first entry has its id and name."""
    grown: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for call in delta.calls:
            entry = grown.setdefault(call.index, {"index": call.index, "function": {"arguments": ""}})
            if call.name is not None:
                function = {"name": call.name, "arguments": ""}
                entry |= {"id": new_call_id(), "type": "function", "function": function}
            entry["function"]["arguments"] += call.arguments
    return list(grown.values())
