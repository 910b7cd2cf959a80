"""POST /v1/completions"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.ignored import Ignored
from tilewise.inputs.grammar import name_unenforced
from tilewise.outputs.group import AnswerDelta, AnswerGroup
from tilewise.server.calls import CompletionCall
from tilewise.server.completion import CompletionStream, Decode, completion_body, completion_call
from tilewise.server.context import Context, context_of
from tilewise.server.disconnect import EventStream
from tilewise.server.fields.tables import COMPLETION
from tilewise.server.openapi import examples
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.answers import TextChunk, TextCompletion
from tilewise.server.protocol.bodies import CompletionBody
from tilewise.server.requests import completion_requests, is_light
from tilewise.server.routes.json_route import exchange, guarded, plain_router
from tilewise.server.streaming import ChunkInterval, data_event, merged
from tilewise.types import Request, RequestOutput

router = plain_router()
BODY = RequestBody(CompletionBody, COMPLETION, examples.COMPLETION)
OPERATIONS = {
    "completions": Operation(
        gives="What follows the prompts, or its chunks as they come.",
        body=BODY,
        answer=TextCompletion,
        events=TextChunk,
        statuses=GENERATION,
    )
}


@router.post("/v1/completions")
async def completions(raw: HttpRequest) -> Response:
    """Continue raw prompts: text, in which special tokens are meant, or token ids."""
    return await exchange(raw, context_of(raw).service, lambda body, ignored: answer_completion(raw, body, ignored))


async def answer_completion(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    context = context_of(raw)
    service = context.service
    call = completion_call(body, context.served, ignored, raw.headers.get("x-request-id"))
    service.check_admission()
    async with service.deadline():
        requests = await service.prepare(lambda: completion_requests(call, service.preparer), is_light(call))
        for request in requests:
            name_unenforced(request, ignored, service.preparer.tokenizer.vocab_size)
            context.log.received(call.reply.id, request)
        headers = context.load_report(raw, ignored)
        if call.reply.stream:
            return EventStream(guarded(completion_events(context, call, requests), service), headers)
        outputs = await all_answers(context, call.reply.id, requests)
        answer = completion_body(call, outputs, decode_of(context)) | context.times_of(*outputs)
        return JSONResponse(answer, headers=headers)


async def all_answers(
    context: Context, name: str, requests: Sequence[Request], see: Sequence[Callable[[AnswerDelta], None]] = ()
) -> list[RequestOutput]:
    """Return the answers to several requests when all of them have ended; each of `see` is shown one's tokens."""
    service = context.service
    groups = [service.group(request) for request in requests]
    async with aclosing(merged([service.pieces(group) for group in groups])) as steps:
        async for number, pieces in steps:
            for piece in pieces if see else ():
                see[number](piece)
    for group in groups:
        context.log.answered(name, group)
    return [group.output() for group in groups]


async def completion_events(
    context: Context, call: CompletionCall, requests: Sequence[Request]
) -> AsyncGenerator[bytes]:
    service = context.service
    groups: list[AnswerGroup] = [service.group(request) for request in requests]
    stream = CompletionStream(call, requests, decode_of(context))
    intervals = [ChunkInterval(context.config.stream_interval) for _ in groups]
    steps = merged([service.pieces(group) for group in groups])
    async with service.deadline(requests[0].arrival), aclosing(steps):
        async for number, pieces in steps:
            usage, interval = groups[number].usage, intervals[number]
            chunks = [chunk for piece in pieces for chunk in stream.take(number, interval.hold(piece), usage)]
            yield b"".join(map(data_event, chunks))
    for chunk in stream.finish([group.usage for group in groups]):
        yield data_event(chunk | context.times_of(*(group.output() for group in groups)))
    for group in groups:
        context.log.answered(call.reply.id, group)


def decode_of(context: Context) -> Decode:
    return partial(context.service.preparer.tokenizer.decode, skip_special_tokens=False)
