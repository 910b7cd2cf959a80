"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.ignored import Ignored
from tilewise.inputs.grammar import name_unenforced
from tilewise.server.calls import ChatCall
from tilewise.server.context import Context, context_of
from tilewise.server.convert import chat_call
from tilewise.server.disconnect import EventStream
from tilewise.server.events import data_event
from tilewise.server.fields import CHAT
from tilewise.server.fulfilment import check_answers, check_strictness
from tilewise.server.interval import Interval
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import CONVERSATION
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.answers import ChatChunk, ChatCompletion
from tilewise.server.protocol.chat import ChatBody
from tilewise.server.requests import chat_request, is_light
from tilewise.server.respond import ReasoningCount, chat_body
from tilewise.server.routes.exchange import exchange, guarded
from tilewise.server.routes.route import plain_router
from tilewise.server.stream import ChatStream
from tilewise.types import Request

router = plain_router()
BODY = RequestBody(ChatBody, CHAT, examples.CHAT, CONVERSATION)
OPERATIONS = {
    "chat_completions": Operation(
        gives="The answers, or their chunks as they come.",
        body=BODY,
        answer=ChatCompletion,
        events=ChatChunk,
        statuses=GENERATION,
    )
}


@router.post("/v1/chat/completions")
async def chat_completions(raw: HttpRequest) -> Response:
    """Answer a conversation, pictures and videos included."""
    return await exchange(raw, context_of(raw).service, lambda body, ignored: answer_chat(raw, body, ignored))


async def answer_chat(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    context = context_of(raw)
    service = context.service
    call = chat_call(body, context.served, ignored, raw.headers.get("x-request-id"))
    service.check_admission()
    async with service.deadline():
        request = await prepared(raw, context, call, ignored)
        context.log.received(call.reply.id, request)
        headers = context.load_report(raw, ignored)
        if call.reply.stream:
            return EventStream(guarded(chat_events(context, call, request), service), headers)
        reasoning = ReasoningCount(call)
        group = await service.whole(request, reasoning.take)
        output = group.output()
        answer = chat_body(call, output, reasoning.tokens) | context.times_of(output)
        await check_answers(call, output, answer, service)
        context.log.answered(call.reply.id, group)
        return JSONResponse(answer, headers=headers)


async def prepared(raw: HttpRequest, context: Context, call: ChatCall, ignored: Ignored) -> Request:
    """A conversation as the engine takes it, its media read; what of them was left out goes into `ignored`."""
    preparer, scope = context.service.preparer, context.scope(raw, call.routing.cache_salt)
    request = await context.service.read(
        lambda reader: chat_request(call, preparer, reader), call.prompt.media, scope, ignored, is_light(call)
    )
    name_unenforced(request, ignored, preparer.tokenizer.vocab_size)
    return request


async def chat_events(context: Context, call: ChatCall, request: Request) -> AsyncGenerator[bytes]:
    service = context.service
    group, stream = service.group(request), ChatStream(call, request.prompt_ids)
    interval = Interval(context.config.stream_interval)
    async with service.deadline(request.arrival), aclosing(service.pieces(group)) as steps:
        async for pieces in steps:
            chunks = [chunk for piece in pieces for chunk in stream.take(interval.hold(piece), group.usage)]
            for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]):
                await check_strictness(call, group.output().outputs[choice["index"]], choice, service)
            yield b"".join(map(data_event, chunks))
    for chunk in stream.finish(group.usage):
        yield data_event(chunk | context.times_of(group.output()))
    context.log.answered(call.reply.id, group)
