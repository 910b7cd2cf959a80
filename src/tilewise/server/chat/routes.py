"""POST /v1/chat/completions, and /v1/chat/completions/batch: several conversations answered side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.prepared_schema import schema_faults
from tilewise.outputs.parts import AnswerParts, AnswerReader
from tilewise.server.answers import SchemaChecked, total_usage, usage_body
from tilewise.server.bodies import NOT_IN_BATCHES, BatchedChatBody, ChatBody
from tilewise.server.chat.answers import ChatChunk, ChatCompletion, ChatStream, chat_body
from tilewise.server.chat.call import ChatCall, chat_call
from tilewise.server.completions.call import MAX_PROMPTS
from tilewise.server.context import Context, context_of
from tilewise.server.exchange import EventStream, Router, data_event, guarded
from tilewise.server.openapi import GENERATION, Operation
from tilewise.server.service import AnswerService
from tilewise.types import Request, Usage

router = Router()


@router.on_json(
    "/v1/chat/completions",
    Operation(
        gives="The answers, or their chunks as they come.",
        body=ChatBody,
        answer=ChatCompletion,
        events=ChatChunk,
        statuses=GENERATION,
    ),
)
async def chat_completions(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Answer a conversation, pictures and videos included."""
    context = context_of(raw)
    service = context.service
    call = chat_call(body, context.served, ignored, raw.state.request_id)
    body.clear()  # of its pictures nothing is to be kept while the answer is made
    async with service.admitted():
        request = await prepared(raw, call, call.reply.id, ignored)
        call = call.without_messages()
        service.check_tokens([request])
        headers = context.load_report(raw, ignored)
        if call.reply.stream:
            return EventStream(guarded(_events(context, call, request), service), service, request.arrival, headers)
        readers = [AnswerReader(call.parts) for _ in range(call.sampling.n)]
        [output] = await service.whole([service.group(request)], [readers])
        answer = chat_body(call, output, readers)
        context.add_times(answer, output)
        for choice, reader in zip(answer["choices"], readers, strict=True):
            if choice["finish_reason"] != "length":  # else it was cut short, and no schema says how much of it is there
                await check_schema(choice, call, reader.parts, service)
        context.log_answers(call.reply.id, output)
        return JSONResponse(answer, headers=headers)


async def prepared(raw: HttpRequest, call: ChatCall, name: str, ignored: Ignored) -> Request:
    """Return the engine's request for a conversation, its media read; what of them was left out goes into `ignored`.

    It is logged under `name`.
    """
    context = context_of(raw)
    preparer, scope = context.service.preparer, context.scope(raw, call.cache_salt)
    request = await context.service.read(
        lambda reader: call.request(preparer, reader), call.prompt.media, scope, ignored, call.is_light
    )
    context.received(name, request, ignored)
    return request


async def check_schema(body: SchemaChecked, call: ChatCall, parts: AnswerParts, service: AnswerService) -> None:
    """Add to the body of a whole answer how that violates the schema of which `strict: true` was asked."""
    pairs = call.strict_pairs(parts)
    found = await service.prepare(lambda: schema_faults(pairs)) if pairs else []
    if faults := [fault for faults in found for fault in faults]:
        body["schema_errors"] = faults


async def _events(context: Context, call: ChatCall, request: Request) -> AsyncGenerator[bytes]:
    service = context.service
    group, stream = service.group(request), ChatStream(call, request.prompt_ids, context.config.stream_interval)
    async with aclosing(service.timed(service.pieces(group), request.arrival)) as steps:
        async for pieces in steps:
            chunks = [chunk for piece in pieces for chunk in stream.take(piece, group.usage)]
            for choice in (choice for chunk in chunks for choice in chunk["choices"]):
                if choice["finish_reason"] not in (None, "length"):
                    await check_schema(choice, call, stream.readers[choice["index"]].parts, service)
            yield b"".join(map(data_event, chunks))
    for chunk in stream.finish(output := group.output()):
        context.add_times(chunk, output)
        yield data_event(chunk)
    context.log_answers(call.reply.id, output)


@router.on_json(
    "/v1/chat/completions/batch",
    Operation(
        gives="One choice for each conversation, in their order.",
        body=BatchedChatBody,
        answer=ChatCompletion,
        statuses=GENERATION,
    ),
)
async def batched_chat_completions(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Answer several conversations at once, pictures and videos included; not streamed, and without tools."""
    context = context_of(raw)
    service = context.service
    calls = [
        chat_call({**body, "messages": messages}, context.served, ignored, raw.state.request_id)
        for messages in _conversations(body)
    ]
    async with service.admitted():
        name = calls[0].reply.id
        preparing = [asyncio.ensure_future(prepared(raw, call, name, ignored)) for call in calls]
        try:
            requests = await asyncio.gather(*preparing)
        finally:
            for task in preparing:  # once one has failed, nobody wants the others
                task.cancel()
        service.check_tokens(requests)
        calls = [call.without_messages() for call in calls]
        body.clear()
        readers = [[AnswerReader(call.parts)] for call in calls]
        outputs = await service.whole(map(service.group, requests), readers)
        answers = []
        for call, output, one in zip(calls, outputs, readers, strict=True):
            context.log_answers(name, output)
            answer = chat_body(call, output, one)
            if answer["choices"][0]["finish_reason"] != "length":
                await check_schema(answer["choices"][0], call, one[0].parts, service)
            answers.append(answer)
        headers = context.load_report(raw, ignored)
        tokens = sum(one[0].reasoning_tokens for one in readers)
        return JSONResponse(_joined(answers, [output.usage for output in outputs], tokens), headers=headers)


def _conversations(body: dict[str, Any]) -> list[Any]:
    """Return the conversations of a body. Raises InvalidField, for fields that a batch cannot have as well."""
    for field in NOT_IN_BATCHES:
        if body.get(field.name) is not None:
            field.take(body[field.name], Ignored())
    found = body.get("messages")
    if not isinstance(found, list) or not found or not all(isinstance(one, list) and one for one in found):
        raise InvalidField("messages", "messages must be a list of conversations, each a list of at least one message.")
    if len(found) > MAX_PROMPTS:
        raise InvalidField("messages", f"messages has {len(found)} conversations, the most are {MAX_PROMPTS}.")
    return found


def _joined(answers: list[ChatCompletion], usages: list[Usage], reasoning_tokens: int) -> ChatCompletion:
    """Return the first answer's head with the choices of all answers, and their usage together."""
    for number, answer in enumerate(answers):
        answer["choices"][0]["index"] = number
    choices = [answer["choices"][0] for answer in answers]
    return {**answers[0], "choices": choices, "usage": usage_body(total_usage(usages), reasoning_tokens)}
