"""TileIndex: which tile's embedding sits in which page of the tile pool.

Tiles are known by digest alone, so a tile shared by pictures, requests or users is encoded once while it stays.
Nothing is pinned across steps: each plan holds what it uses and what the next sequences need, and the rest may go,
least recently used first. That leaves nothing to leak.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Page:
    number: int
    ready: bool = False
    held_by: int = -1  # the step that last wanted it


class TileIndex:
    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, -1, -1))
        self._pages: OrderedDict[bytes, _Page] = OrderedDict()  # least recently used first
        self._step = 0
        self._in_flight = 0

    def begin_step(self, index: int) -> None:
        self._step = index

    def ready_page(self, digest: bytes) -> int | None:
        """The page of an encoded tile, held for this step; None while it is not encoded."""
        page = self._hold(digest)
        return page.number if page and page.ready else None

    def is_ready(self, digest: bytes) -> bool:
        """Whether a tile is encoded; asking holds nothing."""
        page = self._pages.get(digest)
        return page is not None and page.ready

    def hold(self, digest: bytes) -> bool:
        """Keep a tile for this step. False if it is in no page, not even on its way into one."""
        return self._hold(digest) is not None

    def place(self, digest: bytes) -> int | None:
        """A page for a tile that is to be encoded in this step; None if every page is held."""
        number = self._free.pop() if self._free else self._evict()
        if number is not None:
            self._pages[digest] = _Page(number, held_by=self._step)
            self._in_flight += 1
        return number

    @property
    def in_flight(self) -> int:
        """Tiles with a page that they are not in yet."""
        return self._in_flight

    @property
    def empty(self) -> bool:
        return not self._pages

    def encoded(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._pages[digest].ready = True
            self._in_flight -= 1

    def forget(self, used: bool) -> None:
        """Empty all pages; while they are `used`, those alone that no step still wants."""
        ready = [(digest, page) for digest, page in self._pages.items() if page.ready]
        unwanted = [digest for digest, page in ready if not used or self._is_spare(page)]
        self._free += [self._pages.pop(digest).number for digest in unwanted]

    def _hold(self, digest: bytes) -> _Page | None:
        page = self._pages.get(digest)
        if page is not None:
            page.held_by = self._step
            self._pages.move_to_end(digest)
        return page

    def _evict(self) -> int | None:
        for digest, page in self._pages.items():
            if self._is_spare(page):
                del self._pages[digest]
                return page.number
        return None

    def _is_spare(self, page: _Page) -> bool:
        return page.ready and page.held_by < self._step
