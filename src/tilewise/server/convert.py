"""Chat bodies are read into a ChatCall, for the model that is served."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from tilewise.errors import InvalidField, InvalidRequest
from tilewise.ignored import Ignored, is_near_miss
from tilewise.inputs.images import lax_number
from tilewise.inputs.media_io import MediaOptions
from tilewise.inputs.templates import Ending
from tilewise.sampling_params import SamplingParams
from tilewise.server.calls import ChatCall, ChatPrompt, ReplyOptions, Routing
from tilewise.server.fields.field import MAX_UNKNOWN, UnknownFields
from tilewise.server.fields.tables import CHAT
from tilewise.server.messages import PREFIX_KEYS, read_conversation
from tilewise.server.protocol.bodies import ChatBody, CompletionBody, EncodeBody, TokenizeBody
from tilewise.server.protocol.common import CompletionFields
from tilewise.server.sampling import form_field, sampling_of, strict_schema
from tilewise.server.served import ServedModel
from tilewise.server.toolcalls import ToolUse, check_tool_types, read_tools

_RESERVED = ("chat_template", "tokenize", "tools", "documents", "add_generation_prompt", "continue_final_message",
             "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
             "conversation", "messages")  # fmt: skip
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def chat_call(body: dict[str, Any], served: ServedModel, ignored: Ignored, header_id: str | None = None) -> ChatCall:
    """Read a chat body; `header_id` is the header X-Request-Id, and names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    check_template(body)
    check_tool_types(body.get("tools"))
    unknown = UnknownFields(ignored, served.strict_fields)
    fields = ChatBody.read(body, CHAT, unknown)
    tools = read_tools(fields.tools, fields.tool_choice, fields.parallel_tool_calls, served)
    messages = read_conversation(fields.messages, unknown, served.detail_levels)
    goes_on = fields.continue_final_message or begins_answer(fields.messages)
    name_older_max_tokens(fields, ignored)
    check_special_tokens(fields.add_special_tokens, served, ignored)
    ending = ending_of(fields.add_generation_prompt, goes_on)
    sampling = sampling_of(
        fields, served, max_tokens=_max_tokens(fields), logprobs=_logprobs(fields), structure=tools.structure
    )
    thinking = thinking_of(fields, served, ignored)
    thinks_before_form = thinking and ending == "open" and sampling.structured_outputs is not None
    return ChatCall(
        reply=reply_of(fields, served, "chatcmpl-", header_id),
        prompt=ChatPrompt(
            messages=messages,
            thinking=thinking,
            tools=tools.definitions,
            ending=ending,
            processor=processor_of(fields),
            media=media_of(fields.media_io_kwargs, ignored),
            keep_last=fields.truncate_prompt_tokens,
            cut=fields.truncation_side or "left",
        ),
        sampling=sampling.with_(skip_special_tokens=False) if _shows_marks(served, tools) else sampling,
        routing=routing_of(fields.priority, fields.cache_salt, _max_tokens(fields), served),
        form_field=tools.place or form_field(fields),
        tools=tools,
        strict_schema=strict_schema(fields),
        tool_form=served.tool_form,
        reasoning=served.reasoning or bool(thinks_before_form),
        opened=ending == "open" and _is_opened(thinking, sampling, served),
        include_reasoning=fields.include_reasoning,
        echo=_echo(messages) if fields.echo else "",
    )


def _is_opened(thinking: bool | None, sampling: SamplingParams, served: ServedModel) -> bool:
    """True if the template ends the prompt with `<think>`; before a form, the answer begins with it instead."""
    asked = served.thinks_unasked if thinking is None else thinking
    return served.opens_thinking and asked and not sampling.structured_outputs


def _shows_marks(served: ServedModel, tools: ToolUse) -> bool:
    """True if parts of the answer are told apart by special tokens, which are hidden otherwise."""
    return served.tool_form == "openai" or (served.tool_form == "internlm" and tools.choice == "auto")


