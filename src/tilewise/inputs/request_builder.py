"""RequestBuilder: the arguments of `generate` and `chat` in Python, as requests."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.foreign.keywords import ForeignKeyword, no_effect, refused, take_all
from tilewise.ignored import Ignored, is_near_miss
from tilewise.inputs.grammar import name_unenforced
from tilewise.inputs.media.reader import LOCAL, MediaOptions, MediaReader
from tilewise.inputs.messages import ParsedMessage, open_messages, parse_messages
from tilewise.inputs.pieces import IMAGE_MARKER, VIDEO_MARKER
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.inputs.prompts import Prompt, read_prompts
from tilewise.inputs.templates import Ending
from tilewise.inputs.tokenizer import IMAGE_CONTEXT
from tilewise.inputs.tool_text import to_json
from tilewise.sampling_params import SamplingParams
from tilewise.timing import InputTiming
from tilewise.types import Request
from tilewise.units import to_python

Messages = Sequence[dict[str, Any]]
_FORMATS = ("auto", "string", "openai")
_NO_ADAPTERS = "An adapter is merged into the model as that is loaded: LLM(model, adapter=FOLDER)."
FOREIGN_ARGUMENTS: dict[str, ForeignKeyword] = {
    "lora_request": refused(_NO_ADAPTERS, []),
    "prompt_adapter_request": refused(_NO_ADAPTERS),
    "guided_options_request": refused("Set structured_outputs in SamplingParams."),
    "tokenization_kwargs": refused("Set truncate_prompt_tokens in SamplingParams, or send ids.", {}),
    "chat_template_content_format": no_effect("content may be a text or a list of parts", "auto"),
    "trace_headers": no_effect("spans are those of the server", {}),
    "data_parallel_rank": no_effect("a replica is chosen by its load, and by what it has of the prompt", 0),
    "session_id": no_effect("prefixes are found by their content"),
    "kv_hints": no_effect("prefixes are found by their content"),
    "reasoning_ended": no_effect("thinking ends with </think>"),
    "reasoning_parser_kwargs": no_effect("texts are given out whole, their thinking among them", {}),
    "reset_running_requests": refused("A cache in use stays: ask when no request runs.", False),
    "reset_connector": no_effect("there is no connector to other caches", False),
}
"""Arguments of vLLM's `generate` and `chat` that are no options here."""


@dataclass
class LoRARequest:
    """An adapter, as vLLM's programs name it. There may be one in a program; a call with one is refused."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False


@dataclass(frozen=True)
class ChatOptions:
    """Options for making prompts of conversations: arguments of `chat`, with vLLM's names."""

    chat_template: None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ChatPrompt(TemplateOptions):
    """A conversation, as `open_messages` and `Preparer.chat` take it."""

    messages: tuple[ParsedMessage, ...]
    media: MediaOptions = MediaOptions()
    """`media_io_kwargs`."""

    def request(self, sampling: SamplingParams, preparer: Preparer, reader: MediaReader) -> Request:
        arrival = time.monotonic()  # before media are fetched and decoded: waiting for them is waiting too
        messages, media = open_messages(self.messages, reader)
        return _came(preparer.chat(messages, media, sampling, self), arrival, reader.watch.timing)


def check_arguments(ignored: Ignored, **given: Any) -> None:
    """Refuse arguments that are no options here, or name them in `ignored`, as FOREIGN_ARGUMENTS says.

    Raises InvalidField.
    """
    content = given.get("chat_template_content_format", "auto")
    if content not in _FORMATS:
        raise InvalidRequest(f"chat_template_content_format must be one of {', '.join(_FORMATS)}, got {content!r:.80}.")
    adapters = given.get("lora_request")
    if isinstance(adapters, (list, tuple)):
        given["lora_request"] = [adapter for adapter in adapters if adapter is not None]
    take_all(given, FOREIGN_ARGUMENTS, ignored)


