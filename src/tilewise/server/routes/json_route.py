"""The handling of a JSON body that routes share: read it, answer it while the client stays, say what went wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tilewise.errors import EngineDead, Overloaded
from tilewise.ignored import Ignored
from tilewise.server.disconnect import ClientLeft, unless_client_leaves
from tilewise.server.errors import Problem, check_coding, check_media_type, parse_body
from tilewise.server.service import RETRY_AFTER, AnswerService
from tilewise.server.streaming import DONE, data_event


class PlainRoute(APIRoute):
    """A route whose function gets the request and returns the response; FastAPI neither parses nor validates."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        plain: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return plain


def plain_router() -> APIRouter:
    return APIRouter(route_class=PlainRoute)


logger = logging.getLogger("tilewise")
_LARGE = 2**18  # bytes of a body that is parsed in a thread
_CLIENT_LEFT = 499  # nginx's; nobody reads it but the access log

IGNORED_HEADER = "x-tilewise-ignored"
_MOST_NAMED = 1024  # characters of that header
_UNSAFE = re.compile(r"[^\w.-]", re.ASCII)

Work = Callable[[dict[str, Any], Ignored], Awaitable[Response]]
"""A function that answers a body, and adds what of it has no effect to the `Ignored` before the answer begins."""


async def exchange(raw: Request, service: AnswerService, work: Work) -> Response:
    """Answer one request by `work(body, ignored)`; names without effect are in a header, the log and a counter."""
    ignored = Ignored()

    async def answer(data: bytes) -> Response:
        check_media_type(raw.headers.get("content-type"))
        check_coding(raw.headers.get("content-encoding"))
        body = parse_body(data) if len(data) < _LARGE else await service.prepare(lambda: parse_body(data))
        return await work(body, ignored)

    try:
        with service.counted():
            data = await raw.body()
            response = await unless_client_leaves(raw.receive, answer(data))
    except (ClientLeft, ClientDisconnect):  # the latter, before the body had come
        return Response(status_code=_CLIENT_LEFT)
    except Exception as error:  # of whatever kind: a client gets the API's error body, and the log the rest
        response = refusal(error, service)
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


def refusal(error: Exception, service: AnswerService) -> Response:
    """Return the API's error body for an error; one that is nobody's fault but ours is logged as a whole."""
    problem = problem_of(error)
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(RETRY_AFTER)
    elif isinstance(error, EngineDead):
        headers["Retry-After"] = str(service.engine.retry_after)
    return JSONResponse(problem.body, problem.status, headers)


def problem_of(error: BaseException) -> Problem:
    problem = Problem.of(error)
    if problem.status == 500:
        logger.error("A request failed", exc_info=error)
    return problem


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
        yield DONE
