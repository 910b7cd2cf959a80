"""Engine requests made from calls: prompts are rendered, media fetched and pictures cut."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tilewise.errors import InvalidField, InvalidRequest, TooLong
from tilewise.inputs.messages import MediaReader, read_messages
from tilewise.inputs.prepare import Preparer
from tilewise.sampling_params import SamplingParams
from tilewise.server.calls import ChatCall, ChatPrompt, CompletionCall, Routing
from tilewise.types import Request

_FORM = re.compile(r"^structured_outputs\.\w+")


_LIGHT = 2048  # characters that are tokenized sooner than a thread would begin to


def is_light(call: ChatCall | CompletionCall) -> bool:
    """True if a call is so little work that it may be done on the event loop: a short text and nothing else."""
    if call.sampling.structured_outputs is not None:
        return False
    if isinstance(call, CompletionCall):
        return sum(map(len, call.prompts)) <= _LIGHT
    texts = [message["content"] for message in call.prompt.messages if message.keys() == {"role", "content"}]
    plain = len(texts) == len(call.prompt.messages) and not call.prompt.tools
    return plain and sum(len(text) if isinstance(text, str) else _LIGHT + 1 for text in texts) <= _LIGHT


def chat_request(call: ChatCall, preparer: Preparer, reader: MediaReader) -> Request:
    """Return the engine's request for a chat call, with its media read by `reader`, which is the request's own.

    May take as long as a download does. Raises InvalidRequest, TooLong among them.
    """
    with naming_form(call.form_field):
        request = conversation_request(call.prompt, call.sampling, preparer, reader)
    return _routed(request, call.routing, preparer)


@contextmanager
def naming_form(field: str) -> Iterator[None]:
    """Make errors about an answer's form name `field`, where the body asks for it, in place of `structured_outputs`."""
    try:
        yield
    except InvalidRequest as error:
        if type(error) is not InvalidRequest or not str(error).startswith("structured_outputs."):
            raise
        text = str(error) if field == "structured_outputs" else _FORM.sub(lambda _: field, str(error))
        raise InvalidField(field, text) from None


def conversation_request(
    prompt: ChatPrompt, sampling: SamplingParams, preparer: Preparer, reader: MediaReader
) -> Request:
    arrival = time.monotonic()  # before media are fetched and decoded: waiting for them is waiting too
    messages, media = read_messages(prompt.messages, reader)
    request = preparer.chat(
        messages,
        media,
        sampling,
        processor=prompt.processor,
        thinking=prompt.thinking,
        tools=prompt.tools,
        ending=prompt.ending,
        keep_last=prompt.keep_last,
        cut=prompt.cut,
    )
    return request.with_(arrival=arrival, inputs=replace(reader.watch.timing, preprocess=request.inputs.preprocess))


def completion_requests(call: CompletionCall, preparer: Preparer) -> list[Request]:
    """Return one engine request for each prompt."""
    arrival = time.monotonic()
    with naming_form(call.form_field):
        requests = [
            preparer.prompt(prompt, (), call.sampling, start=call.start, keep_last=call.keep_last, cut=call.cut)
            for prompt in call.prompts
        ]
    return [_routed(request.with_(arrival=arrival), call.routing, preparer) for request in requests]


def _routed(request: Request, routing: Routing, preparer: Preparer) -> Request:
    """Return the request with its priority and cache salt.

    Raises TooLong when the tokens that the body names do not fit; the engine would end the answer early.
    """
    prompt, wanted = len(request.prompt_ids), routing.max_tokens
    if wanted is not None and prompt + wanted > preparer.max_model_len:
        raise TooLong(
            "Leave max_tokens out for as many as fit.",
            prompt_tokens=prompt,
            limit=preparer.max_model_len,
            output_tokens=wanted,
        )
    return request.with_(priority=routing.priority, cache_salt=routing.cache_salt)
