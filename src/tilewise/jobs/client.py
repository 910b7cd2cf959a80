"""TaskClient: asks a task of the server's application, and again where that may help."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp

from tilewise.jobs.result import BatchResult
from tilewise.jobs.source import InputLine
from tilewise.jobs.task import AsgiReply, Task, post

_TOO_MANY = 429
_SERVER_FAILURES = (500, 502, 503, 504)
"""Statuses of failures that need not be the line's own fault."""


_SUSPICIOUS = 2
"""Failures after which a line is not asked beside others that failed as often: one of them may kill engines."""


class TaskClient:
    """A client of the application, which asks again after a failure of the server, and after 429 as often as need be.

    `until_ready` returns when there is an engine, and raises when there will be none.
    """

    def __init__(self, app: ASGIApp, until_ready: Callable[[], Awaitable[None]], retries: int) -> None:
        self._app, self._until_ready, self._retries = app, until_ready, retries
        self._suspect = asyncio.Lock()

    async def __call__(self, line: InputLine, task: Task) -> BatchResult:
        failures = 0
        while True:
            request_id = f"{line.id}-{failures + 1}"
            reply = await self._ask(task, request_id, failures)
            failures += reply.status in _SERVER_FAILURES
            if (reply.status not in _SERVER_FAILURES or failures > self._retries) and reply.status != _TOO_MANY:
                return BatchResult.answered(line, task, reply.status, request_id, _json(reply))
            await asyncio.sleep(reply.retry_after)

    async def _ask(self, task: Task, request_id: str, failures: int) -> AsgiReply:
        async with self._suspect if failures >= _SUSPICIOUS else nullcontext():
            await self._until_ready()
            return await post(self._app, task.path, task.body, request_id)


def _json(reply: AsgiReply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError:
        return reply.body.decode("utf-8", "replace")
