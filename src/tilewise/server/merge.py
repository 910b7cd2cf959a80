"""Several streams at once, as one: what comes of any of them, with its number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")
_End = tuple[int, None, BaseException | None]


async def merged(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """The first error of any ends all; leaving closes all."""
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
