"""Targets: what comes over HTTP, and the lines of batches: bytes, bodies of every route, and what they become."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import BaseModel

from tests.fuzz.target import JSON, NUMBERS, WORDS, of_bytes, of_values, refusing
from tests.inputs import pictures
from tests.server.asking import LOOK, PICTURE, QUESTION, SERVED
from tilewise.config import EngineConfig
from tilewise.errors import InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.limits import MediaLimits
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.jobs.input import Fault, InputLine, Task, read_task
from tilewise.jobs.output import BatchResult
from tilewise.remote.wire import framed
from tilewise.server.anthropic.body import AnthropicTool, CountTokensBody, MessagesBody
from tilewise.server.anthropic.call import count_call, messages_call
from tilewise.server.bodies import (
    BatchedChatBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EncodeBody,
    ResponsesBody,
    TokenizeBody,
)
from tilewise.server.body import Body, fields_of
from tilewise.server.chat.call import chat_call
from tilewise.server.completions.call import completion_call
from tilewise.server.encode import encode_call, encode_request
from tilewise.server.exchange import parse_body
from tilewise.server.problems import Problem
from tilewise.server.responses.call import response_call
from tilewise.server.tokenize import detokenize_body, tokenize_body, tokenize_call

# Hosts are never looked up: none but this one is allowed, and nothing here names it.
ACCESS = MediaAccess(allowed_media_domains=("nowhere.invalid",), limits=MediaLimits(request_bytes=2**20))


@cache
def demo() -> ModelInputs:
    return ModelInputs.of(EngineConfig.of(model="demo", limit_mm_per_prompt={"image": 4, "video": 1}))


@cache
def preparer() -> Any:
    return demo().plain_preparer(2048)


def reader() -> MediaReader:
    return MediaReader(ACCESS).timed()


@of_bytes(
    lambda: [
        b'{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00"], "b": {"c": {}}}',
        '{"text": "图片"}'.encode("utf-16"),
        b"\xef\xbb\xbf" + b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
    ],
    examples=100,
)
def json_body(data: bytes) -> None:
    """Bytes become an object that can be sent on as JSON in UTF-8, or are refused."""
    with refusing(InvalidRequest):
        json.dumps(parse_body(data), ensure_ascii=False, allow_nan=False).encode()


def values_of(annotation: Any) -> SearchStrategy[Any]:
    """Return a strategy for the JSON values of a type, as pydantic reads them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(WORDS | st.integers(-2, 600).map(str), values_of(arguments[1]), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _object_of(annotation)
    plain = {bool: st.booleans(), int: st.integers(-2, 40) | NUMBERS, float: st.floats(-3, 3) | NUMBERS, str: WORDS}
    return plain.get(annotation, st.none() if annotation in (None, type(None)) else JSON)


@cache
def _object_of(model: type[BaseModel]) -> SearchStrategy[dict[str, Any]]:
    keys = {field.alias or name: values_of(field.annotation) for name, field in model.model_fields.items()}
    required = {field.alias or name for name, field in model.model_fields.items() if field.is_required()}
    return st.deferred(
        lambda: st.fixed_dictionaries(
            {name: values for name, values in keys.items() if name in required},
            optional={name: values for name, values in keys.items() if name not in required},
        )
    )


_TEXTS = WORDS | st.sampled_from(["What is this?", "<image>", "<|im_end|>", "<IMG_CONTEXT>", "<video>\n<image>"])
_URLS = st.sampled_from([pictures.picture_url(), pictures.video_url(), "data:,", "http://x/", "file:///etc/passwd"])
_MEDIUM = st.fixed_dictionaries(
    {"url": _URLS | JSON},
    optional={
        "detail": st.sampled_from(["auto", "low", "high"]) | JSON,
        "uuid": WORDS | JSON,
        **dict.fromkeys(("max_dynamic_patch", "min_dynamic_patch", "fps", "file_id"), st.integers(0, 13) | JSON),
    },
)
_PARTS = st.one_of(
    _TEXTS,
    st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "refusal"]), "text": _TEXTS}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": _URLS | _MEDIUM}),
    st.fixed_dictionaries({"type": st.just("input_image"), "image_url": _URLS}),
    st.fixed_dictionaries({"type": st.just("video_url"), "video_url": _URLS | _MEDIUM}),
    st.fixed_dictionaries({"type": st.just("image_embeds"), "image_embeds": WORDS | JSON}),
    st.just(PICTURE),
    JSON,
)
_CALLS = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": WORDS | JSON, "arguments": st.just('{"a": 1}') | WORDS | JSON}) | JSON},
    optional={"id": WORDS | JSON, "type": st.just("function") | JSON},
)
MESSAGES = st.lists(
    st.just(QUESTION)
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "critic"]) | JSON},
        optional={
            "content": _TEXTS | st.lists(_PARTS, max_size=4) | JSON,
            "tool_calls": st.lists(_CALLS, max_size=2) | JSON,
            **dict.fromkeys(("tool_call_id", "name", "prefix", "refusal", "reasoning_content"), WORDS | JSON),
        },
    )
    | JSON,
    max_size=4,
)
_ITEMS = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": _TEXTS}),
    st.fixed_dictionaries({"type": st.just("function_call"), "name": WORDS, "arguments": WORDS, "call_id": WORDS}),
    st.fixed_dictionaries({"type": st.just("function_call_output"), "call_id": WORDS, "output": WORDS | JSON}),
    st.fixed_dictionaries({"type": st.just("reasoning")}),
    JSON,
)
_SHAPED: dict[str, SearchStrategy[Any]] = {
    "messages": MESSAGES,
    "input": _TEXTS | st.lists(_ITEMS | _PARTS, max_size=4),
    "tools": st.lists(st.just(LOOK) | JSON, max_size=2),
    "model": st.sampled_from(SERVED.names) | WORDS,
    "prompt": _TEXTS | st.lists(_TEXTS, max_size=3) | st.lists(st.integers(-1, 3000), max_size=5),
    "tokens": st.lists(st.integers(-1, 3000) | NUMBERS, max_size=6),
    "stop": _TEXTS | st.lists(_TEXTS, max_size=3),
    "n": st.integers(0, 4),
}
"""Fields whose types say little."""


