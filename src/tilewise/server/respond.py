"""Whole answers to chat calls, as bodies. Nulls are printed: clients of every age find the key they look for."""

from __future__ import annotations

import uuid
from typing import Any

from tilewise.errors import BrokenAnswer
from tilewise.outputs.group import Piece
from tilewise.outputs.parts import Call, Parts, PartsRule, PartsSplitter, split_parts
from tilewise.server.calls import ChatCall
from tilewise.server.scores import chat_logprobs, prompt_scores
from tilewise.types import CompletionOutput, RequestOutput, Usage


def chat_body(call: ChatCall, output: RequestOutput, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Raises BrokenAnswer for a structured answer that could not be followed to its end."""
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
    """The tokens of all answers to a call that belong to their reasoning, shown or not."""

    def __init__(self, call: ChatCall) -> None:
        self._splitters = [PartsSplitter(parts_rule(call)) for _ in range(call.sampling.n)]
        self.tokens = 0

    def take(self, piece: Piece) -> None:
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
    """A function that the request named itself ends with stop, as OpenAI has it. Raises BrokenAnswer."""
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


def _message(call: ChatCall, parts: Parts) -> dict[str, Any]:
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
