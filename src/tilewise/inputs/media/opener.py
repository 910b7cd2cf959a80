"""MediaOpener: pictures and videos of requests, opened and cut by processes of their own, and known again.

A thread that prepares a request borrows a worker for each of its files. Workers go round: who has had one of its files
opened stands behind all who wait, so that a request of a hundred pictures holds nobody up, and has all workers to
itself where nobody else waits. A request that is given up, and a file that takes too long, end the worker that is at
it; the next one is forked off a process that has all decoders loaded, in milliseconds.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGSEGV
from typing import Any

from PIL import Image

from tilewise.errors import Cancelled, InvalidMedia, Overloaded, TilewiseError
from tilewise.inputs.media.cache import CacheCounts, CutPicture, RecentlyUsed
from tilewise.inputs.media.cut_worker import ERRORS, CutPictureJob, ForkServer, Job, ReadVideoJob
from tilewise.inputs.media.images import UnopenedFile
from tilewise.inputs.media.limits import Deadline, MediaBudget
from tilewise.inputs.media.tile_memory import StoredTile, TileStore
from tilewise.inputs.media.tiling import Tiling, UnopenedPicture, content_digest
from tilewise.inputs.media.video import FrameChoice
from tilewise.types import Tile

logger = logging.getLogger("tilewise")
_LOOK = 0.05
"""Seconds between looks whether the caller has left, or the time is up."""
_CRASHES = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}
"""Signals that a file brings upon the process that opens it."""
Told = dict[str, Any]


class _Worker:
    """A process that does jobs, and our end of the link to it."""

    def __init__(self, server: ForkServer, store: TileStore, library: str | None) -> None:
        self._server = server
        self.link, theirs = Pipe()
        with theirs:
            self.process = server.fork(theirs, store.file.descriptor, store.form, library)

    def end(self) -> int:
        """End the process, and return the signal that ended it, ours or another before; 0 = none that is known of.

        No other process has its number before it was waited for.
        """
        self.link.close()
        with suppress(OSError):
            os.kill(self.process, SIGKILL)
            return self._server.wait(self.process)
        return 0


Take = Callable[[Told, Connection], None]
"""A function of the answer to a job and of the link by which pixels follow. It may raise a TilewiseError."""


@dataclass(slots=True)
class _Errand:
    """A job that a worker is at."""

    worker: _Worker
    job: Job
    take: Take
    deadline: Deadline
    may_repeat: bool
    """True if it is done once more if its process ends otherwise than by a crash: whoever is short of memory kills."""

    def begin(self) -> None:
        with suppress(OSError):  # it is gone, which whoever looks for its answer finds out
            self.worker.link.send(self.job)

    def end(self) -> None:
        """Take the answer. Raises EOFError, OSError or ValueError for a worker that gives none, else what it tells."""
        told = json.loads(self.worker.link.recv_bytes())
        if "error" in told:
            raise _placed(ERRORS[told["error"]](told["message"]), self.job.file)
        self.take(told, self.worker.link)


class MediaWorkers:
    """So many processes that open media and cut pictures, into the cells of a store."""

    def __init__(self, count: int, store: TileStore, library: str | None) -> None:
        """Start the processes, in the background. `library` has the kernels that resize, if there are any."""
        self._store, self._library = store, library
        self._server = ForkServer()
        self._idle: deque[_Worker] = deque()
        self._waiting: deque[Future[_Worker]] = deque()  # of threads without a worker, the longest first
        self._lock = threading.Lock()
        self._closed = False
        for _ in range(count):
            self._add_in_background()

    def do(self, jobs: Sequence[Job], takes: Sequence[Take], budget: MediaBudget) -> None:
        """Have the jobs of one request done, side by side where workers are idle; each is told to its `take`.

        Raises InvalidMedia, what a `take` raises, and Cancelled as soon as the request is given up.
        """
        left = deque((job, take, True) for job, take in zip(jobs, takes, strict=True))
        at_work: dict[Connection, _Errand] = {}
        try:
            while left or at_work:
                while left and (worker := self._borrow(budget, may_wait=not at_work)):
                    errand = at_work[worker.link] = _errand(worker, *left.popleft(), budget)
                    errand.begin()
                for link in wait(list(at_work), _LOOK):
                    assert isinstance(link, Connection)
                    errand = at_work.pop(link)
                    if not self._end(errand):
                        left.appendleft((errand.job, errand.take, False))
                for errand in at_work.values():
                    errand.deadline.left()
        finally:
            for errand in at_work.values():
                self._add_in_background()
                errand.worker.end()

    def _end(self, errand: _Errand) -> bool:
        """Take the answer to a job, and let the next one have the worker; return False if it is to be done again.

        Raises what the answer tells.
        """
        try:
            errand.end()
        except TilewiseError:
            self._hand_on(errand.worker)
            raise
        except (EOFError, OSError, ValueError, LookupError, TypeError):
            self._add_in_background()
            number, name = errand.worker.end(), errand.job.file.name or "a picture"
            how = f"signal {number}" if number else "no answer"
            logger.error("A process that opens media ended with %s, over %s; another takes its place.", how, name)
            if number not in _CRASHES and errand.may_repeat:
                return False
            if number == SIGKILL:
                raise Overloaded(
                    f"The process that opened {name} was killed, and so was the next one, as happens when memory is "
                    "short: send the request again later, with a smaller picture, or give the server more memory."
                ) from None
            raise _placed(
                InvalidMedia(f"{name} ended the process that opened it: it is damaged. Save it anew, and send that."),
                errand.job.file,
            ) from None
        self._hand_on(errand.worker)
        return True

    def _borrow(self, budget: MediaBudget, may_wait: bool) -> _Worker | None:
        """Return a worker, after all who have waited longer; None if none is idle now and the caller may not wait."""
        mine: Future[_Worker] = Future()
        with self._lock:
            if self._idle:
                return self._idle.popleft()
            if not may_wait:
                return None
            self._waiting.append(mine)
        while True:
            try:
                return mine.result(_LOOK)
            except TimeoutError:
                try:
                    budget.check()
                except Cancelled:
                    self._give_up(mine)
                    raise

    def _give_up(self, mine: Future[_Worker]) -> None:
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return
        self._hand_on(mine.result())  # it has just come

    def _hand_on(self, worker: _Worker) -> None:
        """Give a worker to who has waited longest."""
        with self._lock:
            if self._closed:
                worker.end()
            elif self._waiting:
                self._waiting.popleft().set_result(worker)
            else:
                self._idle.append(worker)

    def _living_server(self) -> ForkServer:
        with self._lock:
            if self._server.has_ended:
                self._server.close()
                self._server = ForkServer()
            return self._server

    def _add_in_background(self) -> None:
        def add() -> None:
            while not self._closed:
                with suppress(OSError):  # the server has ended, as by whoever is short of memory, or this process does
                    self._hand_on(_Worker(self._living_server(), self._store, self._library))
                    return
                time.sleep(_LOOK)

        threading.Thread(target=add, name="tilewise-media-start", daemon=True).start()

    def close(self) -> None:
        """End the workers that are idle; those at work end with their jobs."""
        with self._lock:
            self._closed = True
            idle, self._idle = list(self._idle), deque()
        for worker in idle:
            worker.end()
        self._server.close()


def _errand(worker: _Worker, job: Job, take: Take, may_repeat: bool, budget: MediaBudget) -> _Errand:
    name = job.file.name or job.file.where
    deadline = Deadline(budget, "decode_seconds", f"Decoding {name}", "send a shorter or a smaller video")
    return _Errand(worker, job, take, deadline, may_repeat)


def _placed(error: TilewiseError, file: UnopenedFile) -> TilewiseError:
    return error.at(file.where) if file.where and isinstance(error, InvalidMedia) else error


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """A picture that was cut, and what was told of its file."""

    cut: CutPicture
    told: Told

    @property
    def num_bytes(self) -> int:
        return self.cut.num_bytes


class MediaOpener:
    """Opens and cuts what requests bring, by workers, and knows again the files that it has cut before."""

    def __init__(self, workers: int, store: TileStore, cache_bytes: int, library: str | None) -> None:
        self.store = store
        self._workers = MediaWorkers(workers, store, library)
        self._known = RecentlyUsed[bytes, KnownPicture](cache_bytes)
        store.make_room = self._known.forget_oldest

    @property
    def counts(self) -> CacheCounts:
        """The look-ups of files that may have been cut before."""
        return self._known.counts

    def forget(self) -> None:
        self._known.clear()

    def cut(self, pictures: Sequence[tuple[UnopenedPicture, Tiling]]) -> list[CutPicture]:
        """Return the pictures of one request, cut. Raises InvalidMedia, InvalidRequest and Cancelled."""
        keys = [_key(picture.file, tiling) for picture, tiling in pictures]
        found = {key: known for key in keys if (known := self._find(key)) is not None}
        missing = {key: pair for key, pair in zip(keys, pictures, strict=True) if key not in found}
        if missing:
            found |= self._cut(missing)
        for key, (picture, _) in zip(keys, pictures, strict=True):
            picture.opened(found[key].told)
        return [found[key].cut for key in keys]

    def _find(self, key: bytes) -> KnownPicture | None:
        return self._known.find(key) if self._known.max_bytes else None

    def _cut(self, pictures: dict[bytes, tuple[UnopenedPicture, Tiling]]) -> dict[bytes, KnownPicture]:
        found: dict[bytes, KnownPicture] = {}
        sizes = [tiling.max_tiles + 1 for _, tiling in pictures.values()]
        budget = next(iter(pictures.values()))[0].file.budget
        cells = self.store.reserve(sum(sizes), budget)
        try:
            jobs, takes = [], []
            for (key, (picture, tiling)), stop in zip(pictures.items(), itertools.accumulate(sizes), strict=True):
                its = tuple(cells[stop - tiling.max_tiles - 1 : stop])
                jobs.append(CutPictureJob(picture.file, tiling, its))
                takes.append(partial(self._take, found, key, its))
            self._workers.do(jobs, takes, budget)
        finally:
            used = {tile.cell for known in found.values() for tile in known.cut.tiles if isinstance(tile, StoredTile)}
            self.store.give_back([cell for cell in cells if cell not in used])
        return found

    def _take(
        self, found: dict[bytes, KnownPicture], key: bytes, cells: tuple[int, ...], told: Told, link: Connection
    ) -> None:
        digests = [bytes.fromhex(digest) for digest in told["digests"]]
        tiles = tuple(map(self.store.tile, digests, cells[: len(digests)]))
        (columns, rows), (width, height) = map(tuple, (told["grid"], told["size"]))
        found[key] = KnownPicture(CutPicture(tiles, (columns, rows), (width, height)), told)
        self._known.keep(key, found[key])

    def frames(self, file: UnopenedFile, choice: FrameChoice, opened: Callable[[Told], None]) -> list[Image.Image]:
        """Return the chosen frames of a video. Raises InvalidMedia and Cancelled."""
        frames: list[Image.Image] = []

        def take(told: Told, link: Connection) -> None:
            for width, height in told["sizes"]:
                frames.append(Image.frombytes("RGB", (width, height), link.recv_bytes()))
            opened(told)

        self._workers.do([ReadVideoJob(file, choice)], [take], file.budget)
        return frames

    def share(self, cut: CutPicture) -> CutPicture:
        """Return a picture that was cut here with its tiles in the store, if there are cells for them now."""
        tiles = [tile for tile in cut.tiles if isinstance(tile, Tile)]
        cells = self.store.reserve_now(len(tiles))
        if cells is None or len(tiles) < len(cut.tiles):
            return cut
        return replace(cut, tiles=tuple(map(self.store.put, tiles, cells)))

    def close(self) -> None:
        self._workers.close()


def _key(file: UnopenedFile, tiling: Tiling) -> bytes:
    """Return 32 bytes of SHA-256 over a picture's file as it came, and over how it is opened and cut."""
    how = (file.is_base64, file.opening, tiling)
    return content_digest("file", how, file.content, 32)
