"""JSON over HTTP, as all routes share it: a body comes in, an answer or events go out, and errors are said."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial, wraps
from typing import Any, NoReturn, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tilewise.errors import EngineDead, InvalidField, InvalidRequest, Overloaded
from tilewise.ignored import Ignored
from tilewise.server.context import context_of
from tilewise.server.openapi import Operation
from tilewise.server.problems import problem_of
from tilewise.server.request_id import HEADER, RULE
from tilewise.server.service import AnswerService

_LARGE = 2**18  # bytes of a body that is parsed in a thread
_CLIENT_LEFT = 499  # nginx's; nobody reads it but the access log
_RETRY_AFTER = 1  # seconds, for requests that are one too many
IGNORED_HEADER = "x-tilewise-ignored"
_MOST_NAMED = 1024  # characters of that header
_UNSAFE = re.compile(r"[^\w.-]", re.ASCII)

Plain = Callable[[Request], Awaitable[Response]]
Work = Callable[[Request, dict[str, Any], Ignored], Coroutine[Any, Any, Response]]
"""A function that answers a body, and adds what of it has no effect to the `Ignored` before the answer begins."""


class _PlainRoute(APIRoute):
    """A route whose function gets the request and returns the response; FastAPI neither parses nor validates."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        plain: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return plain


class Router(APIRouter):
    """Routes that write their answers themselves, each with the operation that describes it in the OpenAPI document."""

    def __init__(self) -> None:
        super().__init__(route_class=_PlainRoute)
        self.operations: dict[str, Operation] = {}
        """Operations by the names of their routes."""

    def on(self, methods: str, path: str, operation: Operation) -> Callable[[Plain], Plain]:
        """Make a function answer a path; `methods` are separated by blanks."""

        def add(answer: Plain) -> Plain:
            self.add_api_route(path, answer, methods=methods.split())
            self.operations[answer.__name__] = operation
            return answer

        return add

    def on_json(self, path: str, operation: Operation) -> Callable[[Work], Work]:
        """Make a function answer what is posted to a path, an object of JSON."""

        def add(work: Work) -> Work:
            @wraps(work)
            async def answer(raw: Request) -> Response:
                return await exchange(raw, work)

            self.on("POST", path, operation)(answer)
            return work

        return add


async def exchange(raw: Request, work: Work) -> Response:
    """Answer one request by `work`; names without effect are in a header, the log and a counter."""
    ignored, service = Ignored(), context_of(raw).service
    if HEADER in raw.headers and not raw.state.request_id.from_header:
        ignored.add(HEADER, f"it {RULE}")

    async def read() -> dict[str, Any]:
        data = b"".join([piece async for piece in raw.stream()])  # not Request.body, which is kept with the request
        check_media_type(raw.headers.get("content-type"))
        check_coding(raw.headers.get("content-encoding"))
        return parse_body(data) if len(data) < _LARGE else await service.prepare(partial(parse_body, data))

    try:
        with service.counted():
            # Read by a function of its own: nobody holds the megabytes of a body while its answer takes minutes.
            body = await read()
            response = await unless_client_leaves(raw.receive, work(raw, body, ignored))
    except (ClientLeft, ClientDisconnect):  # the latter, before the body had come
        return Response(status_code=_CLIENT_LEFT)
    except Exception as error:  # of whatever kind: a client gets the API's error body, and the log the rest
        response = refusal(error, service, raw.url.path)
    if ignored:
        response.headers[IGNORED_HEADER] = ignored_header(ignored.names)
        service.note_ignored(ignored, raw.url.path)
    return response


def ignored_header(names: Sequence[str]) -> str:
    """Return the header's list of names, in characters that every header carries, with a count of those left out.

    >>> ignored_header(["chat_id", "a b"])
    'chat_id, a_b'
    """
    shown: list[str] = []
    for name in names:
        if sum(map(len, shown)) + 2 * len(shown) + len(name) > _MOST_NAMED:
            return ", ".join([*shown, f"and-{len(names) - len(shown)}-more"])
        shown.append(_UNSAFE.sub("_", name))
    return ", ".join(shown)


def refusal(error: Exception, service: AnswerService, path: str = "") -> Response:
    """Return the error body of a path's API for an error; one that is nobody's fault but ours is logged as a whole."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(_RETRY_AFTER)
    elif isinstance(error, EngineDead):
        headers["Retry-After"] = str(service.engine.retry_after)
    return problem_of(error).response(headers, path)


Result = TypeVar("Result")


class ClientLeft(Exception):
    """The client has left: nobody reads the answer any more."""


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` gives; raise ClientLeft once the connection is gone. The body has to have been read before.

    The work is done in the caller's own task, which is cancelled when the client leaves, as `asyncio.timeout` does it:
    a cancellation by anybody else is passed on.
    """
    task = asyncio.current_task()
    assert task is not None
    before, left = task.cancelling(), False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        # uncancel() takes back the cancel() of watch(). If the count is above `before` even then, somebody else has
        # cancelled the task as well, and that goes before.
        if left and task.uncancel() <= before:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()


