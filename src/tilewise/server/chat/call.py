"""Chat bodies are read into a ChatCall, which becomes the engine's request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.errors import InvalidField, InvalidRequest
from tilewise.ignored import Ignored, is_near_miss
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.media.tiling import lax_number
from tilewise.inputs.messages import parse_messages
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.request_builder import ChatPrompt
from tilewise.inputs.templates import Ending
from tilewise.outputs.parts import AnswerParts, PartsRule
from tilewise.server.bodies import ChatBody, CompletionBody, EncodeBody, TokenizeBody
from tilewise.server.body import MAX_UNKNOWN, UnknownFields
from tilewise.server.chat.tools import ToolUse, check_tool_types, read_tools
from tilewise.server.generation import (
    LIGHT,
    GenerationCall,
    check_routing,
    form_field,
    naming_form,
    reply_of,
    sampling_of,
    strict_schema,
)
from tilewise.server.messages import PREFIX_KEYS, RequestRules
from tilewise.server.request_id import RequestId
from tilewise.server.served import ServedModel
from tilewise.types import Request

_MESSAGE = re.compile(r"\b(messages\[\d{1,9}\])((?:\.content\[\d{1,9}\])?)")
_RESERVED = ("chat_template", "tokenize", "tools", "documents", "add_generation_prompt", "continue_final_message",
             "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
             "conversation", "messages")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChatCall(GenerationCall):
    prompt: ChatPrompt
    parts: PartsRule
    strict_schema: dict[str, Any] | None = field(default=None, hash=False)
    """JSON schema that an answer is checked against when it is whole, because of `strict: true`."""
    strict_tools: Mapping[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    """The schemas of functions that are strict: their arguments are checked when a call is whole."""
    include_reasoning: bool = True
    """True if the reasoning that is separated is shown to the client."""
    echo: str = ""
    """Text before each answer."""

    @property
    def is_light(self) -> bool:
        """True if it is so little work that it may be done on the event loop: a short text and nothing else."""
        if self.sampling.structured_outputs is not None or self.prompt.tools:
            return False
        plain = all(message.is_plain for message in self.prompt.messages)
        return plain and sum(len(message.text) for message in self.prompt.messages) <= LIGHT

    def request(self, preparer: Preparer, reader: MediaReader) -> Request:
        """Return the engine's request, with its media read by `reader`, which is the request's own.

        May take as long as a download does. Raises InvalidRequest, TooLong among them.
        """
        with naming_form(self.form_field):
            request = self.prompt.request(self.sampling, preparer, reader)
        return self.routed(request, preparer)

    def without_messages(self) -> ChatCall:
        """Return what answers need of the call, once its request is made."""
        return replace(self, prompt=replace(self.prompt, messages=()))

    def strict_pairs(self, parts: AnswerParts) -> list[tuple[dict[str, Any], str]]:
        """Return the schemas that a whole answer has to fulfil, each with the part of it that has to."""
        schemas = self.strict_tools
        pairs = [(schemas[made.name], made.arguments) for made in parts.calls if made.name in schemas]
        if self.strict_schema is not None and not parts.calls:
            pairs.append((self.strict_schema, parts.content))
        return pairs


def chat_call(body: dict[str, Any], served: ServedModel, ignored: Ignored, name: RequestId | None = None) -> ChatCall:
    """Read a chat body; `name` is what the request has been called so far, and names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    check_template(body)
    check_tool_types(body.get("tools"))
    unknown = UnknownFields(ignored, served.config.strict_fields)
    fields = ChatBody.read(body, unknown)
    tools = read_tools(fields.tools, fields.tool_choice, fields.parallel_tool_calls, served)
    prompt = replace(
        prompt_of(fields, tools, served, unknown),
        keep_last=fields.truncate_prompt_tokens,
        cut=fields.truncation_side or "left",
    )
    most = max_tokens_of(fields, ignored)
    sampling = sampling_of(fields, served, max_tokens=most, logprobs=_logprobs(fields), structure=tools.structure)
    check_routing(fields, served)
    shows_marks = fields.return_boxes or _shows_marks(served, tools)
    return ChatCall(
        reply=replace(
            reply_of(fields, served, "chatcmpl-", name or RequestId.of()),
            explain=fields.explain,
            boxes=fields.return_boxes,
        ),
        prompt=prompt,
        sampling=sampling.with_(skip_special_tokens=False) if shows_marks else sampling,
        priority=fields.priority,
        cache_salt=fields.cache_salt,
        max_tokens=most,
        form_field=tools.place or form_field(fields),
        parts=_parts(served, tools, prompt, sampling.structured_outputs is not None),
        strict_schema=strict_schema(fields),
        strict_tools=tools.strict,
        include_reasoning=fields.include_reasoning,
        echo=prompt.messages[-1].text if fields.echo and prompt.messages[-1].role == "assistant" else "",
    )