@dataclass(frozen=True)
class RequestBuilder:
    """A maker of requests, which reads media, renders, tokenizes and cuts.

    Names without effect go into the `ignored` of each call.
    """

    preparer: Preparer
    reader: MediaReader
    priorities: bool
    """True if the scheduler looks at priorities."""

    def prompts(
        self,
        prompts: Any,
        sampling: SamplingParams | Sequence[SamplingParams],
        processor: dict[str, Any] | None,
        ignored: Ignored,
    ) -> list[Request]:
        """Return one request for each raw prompt. Raises InvalidRequest, TooLong among them."""
        parsed = read_prompts(prompts, self.reader, ignored)
        return [
            self._prompt(item, params, processor or {}, ignored)
            for item, params in zip(parsed, spread(sampling, len(parsed)), strict=True)
        ]

    def _prompt(self, item: Prompt, sampling: SamplingParams, processor: dict[str, Any], ignored: Ignored) -> Request:
        if item.media and not _has_marker(item.prompt, self.preparer.tokenizer.image_context_id):
            ignored.add(
                "prompt_without_image_marker",
                "the pictures stand in front of the prompt; write <image> or <video> where each belongs",
            )
        request = self.preparer.prompt(item.prompt, item.media, sampling, processor={**processor, **item.processor})
        request = request.with_(cache_salt=item.cache_salt, prompt=request.prompt or item.text)
        name_unenforced(request, ignored, self.preparer.tokenizer.vocab_size)
        return _came(request, item.arrival, item.reading)

    def conversation(
        self, messages: Messages, sampling: SamplingParams, options: ChatOptions, ignored: Ignored
    ) -> Request:
        """Return the request of a conversation. Raises InvalidRequest, TooLong among them."""
        check_template(options.chat_template)
        prompt = ChatPrompt(
            messages=parse_messages(messages),
            thinking=thinking_of(options.chat_template_kwargs, ignored),
            tools=tool_texts(options.tools),
            ending=ending_of(options.add_generation_prompt, options.continue_final_message),
            processor=options.mm_processor_kwargs or {},
        )
        request = prompt.request(sampling, self.preparer, self.reader.timed(scope=LOCAL, ignored=ignored))
        name_unenforced(request, ignored, self.preparer.tokenizer.vocab_size)
        return request

    def prioritised(self, requests: list[Request], priority: int | Sequence[int] | None) -> list[Request]:
        """Return requests with their priorities, one for all or one for each. Raises InvalidRequest."""
        if priority is None:
            return requests
        numbers = to_python(priority)
        numbers = [numbers] * len(requests) if isinstance(numbers, int) else numbers
        numbers = [to_python(number) for number in numbers] if isinstance(numbers, Sequence) else []
        if len(numbers) != len(requests) or not all(type(number) is int for number in numbers):
            raise InvalidRequest(f"priority must be a list of {len(requests)} whole numbers, got {priority!r:.80}.")
        if not self.priorities and any(numbers):
            raise InvalidRequest('priority has no effect under scheduling_policy="fcfs": choose "priority".')
        return [request.with_(priority=number) for request, number in zip(requests, numbers, strict=True)]


def _has_marker(prompt: str | Sequence[int], context_id: int) -> bool:
    if isinstance(prompt, str):
        return any(marker in prompt for marker in (IMAGE_MARKER, VIDEO_MARKER, IMAGE_CONTEXT))
    return context_id in prompt


def spread(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    """Return sampling options for each of `count` prompts."""
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(item, SamplingParams) for item in params):
        raise InvalidRequest(f"sampling_params must be SamplingParams or a list of them, got {params!r:.80}.")
    if len(params) != count:
        raise InvalidRequest(f"There are {len(params)} sampling_params for {count} prompts: give one, or one for each.")
    return list(params)


def _came(request: Request, arrival: float, reading: InputTiming) -> Request:
    """Return the request with the time at which it came, and what its media took before they were cut."""
    return request.with_(arrival=arrival, inputs=replace(reading, preprocess=request.inputs.preprocess))


def check_template(chat_template: object) -> None:
    """Raise InvalidRequest for a template of the caller's."""
    if chat_template is not None:
        raise InvalidRequest(
            "chat_template is not possible: prompts follow the template that the model was trained with. Leave it out, "
            "or render the prompt and call generate."
        )


def ending_of(add_generation_prompt: bool, continue_final_message: bool) -> Ending:
    """Return what stands behind the last message. Raises InvalidRequest if both are wanted."""
    if add_generation_prompt and continue_final_message:
        raise InvalidRequest("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    return "continue" if continue_final_message else "open" if add_generation_prompt else "end"


def thinking_of(template: Mapping[str, Any] | None, ignored: Ignored) -> bool | None:
    """Return `enable_thinking` of `chat_template_kwargs`; name other keys in `ignored`, and refuse near misses."""
    for name in template or {}:
        if name != "enable_thinking":
            if is_near_miss(name, ["enable_thinking"]):
                raise UnknownOption.named(name, ["enable_thinking"], "chat_template_kwargs")
            ignored.add(f"chat_template_kwargs.{name}", "the built-in templates know enable_thinking alone")
    value = (template or {}).get("enable_thinking")
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"enable_thinking must be True or False, got {value!r:.80}.")
    return value


def tool_texts(tools: Any) -> tuple[str, ...]:
    """Return definitions of functions as they stand in a prompt, JSON texts. Raises InvalidRequest."""
    if not isinstance(tools, Sequence | None) or isinstance(tools, str):
        raise InvalidRequest(f"tools must be a list of definitions, got {type(tools).__name__}.")
    return tuple(to_json(_tool(tool, number)) for number, tool in enumerate(tools or ()))


def _tool(tool: Any, number: int) -> Mapping[str, Any]:
    if isinstance(tool, Mapping) and tool.keys() >= {"name", "parameters"}:
        tool = {"type": "function", "function": tool}  # without its wrapping
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f'tools[{number}] must be {{"type": "function", "function": {{...}}}}, got {tool!r:.80}.')
    return tool  # type: ignore[no-any-return]
