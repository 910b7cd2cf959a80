"""Routes of /v1/responses: responses are made, and where they are kept, found, cancelled and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.errors import TilewiseError
from tilewise.ignored import Ignored
from tilewise.inputs.grammar import name_unenforced
from tilewise.server.context import Context, context_of
from tilewise.server.disconnect import EventStream
from tilewise.server.errors import Problem
from tilewise.server.fields.tables import RESPONSES
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import RESPONSE_SHAPES
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.bodies import ResponsesBody
from tilewise.server.protocol.response_objects import DeletedResponse, ResponseEvent, ResponseObject
from tilewise.server.requests import chat_request, is_light
from tilewise.server.responses.items import raw_messages, response_object
from tilewise.server.responses.read import NOTHING_KEPT, ResponseCall, response_call
from tilewise.server.responses.store import ResponseStore, StoredResponse, UnknownResponse
from tilewise.server.responses.stream import ResponseStream
from tilewise.server.routes.json_route import exchange, plain_router, problem_of, refusal
from tilewise.server.service import check_strictness
from tilewise.server.streaming import named_event
from tilewise.types import Request

router = plain_router()
OPERATIONS = {
    "responses": Operation(
        gives="The response, or the events that tell of it.",
        body=RequestBody(ResponsesBody, RESPONSES, examples.RESPONSES, RESPONSE_SHAPES),
        answer=ResponseObject,
        events=ResponseEvent,
        done=False,
        statuses=GENERATION,
    ),
    "response": Operation(gives="The response as it is by now.", answer=ResponseObject, statuses=(400, 404)),
    "delete_response": Operation(gives="It is gone.", answer=DeletedResponse, statuses=(404,)),
    "cancel_response": Operation(gives="It is cancelled.", answer=ResponseObject, statuses=(400, 404)),
}


@router.post("/v1/responses")
async def responses(raw: HttpRequest) -> Response:
    """Answer a text or items of a conversation, in the form of OpenAI's Responses API."""
    return await exchange(raw, context_of(raw).service, lambda body, ignored: answer_response(raw, body, ignored))


async def answer_response(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    context = context_of(raw)
    service, store, scope = context.service, context.store, context.scope(raw, None)
    recall = None if store is None else partial(store.conversation, scope)
    call = response_call(body, context.served, ignored, raw.headers.get("x-request-id"), recall)
    service.check_admission()
    async with service.deadline():
        request = await service.read(
            lambda reader: chat_request(call.chat, service.preparer, reader),
            call.chat.prompt.media,
            context.scope(raw, call.chat.routing.cache_salt),
            ignored,
            is_light(call.chat),
        )
        name_unenforced(request, ignored, service.preparer.tokenizer.vocab_size)
        context.log.received(call.id, request)
        kept = None
        if store is not None and call.store:
            kept = KeptResponse(
                store, scope, call, await service.prepare(partial(store.measure, call), is_light(call.chat))
            )
        making = Making(context, call, request, kept)
        if call.background:
            return JSONResponse(making.begin())
        if call.chat.reply.stream:
            return EventStream(making.events())
        return JSONResponse(await making.whole())


@dataclass(frozen=True)
class KeptResponse:
    """The place where a response will be kept: the store, whose it is there, and its size."""

    store: ResponseStore
    scope: str
    call: ResponseCall
    num_bytes: int
    """Bytes of the conversation."""

    def put(self, response: dict[str, Any]) -> StoredResponse:
        return self.store.keep(self.scope, self.call, response, self.num_bytes)


class Making:
    """A response while it is made; afterwards it is kept, if it is to be."""

    def __init__(self, context: Context, call: ResponseCall, request: Request, kept: KeptResponse | None) -> None:
        self._context, self._call, self._request, self._kept = context, call, request, kept
        self._stream, self._group = ResponseStream(call), context.service.group(request)

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self._steps()) as steps:
            async for _ in steps:
                pass
        if self._kept is not None:
            self._kept.put(self._stream.response)
        return self._stream.response

    async def events(self) -> AsyncGenerator[bytes]:
        service = self._context.service
        with service.counted():
            try:
                yield b"".join(map(named_event, self._stream.opening()))
                async with service.deadline(self._request.arrival), aclosing(self._steps()) as steps:
                    async for events in steps:
                        if events:
                            yield b"".join(map(named_event, events))
                if self._kept is not None:
                    self._kept.put(self._stream.response)
            except Exception as error:  # of whatever kind: the status has been sent, so the stream has to say it
                yield b"".join(map(named_event, self._stream.failed(problem_of(error))))

    def begin(self) -> dict[str, Any]:
        """Begin to work in the background, and return the response as it stands. Raises Overloaded."""
        assert self._kept is not None
        queued = response_object(self._call, "queued", [])
        stored = self._kept.put(queued)
        stored.task = asyncio.create_task(self._work(stored))
        return queued

    async def _work(self, stored: StoredResponse) -> None:
        service = self._context.service
        with service.counted():
            try:
                async with service.deadline(self._request.arrival), aclosing(self._steps()) as steps:
                    async for _ in steps:  # the response stays queued until it has ended, as vLLM's do
                        pass
            except Exception as error:  # of whatever kind: whoever asks for the response is told
                self._stream.failed(problem_of(error))
            if self._kept is not None:
                self._kept.store.end(stored, self._stream.response)

    async def _steps(self) -> AsyncGenerator[list[dict[str, Any]]]:
        """Yield the events of each step of the engine."""
        async with aclosing(self._context.service.pieces(self._group)) as steps:
            async for pieces in steps:
                events = [event for piece in pieces for event in self._stream.take(piece, self._group.usage)]
                if self._stream.response["status"] == "completed":
                    answer = self._group.output().outputs[0]
                    await check_strictness(self._call.chat, answer, self._stream.response, self._context.service)
                yield events
        if self._call.raw_messages:
            self._stream.response.update(raw_messages(self._group.output()))
        self._context.log.answered(self._call.id, self._group)


@router.get("/v1/responses/{response_id}")
async def response(raw: HttpRequest) -> Response:
    """A response that is kept, or worked on in the background."""
    if raw.query_params.get("stream", "false").lower() not in ("false", "0"):
        problem = Problem(400, "stream is not supported here: ask again until the status is completed.", "stream")
        return JSONResponse(problem.body, problem.status)
    return _with_store(raw, lambda store, scope, name: store.find(scope, name).response)


@router.delete("/v1/responses/{response_id}")
async def delete_response(raw: HttpRequest) -> Response:
    """Keep a response no longer; work on it ends."""

    def delete(store: ResponseStore, scope: str, name: str) -> dict[str, Any]:
        store.delete(scope, name)
        return {"id": name, "object": "response", "deleted": True}

    return _with_store(raw, delete)


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(raw: HttpRequest) -> Response:
    """End the work on a response in the background."""
    return _with_store(raw, lambda store, scope, name: store.cancel(scope, name).response)


def _with_store(raw: HttpRequest, work: Callable[[ResponseStore, str, str], dict[str, Any]]) -> Response:
    context, name = context_of(raw), raw.path_params["response_id"]
    try:
        if context.store is None:
            raise UnknownResponse(f"Response with id '{name[:140]}' not found: {NOTHING_KEPT}.")
        return JSONResponse(work(context.store, context.scope(raw, None), name))
    except TilewiseError as error:
        return refusal(error, context.service)