def translated_call(
    chat: dict[str, Any], served: ServedModel, ignored: Ignored, name: RequestId | None, places: Mapping[str, str]
) -> ChatCall:
    """Read a chat body that was made of another API's, as `chat_call` does.

    Errors name places in that API's body, which `places` has by those in the chat body.
    """
    try:
        call = chat_call(chat, served, ignored, name)
        return replace(call, form_field=places.get(call.form_field, call.form_field))
    except InvalidField as error:
        raise InvalidField(_placed(error.param, places), _placed(str(error), places)) from None


def _placed(text: str, places: Mapping[str, str]) -> str:
    """Return the text with the places of messages renamed, and that with which it begins."""
    field = re.split(r"[ :=]", text, maxsplit=1)[0]
    if field in places and not field.startswith("messages["):
        return places[field] + text[len(field) :]
    return _MESSAGE.sub(lambda found: places.get(found[0]) or places.get(found[1], found[1]) + found[2], text)


def prompt_of(
    fields: ChatBody | TokenizeBody, tools: ToolUse, served: ServedModel, unknown: UnknownFields
) -> ChatPrompt:
    """Return the prompt of a body with messages. Raises InvalidField; what has no effect is named in `unknown`."""
    check_special_tokens(fields.add_special_tokens, served, unknown.ignored)
    return ChatPrompt(
        messages=parse_messages(fields.messages or [], RequestRules(unknown, served.config.detail_tiles or {})),
        thinking=thinking_of(fields, served, unknown.ignored),
        tools=tools.definitions,
        ending=ending_of(fields),
        processor=processor_of(fields),
        media=_media_of(fields.media_io_kwargs, unknown.ignored),
    )


def _parts(served: ServedModel, tools: ToolUse, prompt: ChatPrompt, has_form: bool) -> PartsRule:
    """Return the parts of the answers.

    `<think>` may end the prompt, but not where the answer has a form. There the model writes it, since the grammar
    demands it as the first token: that is how it knows that free text comes before the form.
    """
    asked = served.thinks_unasked if prompt.thinking is None else prompt.thinking
    is_open = prompt.ending == "open"
    return PartsRule(
        reasoning=served.reasoning or bool(prompt.thinking and is_open and has_form),
        opened=is_open and served.opens_thinking and asked and not has_form,
        calls=tools.choice,
        name=tools.name or "",
        parallel=tools.parallel,
        form=served.tool_form,
    )


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
    options = options or {}
    for name in options:
        if name in _RESERVED or name.startswith("_"):
            raise InvalidField(
                "chat_template_kwargs", f"chat_template_kwargs may not set {name}, which is reserved: leave it out."
            )
        if name != "enable_thinking" and is_near_miss(name, ("enable_thinking",)):
            raise InvalidField(
                "chat_template_kwargs",
                f"chat_template_kwargs has no {name[:80]!r}. Did you mean enable_thinking? Leave it out otherwise.",
            )
    others = [name for name, value in options.items() if name != "enable_thinking" and value is not None]
    if len(others) > MAX_UNKNOWN:
        raise InvalidField(
            "chat_template_kwargs", f"chat_template_kwargs has {len(others)} names, the most are {MAX_UNKNOWN}."
        )
    for name in others:
        ignored.add(f"chat_template_kwargs.{name}", "the built-in templates know enable_thinking and nothing else")
    value = options.get("enable_thinking")
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


