"""POST /v1/chat/completions, and /v1/chat/completions/batch: several conversations answered side by side."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.grammar import name_unenforced
from tilewise.server.calls import ChatCall
from tilewise.server.chat_answers import ChatStream, ReasoningCount, chat_body, usage_body
from tilewise.server.completion import MAX_PROMPTS
from tilewise.server.context import Context, context_of
from tilewise.server.convert import chat_call
from tilewise.server.disconnect import EventStream
from tilewise.server.fields.field import FieldTable, refused
from tilewise.server.fields.tables import CHAT
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import BATCH_SHAPES, CHAT_SHAPES
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.answers import ChatChunk, ChatCompletion
from tilewise.server.protocol.bodies import BatchedChatBody, ChatBody
from tilewise.server.requests import chat_request, is_light
from tilewise.server.routes.completions import all_answers
from tilewise.server.routes.json_route import exchange, guarded, plain_router
from tilewise.server.service import check_answers, check_strictness
from tilewise.server.streaming import ChunkInterval, data_event
from tilewise.types import Request, Usage

router = plain_router()
BODY = RequestBody(ChatBody, CHAT, examples.CHAT, CHAT_SHAPES)
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
    """Return the engine's request for a conversation, its media read; what of them was left out goes into `ignored`."""
    preparer, scope = context.service.preparer, context.scope(raw, call.routing.cache_salt)
    request = await context.service.read(
        lambda reader: chat_request(call, preparer, reader), call.prompt.media, scope, ignored, is_light(call)
    )
    name_unenforced(request, ignored, preparer.tokenizer.vocab_size)
    return request


async def chat_events(context: Context, call: ChatCall, request: Request) -> AsyncGenerator[bytes]:
    service = context.service
    group, stream = service.group(request), ChatStream(call, request.prompt_ids)
    interval = ChunkInterval(context.config.stream_interval)
    async with service.deadline(request.arrival), aclosing(service.pieces(group)) as steps:
        async for pieces in steps:
            chunks = [chunk for piece in pieces for chunk in stream.take(interval.hold(piece), group.usage)]
            for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]):
                await check_strictness(call, group.output().outputs[choice["index"]], choice, service)
            yield b"".join(map(data_event, chunks))
    for chunk in stream.finish(group.usage):
        yield data_event(chunk | context.times_of(group.output()))
    context.log.answered(call.reply.id, group)


_REFUSED = (
    refused("n", "A batch has one answer for each conversation: send a conversation as often.", 1),
    refused("stream", "A batch comes whole: send false, or conversations on their own.", False),
    refused("stream_options", "A batch is not streamed: leave it out.", {}),
    refused("tools", "A batch calls no tools: send conversations with tools on their own.", []),
    refused("tool_choice", "A batch calls no tools: leave it out.", "none"),
)
BATCH = FieldTable("/v1/chat/completions/batch", BatchedChatBody, (*_REFUSED, *CHAT.others))
OPERATIONS |= {
    "batched_chat_completions": Operation(
        gives="One choice for each conversation, in their order.",
        body=RequestBody(BatchedChatBody, BATCH, examples.BATCHED_CHAT, BATCH_SHAPES),
        answer=ChatCompletion,
        statuses=GENERATION,
    )
}


@router.post("/v1/chat/completions/batch")
async def batched_chat_completions(raw: HttpRequest) -> Response:
    """Answer several conversations at once, pictures and videos included; not streamed, and without tools."""
    return await exchange(raw, context_of(raw).service, lambda body, ignored: answer_batch(raw, body, ignored))


async def answer_batch(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    context = context_of(raw)
    service = context.service
    conversations = _conversations(body)
    calls = [
        chat_call({**body, "messages": messages}, context.served, ignored, raw.headers.get("x-request-id"))
        for messages in conversations
    ]
    service.check_admission()
    async with service.deadline():
        requests = await asyncio.gather(*(prepared(raw, context, call, ignored) for call in calls))
        name = calls[0].reply.id
        for request in requests:
            context.log.received(name, request)
        reasoning = [ReasoningCount(call) for call in calls]
        outputs = await all_answers(context, name, requests, [count.take for count in reasoning])
        answers = [chat_body(call, output) for call, output in zip(calls, outputs, strict=True)]
        for call, output, answer in zip(calls, outputs, answers, strict=True):
            await check_answers(call, output, answer, service)
        headers = context.load_report(raw, ignored)
        tokens = sum(count.tokens for count in reasoning)
        return JSONResponse(_joined(answers, [output.usage for output in outputs], tokens), headers=headers)


def _conversations(body: dict[str, Any]) -> list[Any]:
    """Return the conversations of a body. Raises InvalidField, for fields that a batch cannot have as well."""
    for field in _REFUSED:
        if body.get(field.name) is not None and not field.asks_nothing(body[field.name]):
            raise InvalidField(field.name, f"{field.name} is not supported: {field.note}")
    found = body.get("messages")
    if not isinstance(found, list) or not found or not all(isinstance(one, list) and one for one in found):
        raise InvalidField("messages", "messages must be a list of conversations, each a list of at least one message.")
    if len(found) > MAX_PROMPTS:
        raise InvalidField("messages", f"messages has {len(found)} conversations, the most are {MAX_PROMPTS}.")
    return found


def _joined(answers: list[dict[str, Any]], usages: list[Usage], reasoning_tokens: int) -> dict[str, Any]:
    """Return the first answer's head with the choices of all answers, and their usage together."""
    fields = (field.name for field in dataclasses.fields(Usage))
    total = Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in fields})
    choices = [{**answer["choices"][0], "index": number} for number, answer in enumerate(answers)]
    return {**answers[0], "choices": choices, "usage": usage_body(total, reasoning_tokens)}