def check_template(body: dict[str, Any]) -> None:
    """Raise InvalidField for a template of the caller's: it would be code, and all servers use the one built in."""
    if body.get("chat_template") is None:
        return
    raise InvalidField(
        "chat_template",
        "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with "
        "untrusted chat template: leave it out; the built-in template is the one the model was trained with.",
    )


def check_template_options(options: dict[str, Any] | None, ignored: Ignored) -> bool | None:
    """Return enable_thinking of `chat_template_kwargs`, or None; others go into `ignored`, as no template has them.

    Raises InvalidField for what would be another template, or a near miss.
    """
    for name in options or {}:
        if name in _RESERVED or name.startswith("_"):
            raise InvalidField(
                "chat_template_kwargs", f"chat_template_kwargs may not set {name}, which is reserved: leave it out."
            )
        if name != "enable_thinking" and is_near_miss(name, ("enable_thinking",)):
            raise InvalidField(
                "chat_template_kwargs",
                f"chat_template_kwargs has no {name[:80]!r}. Did you mean enable_thinking? Leave it out otherwise.",
            )
    others = [name for name in options or {} if name != "enable_thinking" and (options or {})[name] is not None]
    if len(others) > MAX_UNKNOWN:
        raise InvalidField(
            "chat_template_kwargs", f"chat_template_kwargs has {len(others)} names, the most are {MAX_UNKNOWN}."
        )
    for name in others:
        ignored.add(f"chat_template_kwargs.{name}", "the built-in templates know enable_thinking and nothing else")
    value = (options or {}).get("enable_thinking")
    if value is not None and not isinstance(value, bool):
        raise InvalidField("chat_template_kwargs", f"enable_thinking must be true or false, got {value!r:.80}.")
    return value


def processor_of(fields: ChatBody | TokenizeBody | EncodeBody) -> dict[str, Any]:
    """Return `mm_processor_kwargs` with the options that stand beside it. Raises InvalidField if they contradict."""
    found = {name: lax_number(value) for name, value in (fields.mm_processor_kwargs or {}).items()}
    for name in ("max_dynamic_patch", "min_dynamic_patch", "interleave_mm_strings"):
        value = getattr(fields, name, None)
        if value is not None and found.setdefault(name, value) != value:
            raise InvalidField(name, f"{name}={value} and mm_processor_kwargs.{name}={found[name]!r:.80}: send one.")
    return {name: value for name, value in found.items() if value is not None}


