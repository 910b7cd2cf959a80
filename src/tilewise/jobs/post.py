"""A request to an ASGI application in this process, without a socket."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message

logger = logging.getLogger("tilewise")


@dataclass(slots=True)
class Reply:
    """What the application answers."""

    status: int = 500
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    @property
    def retry_after(self) -> float:
        """Seconds after which asking again makes sense."""
        return float(self.headers.get(b"retry-after", b"1"))


async def post(app: ASGIApp, path: str, body: bytes, request_id: str) -> Reply:
    """Ask, and stay until the answer has ended. Who cancels this leaves, as a client does."""
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    reply = Reply()
    try:
        await app(_scope(path, body, request_id), receive, reply.take)
    except Exception:  # of whatever kind: a request that fails must not end the run
        logger.exception("A request failed")
        return Reply()
    return reply


def _scope(path: str, body: bytes, request_id: str) -> Message:
    headers = {"content-type": "application/json", "content-length": f"{len(body)}", "x-request-id": request_id}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
