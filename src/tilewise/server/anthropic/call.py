"""A Messages body is turned into the chat body that asks for the same, and read as that.

Tool results, which are blocks of the user's messages there, become messages of their own; thinking of earlier turns is
no part of a prompt, as in the training. Source: Anthropic's reference of the Messages API.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.anthropic.body import ConversationOfMessages, CountTokensBody, MessagesBody, OutputFormat
from tilewise.server.body import UnknownFields
from tilewise.server.chat.call import ChatCall, translated_call
from tilewise.server.request_id import RequestId
from tilewise.server.served import ServedModel

Block = Mapping[str, Any]
_SAME = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stream")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_REFUSED = {
    "document": "only documents of text are read: send pages as blocks of type image",
    "search_result": "send what was found as blocks of type text",
    "container_upload": "nothing is run here",
}
"""Types of blocks that are not taken, each with what to do instead."""
_BLOCKS = ("text", "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result")
_SPARE = {
    "cache_control": "prefixes of prompts are cached in any case",
    "citations": "answers cite nothing",
    "is_error": "what went wrong is told by the content of a result",
    "caller": "tools are called by the model alone",
    "title": "a document is its text",
    "context": "a document is its text",
}
"""Keys of blocks that have no effect, each with the reason."""


def messages_call(
    body: dict[str, Any], served: ServedModel, ignored: Ignored, name: RequestId | None = None
) -> ChatCall:
    """Read a body of /v1/messages; names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    _check_tool_types(body)
    fields = MessagesBody.read(body, UnknownFields(ignored, served.config.strict_fields))
    chat, places = _chat_body(fields, ignored, served)
    chat |= {name: getattr(fields, name) for name in _SAME} | {"stop": fields.stop_sequences}
    call = translated_call(chat, served, ignored, name, places)
    # Clients ask for more tokens than a small context has left, whatever the prompt: the answer ends with the context.
    return replace(call, reply=replace(call.reply, id=call.reply.id.replace("chatcmpl-", "msg_", 1)), max_tokens=None)


def count_call(body: dict[str, Any], served: ServedModel, ignored: Ignored) -> ChatCall:
    """Read a body of /v1/messages/count_tokens, as `messages_call` does."""
    _check_tool_types(body)
    fields = CountTokensBody.read(body, UnknownFields(ignored, served.config.strict_fields))
    chat, places = _chat_body(fields, ignored, served)
    return translated_call(chat, replace(served, tools=True), ignored, None, places)


