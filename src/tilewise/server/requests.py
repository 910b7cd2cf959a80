"""Calls to what the engine is asked: here prompts are rendered, media fetched and pictures cut."""

from __future__ import annotations

import time
from dataclasses import replace

from tilewise.errors import TooLong
from tilewise.inputs.chat import MediaReader, read_messages
from tilewise.inputs.prepare import Preparer
from tilewise.sampling_params import SamplingParams
from tilewise.server.calls import ChatCall, ChatPrompt, CompletionCall, Routing
from tilewise.types import Request


def chat_request(call: ChatCall, preparer: Preparer, reader: MediaReader) -> Request:
    """May take as long as a download does; `reader` is the request's own. Raises InvalidRequest, TooLong among them."""
    return _routed(conversation_request(call.prompt, call.sampling, preparer, reader), call.routing, preparer)


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
    )
    return request.with_(arrival=arrival, inputs=replace(reader.watch.timing, preprocess=request.inputs.preprocess))


def completion_requests(call: CompletionCall, preparer: Preparer) -> list[Request]:
    """One request for each prompt."""
    arrival = time.monotonic()
    requests = [
        preparer.prompt(prompt, (), call.sampling, start=call.start, keep_last=call.keep_last)
        for prompt in call.prompts
    ]
    return [_routed(request.with_(arrival=arrival), call.routing, preparer) for request in requests]


def _routed(request: Request, routing: Routing, preparer: Preparer) -> Request:
    """Raises TooLong when the tokens that the body names do not fit; the engine would end the answer early."""
    prompt, wanted = len(request.prompt_ids), routing.max_tokens
    if wanted is not None and prompt + wanted > preparer.max_model_len:
        raise TooLong(
            "Leave max_tokens out for as many as fit.",
            prompt_tokens=prompt,
            limit=preparer.max_model_len,
            output_tokens=wanted,
        )
    return request.with_(priority=routing.priority, cache_salt=routing.cache_salt)
