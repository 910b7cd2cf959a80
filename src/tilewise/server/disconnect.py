"""Work for a client that may leave: when it does, the work is cancelled, wherever it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

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

    The first item of the source may be empty: then the head of the answer goes out while the first event is made.
    """

    def __init__(self, events: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", **(headers or {})}, "text/event-stream")
        del self.headers["content-length"]
        self._events = events

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
        async for event in self._events:
            await self._send_event(send, event)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, send: Send, event: bytes) -> None:
        if event:
            await send({"type": "http.response.body", "body": event, "more_body": True})
