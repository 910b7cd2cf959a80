"""Response objects and the items in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """Prompt and answer as the model sees them, in vLLM's form."""
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