def bodies_of(kind: type[Body], *always: str) -> SearchStrategy[dict[str, Any]]:
    """Return a strategy for bodies: fields with values of their types, others of any kind, and unknown ones."""

    def values(name: str) -> SearchStrategy[Any]:
        usual = _SHAPED[name] if name in _SHAPED else values_of(kind.model_fields[name].annotation)
        return st.one_of([usual] * 5 + [JSON])

    working = {name: values(name) for name in kind.model_fields}
    others = {name: JSON for name in fields_of(kind) if name not in working}
    few = st.lists(st.sampled_from([*working] * 3 + [*others]), max_size=4, unique=True)
    picked = few.flatmap(
        lambda names: st.fixed_dictionaries({name: (working | others)[name] for name in {*always, *names}})
    )
    unknown = st.dictionaries(WORDS | st.sampled_from(["max_token", "temprature", "foo"]), JSON, max_size=1)
    return st.builds(lambda known, more: {**more, **known}, picked, unknown)


def _answered(body: dict[str, Any], work: Callable[[dict[str, Any], Ignored], object]) -> None:
    """Do a route's work on a body as it comes over the wire: what fails is the client's fault, and can be told."""
    ignored = Ignored()
    try:
        work(parse_body(json.dumps(body).encode()), ignored)
    except Exception as error:
        problem = Problem.of(error)
        if problem.status >= 500:
            raise
        problem.response()
    json.dumps(ignored.names).encode()


