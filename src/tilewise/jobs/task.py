"""Task: a line of the input as a request to one of the server's routes, and how an application is asked."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

from tilewise.errors import did_you_mean
from tilewise.jobs.source import InputLine

_KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Task:
    """A request of the input, as it is sent to the server, and the name by which its author knows it."""

    custom_id: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason why a line is not asked."""

    custom_id: str | None
    code: str
    message: str


def read_task(line: InputLine, paths: Collection[str], limit: int) -> Task | Fault:
    """Read a line of the input. `paths` are the routes that may be asked, `limit` is the most bytes of a line."""
    if line.data is None:
        shorter = "send smaller pictures, or URLs instead, or raise --max-body-mb"
        return Fault(
            None, "line_too_long", f"Line {line.place} has {line.size} bytes, the limit is {limit}: {shorter}."
        )
    try:
        found = json.loads(line.data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Fault(None, "invalid_json_line", f"Line {line.place} is not valid JSON: {error}.")
    if not isinstance(found, dict):
        return Fault(None, "invalid_json_line", f"Line {line.place} must be a JSON object with {', '.join(_KEYS)}.")
    return _task(line.place, found, paths)


def _task(number: int, found: dict[str, Any], paths: Collection[str]) -> Task | Fault:
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return Fault(None, "invalid_custom_id", _must_be(number, found, "custom_id", "a text that is not empty"))
    if found.get("method") != "POST":
        return Fault(custom_id, "invalid_method", _must_be(number, found, "method", '"POST"'))
    url, body = found.get("url"), found.get("body")
    if url not in paths:
        near = did_you_mean(str(url), paths)
        return Fault(custom_id, "invalid_url", _must_be(number, found, "url", f"one of {', '.join(paths)}") + near)
    if not isinstance(body, dict):
        return Fault(custom_id, "invalid_body", _must_be(number, found, "body", "an object"))
    if body.get("stream") not in (None, False):
        return Fault(custom_id, "stream_not_possible", _must_be(number, body, "stream", "false: a file has no stream"))
    return Task(custom_id, str(url), json.dumps(body).encode())


def _must_be(number: int, found: dict[str, Any], key: str, wanted: str) -> str:
    got = f"got {found[key]!r:.80}" if key in found else f"it is missing.{did_you_mean(key, found)}"
    return f"Line {number}: {key} must be {wanted}; {got.removesuffix('.')}."


logger = logging.getLogger("tilewise")


@dataclass(slots=True)
class AsgiReply:
    """A reply of the application, put together from its ASGI messages; status 500 until the first has come."""

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


async def post(app: ASGIApp, path: str, body: bytes, request_id: str) -> AsgiReply:
    """Send a request to the application, and return its whole reply. Cancelling this ends the request."""
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        # After the body a client sends nothing more as long as it stays connected, so a second call never returns.
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    reply = AsgiReply()
    try:
        await app(_scope(path, body, request_id), receive, reply.take)
    except Exception:  # of whatever kind: a request that fails must not end the run
        logger.exception("A request failed")
        return AsgiReply()
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
