"""Intake: a request's body on its way in. Too much of it, or too little of it in too long a time, ends the request."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.types import Message, Receive

from tilewise.errors import TilewiseError


class BodyTooLarge(TilewiseError):
    """More than the server takes; where the size was not declared, it shows while reading."""

    http_status = 413

    @classmethod
    def of(cls, size: str, limit: int) -> BodyTooLarge:
        return cls(f"The body has {size:.20} bytes, the limit is {limit}: send smaller pictures, or URLs instead.")


class BodyTooSlow(TilewiseError):
    """Whoever sends so slowly holds a connection for nothing."""

    http_status = 408


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly a body may come."""

    grace: float = 30.0
    """Seconds that it may take whatever its size."""
    bytes_per_second: float = 8192.0
    """From then on, on average since the beginning."""
    rest: float = 5.0
    """Seconds in which what is left of a refused body is thrown away."""

    def seconds(self, size: int) -> float:
        """When more than `size` bytes have to be there."""
        return self.grace + size / self.bytes_per_second


@dataclass(slots=True)
class Intake:
    """The `receive` of one request."""

    receive: Receive
    limit: int
    pace: Pace
    refused: bool = False
    """Whether the body was given up before its end."""
    _size: int = 0
    _ended: bool = False
    _started: float = field(default_factory=time.monotonic)

    async def __call__(self) -> Message:
        """Raises BodyTooLarge or BodyTooSlow. Behind the body there is only the client's leaving to wait for."""
        if self._ended:
            return await self.receive()
        try:
            async with asyncio.timeout(self._started + self.pace.seconds(self._size) - time.monotonic()):
                message = self._count(await self.receive())
        except TimeoutError:
            self.refused = True
            raise BodyTooSlow(
                f"Of the body, {self._size} bytes came in {self.pace.seconds(self._size):.0f} seconds: send it faster, "
                "or URLs in place of pictures."
            ) from None
        if self._size > self.limit:
            self.refused = True
            raise BodyTooLarge.of(f"more than {self.limit}", self.limit)
        return message

    async def drain(self) -> None:
        """Throw away what still comes, so that a client that is still sending gets to read its answer.

        A connection that is closed with bytes unread is reset, and an answer on its way is lost with it.
        """
        most = self._size + 2 * self.limit  # what is even larger is cut off
        with suppress(TimeoutError):
            async with asyncio.timeout(self.pace.rest):
                while not self._ended and self._size < most:
                    self._count(await self.receive())

    def _count(self, message: Message) -> Message:
        self._size += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message