def _chat_body(
    fields: ConversationOfMessages, ignored: Ignored, served: ServedModel
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the chat body that asks for the same, and where its parts stand in this body."""
    conversation = _Conversation(UnknownFields(ignored, served.config.strict_fields))
    if fields.system is not None:
        conversation.add_system(fields.system)
    for number, message in enumerate(fields.messages):
        conversation.add_turn(message, f"messages[{number}]")
    chat: dict[str, Any] = {"messages": conversation.messages, "model": fields.model}
    if fields.messages and fields.messages[-1].get("role") == "assistant":
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    chat |= {name: getattr(fields, name) for name in ("mm_processor_kwargs", "chat_template_kwargs")}
    if fields.thinking is not None:
        chat["enable_thinking"] = fields.thinking.type != "disabled"
    if fields.tools:
        chat["tools"] = [_function(tool.model_dump(exclude_none=True)) for tool in fields.tools]
    if fields.tool_choice is not None:
        chat |= _choice(fields)
    if form := _format(fields):
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema_}}
    _name_what_has_no_effect(fields, ignored)
    names = {f"tools[{n}].function.parameters": f"tools[{n}].input_schema" for n in range(len(fields.tools or ()))}
    return chat, {**conversation.places, **names, "stop": "stop_sequences", "response_format": "output_config.format"}


def _check_tool_types(body: dict[str, Any]) -> None:
    """Raise InvalidField for a tool that would be run by the server of Anthropic."""
    tools = body.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type", "custom") if isinstance(tool, dict) else "custom"
        if kind not in ("custom", None):
            where = f"tools[{number}].type"
            raise InvalidField(where, f"{where} must be custom, as functions are called by you, got {kind!r:.80}.")


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    definition: dict[str, Any] = {key: tool[key] for key in ("name", "description", "strict") if key in tool}
    if "input_schema" in tool:
        definition["parameters"] = tool["input_schema"]
    return {"type": "function", "function": definition}


def _choice(fields: ConversationOfMessages) -> dict[str, Any]:
    choice = fields.tool_choice
    assert choice is not None
    asked: Any = _CHOICES.get(choice.type)
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidField("tool_choice.name", "tool_choice: type tool needs the name of the tool.")
        asked = {"type": "function", "function": {"name": choice.name}}
    return {"tool_choice": asked, "parallel_tool_calls": not choice.disable_parallel_tool_use}


def _format(fields: ConversationOfMessages) -> OutputFormat | None:
    return (fields.output_config.format if fields.output_config else None) or fields.output_format


def _name_what_has_no_effect(fields: ConversationOfMessages, ignored: Ignored) -> None:
    if fields.thinking is not None and fields.thinking.budget_tokens is not None:
        ignored.add("thinking.budget_tokens", "max_tokens bounds thinking and text together")
    if fields.thinking is not None and fields.thinking.display is not None:
        ignored.add("thinking.display", "thinking is given as it is")
    if fields.output_config is not None and fields.output_config.effort is not None:
        ignored.add("output_config.effort", "thinking says whether the model thinks")


@dataclass
class _Conversation:
    """The messages of a chat body, and the places in this body of what they were made of."""

    unknown: UnknownFields
    messages: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def add_system(self, system: str | list[dict[str, Any]]) -> None:
        if isinstance(system, list):
            parts = [(self._part(block, f"system[{n}]", ("text",)), f"system[{n}]") for n, block in enumerate(system)]
            self._add("system", parts, "system")
        else:
            self._add("system", system, "system")

    def add_turn(self, message: Any, where: str) -> None:
        """Add a message of the user or the assistant. Raises InvalidField."""
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            hint = " Its text belongs into the field system." if role in ("system", "developer") else ""
            raise InvalidField(f"{where}.role", f"{where}: role must be user or assistant, got {role!r:.80}.{hint}")
        self.unknown.take_all("messages", message, ("role", "content"), where)
        if isinstance(content, str):
            self._add(role, content, where)
        elif isinstance(content, list):
            self._add_blocks(role, list(_numbered(content, where)), where)
        else:
            what = type(content).__name__
            raise InvalidField(f"{where}.content", f"{where}: content must be a text or a list of blocks, got {what}.")

    def _add_blocks(self, role: str, blocks: Sequence[tuple[Block, str]], where: str) -> None:
        """Add a message of blocks, behind the results of tools among them."""
        calls, results = _of_type("tool_use", blocks), _of_type("tool_result", blocks)
        for (_, place), owner in [*((call, "assistant") for call in calls), *((result, "user") for result in results)]:
            if role != owner:
                kind = "tool_use" if owner == "assistant" else "tool_result"
                raise InvalidField(place, f"{place}: blocks of type {kind} stand in messages of role {owner}.")
        for block, place in results:
            self._add_result(block, place)
        kinds = _BLOCKS if role == "assistant" else ("text", "image", "document")
        rest = [one for one in blocks if one[0].get("type") not in ("tool_use", "tool_result")]
        parts = [(self._part(block, place, kinds), place) for block, place in rest]
        shown = [(part, place) for part, place in parts if part is not None]
        if shown or calls or not results:
            self._add(role, shown, where, [self._call(block, place) for block, place in calls])

    def _add_result(self, block: Block, place: str) -> None:
        self._take_keys(block, place, ("type", "tool_use_id", "content"))
        name, content = block.get("tool_use_id"), block.get("content")
        if not isinstance(name, str):
            raise InvalidField(place, f"{place}: tool_use_id must be a text, got {name!r:.80}.")
        if isinstance(content, list):
            inner = _numbered(content, place)
            parts = [(self._part(part, where, ("text", "image", "document")), where) for part, where in inner]
            self._add("tool", parts, place)
        elif content is None or isinstance(content, str):
            self._add("tool", content or "", place)
        else:
            raise InvalidField(place, f"{place}: content must be a text or a list of blocks.")
        self.messages[-1]["tool_call_id"] = name

    def _add(self, role: str, content: Any, where: str, calls: Sequence[dict[str, Any]] = ()) -> None:
        message = f"messages[{len(self.messages)}]"
        self.places[message] = where
        if isinstance(content, list):
            self.places |= {f"{message}.content[{n}]": place for n, (_, place) in enumerate(content)}
            content = [part for part, _ in content]
        self.messages.append({"role": role, "content": content, **({"tool_calls": list(calls)} if calls else {})})

    def _call(self, block: Block, place: str) -> dict[str, Any]:
        self._take_keys(block, place, ("type", "id", "name", "input"))
        arguments = block.get("input", {})
        if not isinstance(arguments, Mapping):
            raise InvalidField(place, f"{place}: input must be an object, got {type(arguments).__name__}.")
        function = {"name": _text(block, "name", place), "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": _text(block, "id", place), "type": "function", "function": function}

    def _part(self, block: Block, place: str, kinds: Sequence[str]) -> dict[str, Any] | None:
        """Return the part of a chat message that a block becomes; None for thinking. Raises InvalidField."""
        kind = block.get("type")
        if kind in ("thinking", "redacted_thinking") and kind in kinds:
            return None
        source = block.get("source")
        if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
            self._take_keys(block, place, ("type", "source"))
            return {"type": "text", "text": _text(source, "data", place)}
        if isinstance(kind, str) and kind in _REFUSED:
            raise InvalidField(place, f"{place}: a block of type {kind} is not taken: {_REFUSED[kind]}.")
        if kind not in kinds:
            raise InvalidField(place, f"{place}: type must be one of {', '.join(kinds)}, got {kind!r:.80}.")
        self._take_keys(block, place, ("type", "text" if kind == "text" else "source"))
        if kind == "text":
            return {"type": "text", "text": _text(block, "text", place)}
        return {"type": "image_url", "image_url": {"url": _url(source, f"{place}.source")}}

    def _take_keys(self, block: Block, place: str, known: Sequence[str]) -> None:
        for key in block:
            if key in _SPARE:
                owner = "system" if place.startswith("system") else "messages.content"
                self.unknown.ignored.add(f"{owner}.{key}", _SPARE[key])
        self.unknown.take_all("messages.content", [key for key in block if key not in _SPARE], known, place)


def _numbered(blocks: Sequence[Any], where: str) -> Iterator[tuple[Block, str]]:
    for number, block in enumerate(blocks):
        place = f"{where}.content[{number}]"
        if not isinstance(block, Mapping):
            raise InvalidField(place, f"{place} must be a block, an object with a type, got {type(block).__name__}.")
        yield block, place


def _of_type(kind: str, blocks: Sequence[tuple[Block, str]]) -> list[tuple[Block, str]]:
    return [one for one in blocks if one[0].get("type") == kind]


def _text(block: Block, key: str, place: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise InvalidField(place, f"{place}: {key} must be a text, got {type(value).__name__}.")
    return value


def _url(source: Any, place: str) -> str:
    """Return the URL of a picture: its own, or one that holds its data. Raises InvalidField."""
    kind = source.get("type") if isinstance(source, Mapping) else None
    if kind == "url":
        return _text(source, "url", place)
    if kind == "base64":
        return f"data:{_text(source, 'media_type', place)};base64,{_text(source, 'data', place)}"
    hint = " Files are not kept here: send their data." if kind == "file" else ""
    raise InvalidField(place, f"{place}: type must be base64 or url, got {kind!r:.80}.{hint}")
