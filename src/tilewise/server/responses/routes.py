"""Routes of /v1/responses: responses are made, and where they are kept, found, cancelled and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from tilewise.errors import TilewiseError
from tilewise.ignored import Ignored
from tilewise.server.chat.routes import check_schema, prepared
from tilewise.server.context import Context, context_of
from tilewise.server.exchange import EventStream, Router, named_event, refusal
from tilewise.server.openapi import GENERATION, Operation
from tilewise.server.problems import Problem, problem_of
from tilewise.server.responses.body import ResponsesBody
from tilewise.server.responses.call import NOTHING_KEPT, ResponseCall, response_call
from tilewise.server.responses.items import ResponseEvent, ResponseObject, listed_item, raw_message, response_object
from tilewise.server.responses.store import ResponseStore, StoredResponse, UnknownResponse
from tilewise.server.responses.stream import ResponseStream
from tilewise.types import Request

router = Router()
_STORED = Operation(gives="The response as it is by now.", answer=ResponseObject, statuses=(400, 404))


class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(TypedDict):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False]


@router.on_json(
    "/v1/responses",
    Operation(
        gives="The response, or the events that tell of it.",
        body=ResponsesBody,
        answer=ResponseObject,
        events=ResponseEvent,
        done=False,
        statuses=GENERATION,
    ),
)
async def responses(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Answer a text or items of a conversation, in the form of OpenAI's Responses API."""
    context = context_of(raw)
    service, store, scope = context.service, context.store, context.scope(raw, None)
    recall = None if store is None else partial(store.conversation, scope)
    call = response_call(body, context.served, ignored, raw.state.request_id, recall)
    body.clear()
    async with service.admitted():
        request = await prepared(raw, call.chat, call.id, ignored)
        service.check_tokens([request])
        headers, stored = context.load_report(raw, ignored), None
        if store is not None and call.store:
            size = await service.prepare(partial(store.measure, call), call.chat.is_light)
            # Room for it is taken now: an answer that has been given cannot be refused for want of room any more.
            begun = response_object(call, "queued" if call.background else "in_progress", [])
            stored = store.keep(scope, call, begun, measured=size)
        call = call.without_messages()  # megabytes of pictures, while an answer may take minutes
        run = ResponseRun(context, call, request, stored)
        if call.background:
            return JSONResponse(run.begin(), headers=headers)
        if call.chat.reply.stream:
            return EventStream(run.events(), service, request.arrival, headers)
        return JSONResponse(await run.whole(), headers=headers)


