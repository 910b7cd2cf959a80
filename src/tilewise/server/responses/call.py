"""A Responses body is turned into the chat body that asks for the same, and read as that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from typing_extensions import TypedDict

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.bodies import ChatBody
from tilewise.server.body import UnknownFields
from tilewise.server.chat.call import ChatCall, translated_call
from tilewise.server.chat.tools import check_tool_types
from tilewise.server.request_id import RequestId
from tilewise.server.responses.body import ResponsesBody, TextFormat
from tilewise.server.served import ServedModel

_NOT_COPIED = {"request_id", "structured_outputs", "tool_choice", "tools", "top_logprobs"}
_SAME = tuple(name for name in ResponsesBody.model_fields if name in ChatBody.model_fields and name not in _NOT_COPIED)
"""Fields that mean in a chat body what they mean here."""
_SCORES = "message.output_text.logprobs"
_SPARE = ("id", "status")
NOTHING_KEPT = "responses are kept by servers that are started with VLLM_ENABLE_RESPONSES_API_STORE=1 alone"
Item = Mapping[str, Any]
Recall = Callable[[str], Sequence[Item]]


class Repeated(TypedDict):
    """Fields of a request that its response repeats."""

    instructions: str | None
    max_output_tokens: int | None
    metadata: Any
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    user: Any


@dataclass(frozen=True)
class ResponseCall:
    id: str
    chat: ChatCall
    echoed: Repeated
    """Fields of the body that the answer repeats."""
    items: tuple[Item, ...] = ()
    """The conversation so far, without instructions, which hold for one response alone."""
    store: bool = False
    background: bool = False
    previous: str | None = None
    raw_messages: bool = False
    """True if the response repeats prompt and answer as the model sees them."""

    def without_messages(self) -> ResponseCall:
        """Return what the answer needs of the call, once its request is made."""
        return replace(self, chat=self.chat.without_messages(), items=())


def response_call(
    body: dict[str, Any],
    served: ServedModel,
    ignored: Ignored,
    name: RequestId | None = None,
    recall: Recall | None = None,
) -> ResponseCall:
    """Read a Responses body; `recall` gives the items of a response that is kept, None = none is.

    Names without effect go into `ignored`. Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    check_tool_types(body.get("tools"))
    fields = ResponsesBody.read(body, UnknownFields(ignored, served.config.strict_fields))
    name = name or RequestId.of()
    number = name.or_of_body(fields.request_id)
    items = (*_earlier(fields, recall), *_items(fields))
    messages, places = _messages(fields.instructions, items)
    call = translated_call(_chat_body(fields, messages), served, ignored, name, places)
    _name_what_has_no_effect(fields, ignored)
    return ResponseCall(
        f"resp_{number}",
        call,
        _repeated(body, fields),
        items=items,
        store=_is_kept(fields, recall, ignored),
        background=fields.background,
        previous=fields.previous_response_id,
        raw_messages=fields.enable_response_messages,
    )


def _chat_body(fields: ResponsesBody, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the chat body that asks for the same."""
    chat = {name: value for name in _SAME if (value := getattr(fields, name)) is not None}
    chat |= {"messages": messages, "max_tokens": fields.max_output_tokens, "tool_choice": _choice(fields)}
    if fields.structured_outputs:
        chat["structured_outputs"] = fields.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    if fields.top_logprobs is not None or _SCORES in (fields.include or ()):
        chat |= {"logprobs": True, "top_logprobs": fields.top_logprobs or 0}
    if fields.text and fields.text.format:
        chat["response_format"] = _response_format(fields.text.format)
    if fields.reasoning:
        chat["reasoning_effort"] = fields.reasoning.effort
    if fields.tools:
        chat["tools"] = [tool.model_dump(exclude_none=True) for tool in fields.tools]
    return chat


def _earlier(fields: ResponsesBody, recall: Recall | None) -> Sequence[Item]:
    if fields.previous_response_id is None:
        return ()
    if recall is None:
        raise InvalidField("previous_response_id", f"previous_response_id: {NOTHING_KEPT}")
    return recall(fields.previous_response_id)


def _is_kept(fields: ResponsesBody, recall: Recall | None, ignored: Ignored) -> bool:
    """True if the response is to be kept. Raises InvalidField for a background that cannot be had.

    Where responses are kept at all, this one is unless the body says no, as OpenAI and vLLM have it.
    """
    if fields.background and fields.store is False:
        raise InvalidField("background", "background can only be used when `store` is true: leave out one of them.")
    if fields.background and fields.stream:
        raise InvalidField(
            "stream", "background with stream is not supported: ask GET /v1/responses/ID for the answer."
        )
    if recall is not None:
        return fields.store is not False
    if fields.background:
        raise InvalidField("background", f"background: {NOTHING_KEPT}")
    if fields.store:
        ignored.add("store", NOTHING_KEPT)
    return False


def _name_what_has_no_effect(fields: ResponsesBody, ignored: Ignored) -> None:
    for name in fields.include or ():
        if name != _SCORES:
            ignored.add(f"include.{name}", "answers have nothing of this kind")
    if fields.reasoning and fields.reasoning.summary:
        ignored.add("reasoning.summary", "reasoning is given as it is, not summed up")


def _response_format(form: TextFormat) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    schema = {"name": form.name or "answer", "schema": form.schema_, "strict": form.strict}
    return {"type": form.type, "json_schema": schema}


def _choice(fields: ResponsesBody) -> Any:
    choice = fields.tool_choice
    return choice.model_dump(exclude_none=True) if isinstance(choice, BaseModel) else choice


def _repeated(body: dict[str, Any], fields: ResponsesBody) -> Repeated:
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


def _items(fields: ResponsesBody) -> Sequence[Item]:
    if isinstance(fields.input, str):
        return ({"role": "user", "content": fields.input},)
    if not fields.input:
        raise InvalidField("input", "input is empty: it needs a text or at least one item.")
    return fields.input


def _messages(instructions: str | None, items: Sequence[Item]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the messages, and for each of them its place in the body."""
    messages: list[dict[str, Any]] = []
    places: list[str] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
        places.append("instructions")
    for number, item in enumerate(items):
        _add_item(messages, item, f"input[{number}]")
        places += [f"input[{number}]"] * (len(messages) - len(places))
    named = {f"messages[{number}]": place for number, place in enumerate(places)}
    return messages, {**named, "response_format": "text.format"}


def _add_item(messages: list[dict[str, Any]], item: Item, where: str) -> None:
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
    """True if a call can be added to the message. One with a wrong role or calls is left, to be refused for that."""
    return message.get("role") == "assistant" and isinstance(message.get("tool_calls"), list | None)