def begins_answer(messages: Sequence[dict[str, Any]]) -> bool:
    """True if the last message is the beginning of the answer, by the `prefix` or `partial` of other servers."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and any(last.get(name) is True for name in PREFIX_KEYS)


def check_special_tokens(asked: bool | None, served: ServedModel, ignored: Ignored) -> None:
    """Raise InvalidField if `add_special_tokens` would add a second start token to messages; else it is ignored."""
    if asked and served.starts:
        raise InvalidField(
            "add_special_tokens", "The start token stands before the messages already: leave add_special_tokens out."
        )
    if asked:
        ignored.add("add_special_tokens", "the tokenizer has no start token to add to messages")


def thinking_of(fields: ChatBody, served: ServedModel, ignored: Ignored) -> bool | None:
    """Return whether the model is asked to think; None where neither the request nor the server says.

    Templates know no efforts: `none` and `minimal` mean no, all others yes. A prompt that cannot ask for thinking does
    not, and the request's fields are named as ignored. Raises InvalidField for fields that contradict each other.
    """
    effort = None if fields.reasoning_effort is None else fields.reasoning_effort not in ("none", "minimal")
    said = {
        "chat_template_kwargs": check_template_options(fields.chat_template_kwargs, ignored),
        "enable_thinking": fields.enable_thinking,
        "reasoning_effort": effort,
    }
    asked = {name: value for name, value in said.items() if value is not None}
    if len(set(asked.values())) > 1:
        raise InvalidField(next(iter(asked)), f"{' and '.join(asked)} contradict each other: send one of them.")
    thinking = next(iter(asked.values()), served.thinking)
    why = without_thinking(fields.messages, served) if thinking else None
    for name in asked if why else ():
        ignored.add(f"{name}.enable_thinking" if name == "chat_template_kwargs" else name, why or "")
    return thinking if why is None else False


def without_thinking(messages: Sequence[dict[str, Any]], served: ServedModel) -> str | None:
    """Return why a prompt cannot ask for thinking, or None if it can."""
    if not served.thinks:
        return "the model was not trained to think"
    if messages and messages[0].get("role") in ("system", "developer") and not served.opens_thinking:
        return "the first message, of the system, takes the place of the text that asks for thinking"
    return None


def ending_of(add_generation_prompt: bool | None, continue_final_message: bool) -> Ending:
    if continue_final_message and add_generation_prompt:
        raise InvalidField(
            "continue_final_message",
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        )
    if continue_final_message:
        return "continue"
    return "open" if add_generation_prompt is None or add_generation_prompt else "end"


def media_of(kwargs: dict[str, Any] | None, ignored: Ignored) -> MediaOptions:
    try:
        return MediaOptions.of(kwargs, ignored=ignored)
    except InvalidRequest as error:
        raise InvalidField("media_io_kwargs", str(error)) from None


def reply_of(fields: CompletionFields, served: ServedModel, prefix: str, header_id: str | None) -> ReplyOptions:
    options = fields.stream_options
    usage = served.force_include_usage or bool(options and options.include_usage)
    as_ids = fields.return_tokens_as_token_ids
    continuous = served.force_include_usage or bool(options and options.continuous_usage_stats)
    return ReplyOptions(
        id=prefix + request_id(header_id, fields.request_id),
        model=served.resolve(fields.model),
        created=int(time.time()),
        stream=fields.stream,
        include_usage=fields.stream and usage,
        continuous_usage=fields.stream and usage and continuous,
        token_ids=fields.return_token_ids,
        tokens_as_ids=served.tokens_as_ids if as_ids is None else as_ids,
    )


def request_id(header_id: str | None, body_id: str | None) -> str:
    for where, value in (("X-Request-Id", header_id), ("request_id", body_id)):
        if value is None:
            continue
        if not _REQUEST_ID.fullmatch(value):
            raise InvalidField(
                "request_id", f"{where} must be 1 to 128 characters of ASCII without blanks, got {value!r:.80}."
            )
        return value
    return uuid.uuid4().hex


def routing_of(priority: int, cache_salt: str | None, max_tokens: int | None, served: ServedModel) -> Routing:
    if priority and not served.priorities:
        raise InvalidField(
            "priority", f"priority={priority} has no effect under --scheduling-policy fcfs: start with priority, or 0."
        )
    if cache_salt == "":
        raise InvalidField("cache_salt", "cache_salt must be a text that is not empty.")
    return Routing(priority=priority, cache_salt=cache_salt, max_tokens=max_tokens)


def _max_tokens(fields: ChatBody) -> int | None:
    return fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens


def name_older_max_tokens(fields: ChatBody | CompletionBody, ignored: Ignored) -> None:
    if fields.max_tokens is not None and fields.max_completion_tokens not in (None, fields.max_tokens):
        ignored.add("max_tokens", "max_completion_tokens is its newer name, and counts")


def _logprobs(fields: ChatBody) -> int | None:
    if fields.top_logprobs is not None and fields.top_logprobs != 0 and not fields.logprobs:
        raise InvalidField("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.")
    return (fields.top_logprobs or 0) if fields.logprobs else None


def _echo(messages: Sequence[dict[str, Any]]) -> str:
    last = messages[-1]
    if last["role"] != "assistant":
        return ""
    content = last["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or () if "text" in part)