def _chat(body: dict[str, Any], ignored: Ignored) -> None:
    call = chat_call(body, SERVED, ignored)
    assert isinstance(call.is_light, bool)
    if call.sampling.structured_outputs is None:  # whose compiling is the target `grammar`
        framed(call.request(preparer(), reader()))


@of_values(bodies_of(ChatBody, "messages"), examples=60)
def chat_body(body: dict[str, Any]) -> None:
    """A body of chat becomes a request that can be sent to the engine, or an answer of 4xx."""
    _answered(body, _chat)


@of_values(bodies_of(BatchedChatBody).map(lambda body: {**body, "messages": [body.get("messages")]}), examples=30)
def batched_chat_body(body: dict[str, Any]) -> None:
    """A body of several conversations is read as one body each, as the route does."""

    def work(read: dict[str, Any], ignored: Ignored) -> None:
        BatchedChatBody.read(read, _unknown(ignored))
        for messages in read["messages"]:
            _chat({**read, "messages": messages}, ignored)

    _answered(body, work)


def _unknown(ignored: Ignored) -> Any:
    from tilewise.server.body import UnknownFields

    return UnknownFields(ignored)


@of_values(bodies_of(CompletionBody, "prompt"))
def completion_body(body: dict[str, Any]) -> None:
    """A body of text completions becomes requests, or an answer of 4xx."""

    def work(read: dict[str, Any], ignored: Ignored) -> None:
        call = completion_call(read, SERVED, ignored)
        if call.sampling.structured_outputs is None:
            framed(call.requests(preparer()))

    _answered(body, work)


@of_values(bodies_of(ResponsesBody, "input"))
def responses_body(body: dict[str, Any]) -> None:
    """A body of the Responses API becomes a request and what its answer repeats, or an answer of 4xx."""

    def work(read: dict[str, Any], ignored: Ignored) -> None:
        call = response_call(read, SERVED, ignored, recall=lambda name: ({"role": "user", "content": name},))
        json.dumps(call.echoed, allow_nan=False)
        if call.chat.sampling.structured_outputs is None:
            framed(call.chat.request(preparer(), reader()))

    _answered(body, work)


_SOURCES = st.one_of(
    st.fixed_dictionaries({"type": st.just("url"), "url": _URLS | JSON}),
    st.fixed_dictionaries({"type": st.just("base64"), "media_type": WORDS, "data": WORDS | JSON}),
    st.fixed_dictionaries({"type": st.just("text"), "data": _TEXTS}),
    JSON,
)
_SHOWN = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": _TEXTS | JSON}),
    st.fixed_dictionaries({"type": st.sampled_from(["image", "document"]), "source": _SOURCES}),
    JSON,
)
_BLOCKS = st.one_of(
    _SHOWN,
    st.fixed_dictionaries(
        {"type": st.just("tool_result"), "tool_use_id": WORDS | JSON},
        optional={"content": st.lists(_SHOWN, max_size=2) | JSON},
    ),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": WORDS, "name": WORDS | JSON, "input": JSON}),
    st.fixed_dictionaries({"type": st.sampled_from(["thinking", "redacted_thinking", "search_result"])}),
)
_TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "user", "assistant", "system"]) | JSON,
            "content": _TEXTS | st.lists(_BLOCKS, max_size=4) | JSON,
        }
    )
    | JSON,
    max_size=4,
)


def _of_anthropic(kind: type[Body]) -> SearchStrategy[dict[str, Any]]:
    tools = st.lists(values_of(AnthropicTool) | JSON, max_size=2)
    shapes = {"messages": _TURNS, "system": _TEXTS | st.lists(_SHOWN, max_size=2), "tools": tools}
    optional = {name: st.just(None) | values for name, values in shapes.items() if name != "messages"}
    shaped = st.fixed_dictionaries({"messages": _TURNS}, optional=optional)
    return st.builds(lambda body, more: {**body, **more}, bodies_of(kind), shaped)


