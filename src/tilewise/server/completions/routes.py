"""POST /v1/completions, and /invocations: the one route of SageMaker, for chat and text completions alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.errors import InvalidRequest
from tilewise.ignored import Ignored
from tilewise.server.bodies import ChatBody, CompletionBody
from tilewise.server.chat.answers import ChatChunk, ChatCompletion
from tilewise.server.chat.routes import chat_completions
from tilewise.server.completions.answers import CompletionStream, Decode, TextChunk, TextCompletion, completion_body
from tilewise.server.completions.call import CompletionCall, completion_call
from tilewise.server.context import Context, context_of
from tilewise.server.exchange import EventStream, Router, data_event, guarded
from tilewise.server.openapi import GENERATION, Operation
from tilewise.server.service import merged
from tilewise.types import Request

router = Router()


@router.on_json(
    "/v1/completions",
    Operation(
        gives="What follows the prompts, or its chunks as they come.",
        body=CompletionBody,
        answer=TextCompletion,
        events=TextChunk,
        statuses=GENERATION,
    ),
)
async def completions(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Continue raw prompts: text, in which special tokens are meant, or token ids."""
    context = context_of(raw)
    service = context.service
    call = completion_call(body, context.served, ignored, raw.state.request_id)
    async with service.admitted():
        requests = await service.prepare(lambda: call.requests(service.preparer), call.is_light)
        for request in requests:
            context.received(call.reply.id, request, ignored)
        service.check_tokens(requests)
        headers, arrival = context.load_report(raw, ignored), requests[0].arrival
        if call.reply.stream:
            return EventStream(guarded(_events(context, call, requests), service), service, arrival, headers)
        outputs = await service.whole(map(service.group, requests))
        for output in outputs:
            context.log_answers(call.reply.id, output)
        answer = completion_body(call, outputs, _decode_of(context))
        context.add_times(answer, *outputs)
        return JSONResponse(answer, headers=headers)


async def _events(context: Context, call: CompletionCall, requests: Sequence[Request]) -> AsyncGenerator[bytes]:
    service = context.service
    groups = [service.group(request) for request in requests]
    stream = CompletionStream(call, requests, _decode_of(context), context.config.stream_interval)
    pieces_of_all = merged([service.pieces(group) for group in groups])
    async with aclosing(service.timed(pieces_of_all, requests[0].arrival)) as steps:
        async for number, pieces in steps:
            group = groups[number]
            chunks = [
                chunk for piece in pieces for chunk in stream.take(number, piece, group.usage, group.prompt_logprobs)
            ]
            yield b"".join(map(data_event, chunks))
    for chunk in stream.finish([group.usage for group in groups]):
        context.add_times(chunk, *(group.output() for group in groups))
        yield data_event(chunk)
    for group in groups:
        context.log_answers(call.reply.id, group.output())


def _decode_of(context: Context) -> Decode:
    return partial(context.service.preparer.tokenizer.decode, skip_special_tokens=False)


@router.on_json(
    "/invocations",
    Operation(
        gives="What /v1/chat/completions answers to a body with messages, and /v1/completions to one with a prompt.",
        body=(ChatBody, CompletionBody),
        answer=(ChatCompletion, TextCompletion),
        events=(ChatChunk, TextChunk),
        statuses=GENERATION,
    ),
)
async def invocations(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Answer a body as the route does that takes such bodies, as SageMaker asks."""
    if "messages" in body:
        return await chat_completions(raw, body, ignored)
    if "prompt" in body:
        return await completions(raw, body, ignored)
    raise InvalidRequest(
        "/invocations takes bodies of /v1/chat/completions, which have messages, and of /v1/completions, which "
        "have a prompt: send one of them."
    )