def check_special_tokens(asked: bool | None, served: ServedModel, ignored: Ignored) -> None:
    """Raise InvalidField if `add_special_tokens` would add a second start token to messages; else it is ignored."""
    if asked and served.starts:
        raise InvalidField(
            "add_special_tokens", "The start token stands before the messages already: leave add_special_tokens out."
        )
    if asked:
        ignored.add("add_special_tokens", "the tokenizer has no start token to add to messages")


def thinking_of(fields: ChatBody | TokenizeBody, served: ServedModel, ignored: Ignored) -> bool | None:
    """Return whether the model is asked to think; None where neither the request nor the server says.

    Templates know no efforts: `none` and `minimal` mean no, all others yes. A prompt that cannot ask for thinking does
    not, and the request's fields are named as ignored. Raises InvalidField for fields that contradict each other.
    """
    effort = getattr(fields, "reasoning_effort", None)
    said = {
        "chat_template_kwargs": check_template_options(fields.chat_template_kwargs, ignored),
        "enable_thinking": fields.enable_thinking,
        "reasoning_effort": None if effort is None else effort not in ("none", "minimal"),
    }
    asked = {name: value for name, value in said.items() if value is not None}
    if len(set(asked.values())) > 1:
        raise InvalidField(next(iter(asked)), f"{' and '.join(asked)} contradict each other: send one of them.")
    thinking = next(iter(asked.values()), served.thinking)
    if not thinking or (why := _without_thinking(fields.messages or (), served)) is None:
        return thinking
    for name in asked:
        ignored.add(f"{name}.enable_thinking" if name == "chat_template_kwargs" else name, why)
    return False


def _without_thinking(messages: Sequence[dict[str, Any]], served: ServedModel) -> str | None:
    """Return why a prompt cannot ask for thinking, or None if it can."""
    if not served.thinks:
        return "the model was not trained to think"
    if messages and messages[0].get("role") in ("system", "developer") and not served.opens_thinking:
        return "the first message, of the system, takes the place of the text that asks for thinking"
    return None


def ending_of(fields: ChatBody | TokenizeBody) -> Ending:
    """Return how the prompt ends; a last message may also be the beginning of the answer by a key of other servers."""
    last = fields.messages[-1] if fields.messages else {}
    begins = last.get("role") == "assistant" and any(last.get(name) is True for name in PREFIX_KEYS)
    if fields.continue_final_message or begins:
        if fields.add_generation_prompt:
            raise InvalidField(
                "continue_final_message",
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            )
        return "continue"
    return "end" if fields.add_generation_prompt is False else "open"


def _media_of(kwargs: dict[str, Any] | None, ignored: Ignored) -> MediaOptions:
    try:
        return MediaOptions.of(kwargs, ignored=ignored)
    except InvalidRequest as error:
        raise InvalidField("media_io_kwargs", str(error)) from None


def max_tokens_of(fields: ChatBody | CompletionBody, ignored: Ignored) -> int | None:
    if fields.max_completion_tokens is None:
        return fields.max_tokens
    if fields.max_tokens not in (None, fields.max_completion_tokens):
        ignored.add("max_tokens", "max_completion_tokens is its newer name, and counts")
    return fields.max_completion_tokens


def _logprobs(fields: ChatBody) -> int | None:
    if fields.top_logprobs is not None and fields.top_logprobs != 0 and not fields.logprobs:
        raise InvalidField("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.")
    return (fields.top_logprobs or 0) if fields.logprobs else None
