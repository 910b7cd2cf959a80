"""POST /v1/responses, without anything stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.ignored import Ignored
from tilewise.inputs.grammar import name_unenforced
from tilewise.server.context import Context, context_of
from tilewise.server.disconnect import EventStream
from tilewise.server.events import named_event
from tilewise.server.fields import RESPONSES
from tilewise.server.fulfilment import check_strictness
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import ITEMS
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.response_objects import ResponseEvent, ResponseObject
from tilewise.server.protocol.responses import ResponsesBody
from tilewise.server.requests import chat_request, is_light
from tilewise.server.responses.read import ResponseCall, response_call
from tilewise.server.responses.stream import ResponseStream
from tilewise.server.routes.exchange import exchange, problem_of
from tilewise.server.routes.route import plain_router
from tilewise.types import Request

router = plain_router()
OPERATIONS = {
    "responses": Operation(
        gives="The response, or the events that tell of it.",
        body=RequestBody(ResponsesBody, RESPONSES, examples.RESPONSES, ITEMS),
        answer=ResponseObject,
        events=ResponseEvent,
        done=False,
        statuses=GENERATION,
    )
}


@router.post("/v1/responses")
async def responses(raw: HttpRequest) -> Response:
    """Answer a text or items of a conversation, in the form of OpenAI's Responses API."""
    context = context_of(raw)
    service = context.service

    async def work(body: dict[str, Any], ignored: Ignored) -> Response:
        call = response_call(body, context.served, ignored, raw.headers.get("x-request-id"))
        service.check_admission()
        async with service.deadline():
            scope = context.scope(raw, call.chat.routing.cache_salt)
            prompt, light = call.chat.prompt, is_light(call.chat)
            request = await service.read(
                lambda reader: chat_request(call.chat, service.preparer, reader), prompt.media, scope, ignored, light
            )
            name_unenforced(request, ignored)
            context.log.received(call.id, request)
            if call.chat.reply.stream:
                return EventStream(response_events(context, call, request))
            stream, group = ResponseStream(call), service.group(request)
            async with aclosing(service.pieces(group)) as steps:
                async for pieces in steps:
                    for piece in pieces:
                        stream.take(piece, group.usage)
            await check_strictness(call.chat, group.output().outputs[0], stream.response, service)
            context.log.answered(call.id, group)
            return JSONResponse(stream.response)

    return await exchange(raw, service, work)


async def response_events(context: Context, call: ResponseCall, request: Request) -> AsyncGenerator[bytes]:
    service = context.service
    stream, group = ResponseStream(call), service.group(request)
    with service.counted():
        try:
            yield b"".join(map(named_event, stream.opening()))
            async with service.deadline(request.arrival), aclosing(service.pieces(group)) as steps:
                async for pieces in steps:
                    events = [event for piece in pieces for event in stream.take(piece, group.usage)]
                    for event in (event for event in events if event["type"] == "response.completed"):
                        await check_strictness(call.chat, group.output().outputs[0], event["response"], service)
                    if events:
                        yield b"".join(map(named_event, events))
            context.log.answered(call.id, group)
        except Exception as error:  # of whatever kind: the status has been sent, so the stream has to say it
            yield b"".join(map(named_event, stream.failed(problem_of(error))))