class EventStream(Response):
    """An answer of server-sent events, whose source is closed as soon as the client leaves.

    The first item of the source may be empty: then the head of the answer goes out while the first event is made. A
    client that takes no event until the request's deadline is left. While no event comes, a comment is sent from time
    to time, if the server is asked to: proxies end connections that say nothing.
    """

    def __init__(
        self, events: AsyncGenerator[bytes], service: AnswerService, arrival: float, headers: Mapping[str, str]
    ) -> None:
        """`arrival` is when the request came, on the monotonic clock, in seconds."""
        super().__init__(None, 200, {"Cache-Control": "no-cache", **headers}, "text/event-stream")
        del self.headers["content-length"]
        self._events, self._service, self._arrival = events, service, arrival

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_client_leaves(receive, self._send_all(send))
        except (ClientLeft, OSError):
            pass
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        first = await anext(self._events, b"")
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send_event(send, first)
        pause = self._service.keep_alive
        async for event in _with_comments(self._events, pause) if pause else self._events:
            await self._send_event(send, event)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, send: Send, event: bytes) -> None:
        if event:
            async with asyncio.timeout(self._service.seconds_left(self._arrival)):  # TimeoutError is an OSError
                await send({"type": "http.response.body", "body": event, "more_body": True})


async def _with_comments(events: AsyncGenerator[bytes], pause: float) -> AsyncGenerator[bytes]:
    """Yield the events, and a comment, which clients skip, whenever none has come for `pause` seconds."""
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({coming}, timeout=pause))[0]:
                yield b": keep-alive\n\n"
        finally:
            coming.cancel()  # if the client has left meanwhile
            await asyncio.wait({coming})
        event = coming.result()
        if event is None:
            return
        yield event


async def guarded(events: AsyncGenerator[bytes], service: AnswerService) -> AsyncGenerator[bytes]:
    """Yield the events, an error event where something goes wrong, and always [DONE] at the end."""
    with service.counted():
        try:
            async for event in events:
                yield event
        except Exception as error:  # of whatever kind: the status has been sent, so the stream has to say it
            yield data_event(problem_of(error).body)
        finally:
            await events.aclose()
        yield b"data: [DONE]\n\n"


def data_event(body: Mapping[str, Any]) -> bytes:
    return f"data: {_json(body)}\n\n".encode()


def named_event(body: Mapping[str, Any]) -> bytes:
    """Return an event whose type is also its name, as the Responses API and Anthropic's have them."""
    return f"event: {body['type']}\ndata: {_json(body)}\n\n".encode()


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


MAX_DEPTH = 64
"""Most objects and lists within each other. Schemas of tools nest, conversations hardly."""


def check_media_type(content_type: str | None) -> None:
    """Raise InvalidRequest unless the header says JSON; parameters such as a charset do not matter."""
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            f"Unsupported Media Type: Only 'application/json' is allowed, got {kind[:80] or 'none'!r}: "
            "send the header Content-Type: application/json."
        )


def check_coding(content_encoding: str | None) -> None:
    """Raise InvalidRequest for a body that is compressed: what it grows to would have to be bounded as well."""
    coding = (content_encoding or "").strip().lower()
    if coding not in ("", "identity"):
        raise InvalidRequest(
            f"Content-Encoding: {coding[:80]!r} is not taken: send the body uncompressed, without this header."
        )


def parse_body(data: bytes) -> dict[str, Any]:
    """Return the JSON object of a request body. Raises InvalidRequest for everything that is not one."""
    try:
        text = data.decode(json.detect_encoding(data))  # of UTF-8, -16 and -32, with or without a byte order mark
        body = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}): encode the JSON as UTF-8.") from None
    except InvalidField:
        raise
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, got {_KINDS.get(type(body), 'null')}.")
    _check(body)
    return body


_MOST_DIGITS = 4300
"""Digits of a whole number; Python turns no longer texts into numbers."""
_KINDS: dict[type, str] = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises InvalidField if a name comes twice: readers differ in which value they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        shown = name[:80].encode("utf-8", "replace").decode()
        raise InvalidField(shown, f"The body has the name {shown!r} twice in one object: send one of the values.")
    return found


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:40]}... has {len(text)} digits, which is beyond the range of numbers")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


def _check(body: dict[str, Any]) -> None:
    """Raise InvalidRequest for a body that nests too deeply, or has characters that UTF-8 cannot carry.

    It is walked level by level, without recursion, so that no nesting ends this process.
    """
    level, depth = list[Any]([body]), 0
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_text(item)
            if depth == MAX_DEPTH and isinstance(item, (dict, list)):
                raise _too_deep()
        level, depth = inner, depth + 1


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"The body has half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no character: "
            "write both halves, or the character itself."
        ) from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body nests more than {MAX_DEPTH} objects and lists: flatten it.")
