"""Stream: the tokens of a request and its siblings (`n`), as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Protocol, TypeVar

from tilewise.engine.delta import TokenDelta
from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import TilewiseError


class Sink(Protocol):
    """Who is given what becomes of requests."""

    def put(self, delta: Any) -> None:
        """A token of one of them, or whatever else their engine makes of them."""

    def fail(self, error: TilewiseError) -> None:
        """Nothing more comes of some of them, or of all."""


OnClose = Callable[[Sequence[str], tuple[str, ...]], None]
"""(all request ids, those that have not ended)"""


Item = TypeVar("Item", TokenDelta, EncodedDelta)


class Stream(Generic[Item]):
    """Iterate over it for lists of tokens; leaving the context aborts whatever has not ended."""

    def __init__(
        self, request_ids: Sequence[str], on_close: OnClose, engines: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """`engines`: which one has each request, where that is not the only one."""
        self._engines = engines
        self._request_ids = request_ids
        self._on_close = on_close
        self._unfinished = set(request_ids)
        self._waiting: list[Item] = []
        self._error: TilewiseError | None = None
        self._something = asyncio.Event()

    def engine_of(self, request_id: str) -> int:
        """The number of the engine that has one of the requests."""
        return self._engines.get(request_id, 0)

    def put(self, delta: Item) -> None:
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.request_id)
        self._waiting.append(delta)
        self._something.set()

    def fail(self, error: TilewiseError) -> None:
        self._error = error
        self._something.set()

    def abort(self, request_id: str) -> None:
        """One of the requests needs no more tokens."""
        if request_id in self._unfinished:
            self._unfinished.discard(request_id)
            self._on_close([request_id], (request_id,))

    def __aiter__(self) -> Stream[Item]:
        return self

    async def __anext__(self) -> list[Item]:
        """All that has come since the last time; raises what ended the requests."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._something.clear()
            await self._something.wait()
        found, self._waiting = self._waiting, []
        return found

    async def __aenter__(self) -> Stream[Item]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unfinished, self._unfinished = tuple(self._unfinished), set()
        self._on_close(self._request_ids, unfinished)