@of_values(_of_anthropic(MessagesBody).map(lambda body: {"max_tokens": 9, **body}))
def messages_body(body: dict[str, Any]) -> None:
    """A body of the Messages API becomes a request, or an answer of 4xx."""

    def work(read: dict[str, Any], ignored: Ignored) -> None:
        call = messages_call(read, SERVED, ignored)
        if call.sampling.structured_outputs is None:
            framed(call.request(preparer(), reader()))

    _answered(body, work)


@of_values(_of_anthropic(CountTokensBody))
def count_tokens_body(body: dict[str, Any]) -> None:
    """A body of the Messages API is counted, or answered with 4xx."""
    _answered(body, lambda read, ignored: count_call(read, SERVED, ignored).request(preparer(), reader()))


@of_values(bodies_of(TokenizeBody, "messages") | bodies_of(TokenizeBody, "prompt"))
def tokenize_route(body: dict[str, Any]) -> None:
    """A body of /tokenize becomes as many tokens as it says, or an answer of 4xx."""

    def work(read: dict[str, Any], ignored: Ignored) -> None:
        found = tokenize_body(tokenize_call(read, SERVED, ignored), preparer(), reader())
        assert found["count"] == len(found["tokens"])

    _answered(body, work)


@of_values(bodies_of(DetokenizeBody, "tokens"))
def detokenize_route(body: dict[str, Any]) -> None:
    """A body of /detokenize becomes a text, or an answer of 4xx."""

    def work(read: dict[str, Any], ignored: Ignored) -> None:
        detokenize_body(read, SERVED, demo().tokenizer, ignored)["prompt"].encode()

    _answered(body, work)


@of_values(bodies_of(EncodeBody, "input"))
def encode_route(body: dict[str, Any]) -> None:
    """A body of /v1/encode becomes tiles, or an answer of 4xx."""
    _answered(
        body,
        lambda read, ignored: framed(encode_request(encode_call(read, SERVED, ignored), preparer(), reader())),
    )


_PATHS = ("/v1/chat/completions", "/v1/completions")
_LINES = [
    b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}',
    '{"custom_id": "图", "method": "POST", "url": "/v1/completions", "body": {"stream": false}}'.encode(),
]


@of_bytes(lambda: _LINES)
def batch_line(data: bytes) -> None:
    """A line of a batch becomes a task or a fault, each of which has a result that is read back as it was."""
    line = InputLine(1, data, len(data), 7, 1)
    found = read_task(line, _PATHS, 2**20)
    if isinstance(found, Fault):
        result = BatchResult.not_asked(line, found)
    else:
        assert isinstance(found, Task)
        json.loads(found.body)
        result = BatchResult.answered(line, found, 200, "r", {"usage": {"prompt_tokens": 3}})
    again = BatchResult.read(result.line)
    assert (again.custom_id, again.outcome, again.tokens) == (found.custom_id, result.outcome, result.tokens)


def _result_lines() -> list[bytes]:
    line = InputLine(1, b"", 0, 7, 1)
    task = Task("a", _PATHS[0], b"{}")
    answered = partial(BatchResult.answered, line, task, 200, "r")
    return [
        answered({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).line,
        BatchResult.not_asked(line, Fault(None, "invalid_json_line", "Line 1")).line,
        # Found by fuzzing: a status or a count that is a text.
        answered({}).line.replace(b'"status_code": 200', b'"status_code": "200"'),
        answered({"usage": {"prompt_tokens": "3"}}).line,
    ]


@of_bytes(_result_lines)
def result_line(data: bytes) -> None:
    """A line of an output is a result whose tokens and outcome can be asked for, or a ValueError."""
    try:
        found = BatchResult.read(data)
    except ValueError:
        return
    assert isinstance(found.outcome, str)
    assert isinstance(found.failed, bool)
    assert sum(found.tokens) >= 0
    assert json.loads(found.line)["custom_id"] == found.custom_id
