"""Streams of answers: several tokens in one chunk, several streams as one, and events on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tilewise.outputs.group import AnswerDelta

DONE = b"data: [DONE]\n\n"


def data_event(body: dict[str, Any]) -> bytes:
    return f"data: {_json(body)}\n\n".encode()


def named_event(body: dict[str, Any]) -> bytes:
    """Return an event of the Responses API, whose type is also its name."""
    return f"event: {body['type']}\ndata: {_json(body)}\n\n".encode()


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass
class _Held:
    text: str = ""
    tokens: int = 0


@dataclass
class ChunkInterval:
    """A filter that holds back answers' text until so many tokens have come, or the end; first tokens pass."""

    tokens: int
    _held: dict[int, _Held] = field(default_factory=dict)

    def hold(self, piece: AnswerDelta) -> AnswerDelta:
        """Return the piece with the text that is due now, which may be none."""
        if self.tokens == 1:
            return piece
        first = piece.index not in self._held
        held = self._held.setdefault(piece.index, _Held())
        held.text += piece.text
        held.tokens += 1
        if not first and held.tokens < self.tokens and piece.finish_reason is None:
            return replace(piece, text="")
        text, held.text, held.tokens = held.text, "", 0
        return replace(piece, text=text)


Item = TypeVar("Item")
_End = tuple[int, None, BaseException | None]


async def merged(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """Yield the items of all streams as they come, each with the number of its stream.

    The first error of any stream ends all; closing the generator closes all.
    """
    queue: asyncio.Queue[tuple[int, Item, None] | _End] = asyncio.Queue()

    async def read(number: int, stream: AsyncGenerator[Item]) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait((number, item, None))
        except Exception as failure:  # of whatever kind: it is raised where the streams are read together
            error = failure
        finally:
            queue.put_nowait((number, None, error))

    tasks = [asyncio.ensure_future(read(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            number, item, error = await queue.get()
            if error is not None:
                raise error
            if item is None:
                running -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
