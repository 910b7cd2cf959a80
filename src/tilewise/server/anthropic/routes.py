"""Routes of /v1/messages: conversations as clients of Anthropic's API send them, answered or counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from sys import maxsize
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from tilewise.ignored import Ignored
from tilewise.outputs.parts import AnswerReader
from tilewise.server.anthropic.blocks import MessageEvent, MessageObject, MessageStream, whole_message
from tilewise.server.anthropic.body import CountTokensBody, MessagesBody
from tilewise.server.anthropic.call import count_call, messages_call
from tilewise.server.chat.call import ChatCall
from tilewise.server.chat.routes import prepared
from tilewise.server.context import Context, context_of
from tilewise.server.exchange import EventStream, Router, named_event
from tilewise.server.openapi import GENERATION, JSON_BODY, Operation
from tilewise.server.problems import problem_of
from tilewise.types import Request

router = Router()


class CountedTokens(TypedDict):
    input_tokens: int


@router.on_json(
    "/v1/messages",
    Operation(
        gives="The answer, or the events that tell of it.",
        body=MessagesBody,
        answer=MessageObject,
        events=MessageEvent,
        done=False,
        statuses=GENERATION,
    ),
)
async def messages(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Answer a conversation in the form of Anthropic's Messages API, pictures included."""
    context = context_of(raw)
    service = context.service
    call = messages_call(body, context.served, ignored, raw.state.request_id)
    body.clear()  # of its pictures nothing is to be kept while the answer is made
    async with service.admitted():
        request = await prepared(raw, call, call.reply.id, ignored)
        call = call.without_messages()
        service.check_tokens([request])
        headers = context.load_report(raw, ignored)
        if call.reply.stream:
            return EventStream(_events(context, call, request), service, request.arrival, headers)
        reader = AnswerReader(call.parts)
        [output] = await service.whole([service.group(request)], [[reader]])
        context.log_answers(call.reply.id, output)
        return JSONResponse(whole_message(call, output.outputs[0], reader.parts, output.usage), headers=headers)


async def _events(context: Context, call: ChatCall, request: Request) -> AsyncGenerator[bytes]:
    service = context.service
    group, stream = service.group(request), MessageStream(call, context.config.stream_interval)
    with service.counted():
        try:
            async with aclosing(service.timed(service.pieces(group), request.arrival)) as steps:
                async for pieces in steps:
                    events = [event for piece in pieces for event in stream.take(piece, group.usage)]
                    yield b"".join(map(named_event, events))
            context.log_answers(call.reply.id, group.output())
        except Exception as error:  # of whatever kind: the status has been sent, so the stream has to say it
            yield named_event(stream.failed(problem_of(error)))


@router.on_json(
    "/v1/messages/count_tokens",
    Operation(
        gives="How many tokens the prompt has.",
        body=CountTokensBody,
        answer=CountedTokens,
        statuses=(*JSON_BODY, 504),
    ),
)
async def count_tokens(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Count the tokens of a conversation, pictures and tools included, without an answer."""
    context = context_of(raw)
    service = context.service
    call = count_call(body, context.served, ignored)
    # A prompt may be longer than the context here: that is what one wants to know.
    preparer = replace(service.preparer, max_model_len=maxsize)
    async with service.deadline():
        request = await service.read(
            lambda reader: call.request(preparer, reader), call.prompt.media, context.scope(raw, None), ignored
        )
        return JSONResponse({"input_tokens": len(request.prompt_ids)})
