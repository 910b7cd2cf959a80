"""From a task to its result: asked of the server's application, and again where that may help."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp

from tilewise.jobs.post import Reply, post
from tilewise.jobs.result import Result
from tilewise.jobs.source import Line
from tilewise.jobs.task import Task

_TOO_MANY = 429
_OURS = (500, 502, 503, 504)
"""Statuses of failures that the line itself need not be the reason of."""
_SUSPICIOUS = 2
"""Failures after which a line is not asked beside others that failed as often: one of them may be what ends engines."""


class Asker:
    """`until_ready` returns when there is an engine, and raises when there will be none."""

    def __init__(self, app: ASGIApp, until_ready: Callable[[], Awaitable[None]], retries: int) -> None:
        self._app, self._until_ready, self._retries = app, until_ready, retries
        self._suspect = asyncio.Lock()

    async def __call__(self, line: Line, task: Task) -> Result:
        failures = 0
        while True:
            request_id = f"{line.id}-{failures + 1}"
            reply = await self._ask(task, request_id, failures)
            failures += reply.status in _OURS
            if (reply.status not in _OURS or failures > self._retries) and reply.status != _TOO_MANY:
                return Result.answered(line, task, reply.status, request_id, _json(reply))
            await asyncio.sleep(reply.retry_after)

    async def _ask(self, task: Task, request_id: str, failures: int) -> Reply:
        async with self._suspect if failures >= _SUSPICIOUS else nullcontext():
            await self._until_ready()
            return await post(self._app, task.path, task.body, request_id)


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError:
        return reply.body.decode("utf-8", "replace")