class ResponseRun:
    """One response while it is generated: streamed, whole or in the background. Afterwards it may be kept."""

    def __init__(self, context: Context, call: ResponseCall, request: Request, stored: StoredResponse | None) -> None:
        self._context, self._call, self._request, self._stored = context, call, request, stored
        interval = context.config.stream_interval if call.chat.reply.stream else 1
        self._stream, self._group = ResponseStream(call, interval), context.service.group(request)

    async def whole(self) -> ResponseObject:
        with self._kept():
            await self._finish()
        return self._stream.response

    async def events(self) -> AsyncGenerator[bytes]:
        with self._context.service.counted(), self._kept():
            try:
                yield b"".join(map(named_event, self._stream.opening()))
                async with aclosing(self._steps()) as steps:
                    async for events in steps:
                        yield b"".join(map(named_event, events))
            except Exception as error:  # of whatever kind: the status has been sent, so the stream has to say it
                yield b"".join(map(named_event, self._stream.failed(problem_of(error))))

    def begin(self) -> ResponseObject:
        """Begin to work in the background, and return the response as it stands."""
        assert self._stored is not None
        self._stored.task = asyncio.create_task(self._work())
        return self._stored.response

    async def _work(self) -> None:
        with self._context.service.counted(), self._kept():
            try:
                await self._finish()  # until then the response stays queued, as vLLM's do
            except Exception as error:  # of whatever kind: whoever asks for the response is told
                self._stream.failed(problem_of(error))

    @contextmanager
    def _kept(self) -> Generator[None]:
        """Store the response as it is behind the block; drop one that did not come to its end, its client having left.

        Work in the background that is cancelled is stored, or dropped, by who cancels it.
        """
        try:
            yield
        finally:
            store, stored, response = self._context.store, self._stored, self._stream.response
            if store is not None and stored is not None:
                if response["status"] not in ("queued", "in_progress"):
                    store.end(stored, response)
                elif stored.task is None:
                    store.discard(stored)

    async def _finish(self) -> None:
        async with aclosing(self._steps()) as steps:
            async for _ in steps:
                pass

    async def _steps(self) -> AsyncGenerator[list[ResponseEvent]]:
        """Yield the events of each step of the engine. Raises Expired, counted from the request's arrival."""
        service = self._context.service
        async with aclosing(service.timed(service.pieces(self._group), self._request.arrival)) as steps:
            async for pieces in steps:
                events = [event for piece in pieces for event in self._stream.take(piece, self._group.usage)]
                if self._stream.response["status"] == "completed":
                    await check_schema(self._stream.response, self._call.chat, self._stream.reader.parts, service)
                yield events
        output, response = self._group.output(), self._stream.response
        if self._call.raw_messages:
            answer = output.outputs[0]
            response["input_messages"] = [raw_message(output.prompt or "", output.prompt_token_ids)]
            response["output_messages"] = [raw_message(answer.text, answer.token_ids)]
        self._context.log_answers(self._call.id, output)


@router.on("GET", "/v1/responses/{response_id}", _STORED)
async def response(raw: HttpRequest) -> Response:
    """A response that is kept, or worked on in the background."""
    if raw.query_params.get("stream", "false").lower() not in ("false", "0"):
        what = "stream is not supported here: ask again until the status is completed."
        return Problem(400, what, "stream").response()
    return _with_store(raw, lambda store, scope, name: store.find(scope, name).response)


@router.on(
    "GET",
    "/v1/responses/{response_id}/input_items",
    Operation(gives="The items before the response, the newest first.", answer=InputItems, statuses=(400, 404)),
)
async def input_items(raw: HttpRequest) -> Response:
    """The items of the conversation that a response that is kept has answered."""

    def listed(store: ResponseStore, scope: str, name: str) -> InputItems:
        given = store.find(scope, name).call.items
        items = [listed_item(item, f"msg_{name.removeprefix('resp_')}_{number}") for number, item in enumerate(given)]
        if raw.query_params.get("order", "desc") != "asc":
            items.reverse()
        first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
        return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": False}

    return _with_store(raw, listed)


@router.on(
    "DELETE", "/v1/responses/{response_id}", Operation(gives="It is gone.", answer=DeletedResponse, statuses=(404,))
)
async def delete_response(raw: HttpRequest) -> Response:
    """Keep a response no longer; work on it ends."""

    def delete(store: ResponseStore, scope: str, name: str) -> DeletedResponse:
        store.delete(scope, name)
        return {"id": name, "object": "response", "deleted": True}

    return _with_store(raw, delete)


@router.on("POST", "/v1/responses/{response_id}/cancel", replace(_STORED, gives="It is cancelled."))
async def cancel_response(raw: HttpRequest) -> Response:
    """End the work on a response in the background."""
    return _with_store(raw, lambda store, scope, name: store.cancel(scope, name).response)


def _with_store(raw: HttpRequest, work: Callable[[ResponseStore, str, str], Mapping[str, Any]]) -> Response:
    context, name = context_of(raw), raw.path_params["response_id"]
    try:
        if context.store is None:
            raise UnknownResponse(f"Response with id '{name[:140]}' not found: {NOTHING_KEPT}.")
        return JSONResponse(work(context.store, context.scope(raw, None), name))
    except TilewiseError as error:
        return refusal(error, context.service)
