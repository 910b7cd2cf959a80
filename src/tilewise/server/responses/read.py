"""A Responses body to the chat body that asks the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.calls import ChatCall
from tilewise.server.convert import chat_call, request_id
from tilewise.server.fields import RESPONSES, UnknownFields
from tilewise.server.protocol.responses import ResponsesBody, TextFormat
from tilewise.server.served import ServedModel
from tilewise.server.toolcalls import check_tool_types

_SAME = (
    *("model", "temperature", "top_p", "top_k", "min_p", "stream", "parallel_tool_calls", "priority", "cache_salt"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "min_tokens", "seed", "stop"),
    *("stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "include_reasoning"),
    *("mm_processor_kwargs", "media_io_kwargs", "chat_template_kwargs"),
)
_SPARE = ("id", "status")


@dataclass(frozen=True)
class ResponseCall:
    id: str
    chat: ChatCall
    said: Mapping[str, Any]
    """Fields of the body that the answer repeats."""


def response_call(
    body: dict[str, Any], served: ServedModel, ignored: Ignored, header_id: str | None = None
) -> ResponseCall:
    """Names without effect go into `ignored`. Raises InvalidRequest, UnknownModel or pydantic's ValidationError."""
    check_tool_types(body.get("tools"))
    fields = ResponsesBody.read(body, RESPONSES, UnknownFields(ignored, served.strict_fields))
    number = request_id(header_id, fields.request_id)
    same = {name: value for name in _SAME if (value := getattr(fields, name)) is not None}
    chat: dict[str, Any] = {**same, "messages": _messages(fields), "max_tokens": fields.max_output_tokens}
    if fields.structured_outputs:
        chat["structured_outputs"] = fields.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    if fields.top_logprobs is not None:
        chat |= {"logprobs": True, "top_logprobs": fields.top_logprobs}
    if fields.text and fields.text.format:
        chat["response_format"] = _response_format(fields.text.format)
    if fields.reasoning:
        chat["reasoning_effort"] = fields.reasoning.effort
    if fields.tools:
        chat["tools"] = [tool.model_dump(exclude_none=True) for tool in fields.tools]
    chat["tool_choice"] = _choice(fields)
    return ResponseCall(f"resp_{number}", chat_call(chat, served, ignored, number), _repeated(body, fields))


def _response_format(form: TextFormat) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    schema = {"name": form.name or "answer", "schema": form.schema_, "strict": form.strict}
    return {"type": form.type, "json_schema": schema}


def _choice(fields: ResponsesBody) -> Any:
    choice = fields.tool_choice
    return choice.model_dump(exclude_none=True) if isinstance(choice, BaseModel) else choice


def _repeated(body: dict[str, Any], fields: ResponsesBody) -> dict[str, Any]:
    tools = [tool.model_dump() for tool in fields.tools or ()]
    effort = fields.reasoning.effort if fields.reasoning else None
    form = fields.text.format if fields.text else None
    return {
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": fields.parallel_tool_calls,
        "reasoning": {"effort": effort, "summary": None},
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": _choice(fields) or "auto",
        "tools": tools,
        "user": body.get("user"),
    }


def _messages(fields: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if fields.instructions is not None:
        messages.append({"role": "system", "content": fields.instructions})
    if isinstance(fields.input, str):
        return [*messages, {"role": "user", "content": fields.input}]
    if not fields.input:
        raise InvalidField("input", "input is empty: it needs a text or at least one item.")
    for number, item in enumerate(fields.input):
        _add_item(messages, item, f"input[{number}]")
    return messages


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = "message" if item.get("type") is None else item["type"]
    if kind in ("function_call", "function_call_output") and not isinstance(item.get("call_id"), str | None):
        raise InvalidField(where, f"{where}: call_id must be a text, got {item['call_id']!r:.80}.")
    if kind == "message":
        messages.append({key: value for key, value in item.items() if key not in ("type", *_SPARE)})
    elif kind == "function_call":
        if not messages or not _takes_calls(messages[-1]):
            messages.append({"role": "assistant", "content": None})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        messages[-1] = {**messages[-1], "tool_calls": [*(messages[-1].get("tool_calls") or ()), call]}
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":  # of an earlier answer: no part of the prompt
        raise InvalidField(
            where,
            f"{where}: type must be message, function_call, function_call_output or reasoning, got {kind!r:.80}.",
        )


def _takes_calls(message: dict[str, Any]) -> bool:
    """One whose role or calls are wrong stays as it is, to be refused for that."""
    return message.get("role") == "assistant" and isinstance(message.get("tool_calls"), list | None)
