"""MediaOpener: pictures and videos of requests, opened and cut by processes of their own, and known again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection

from PIL import Image

from tilewise.inputs.media.cache import CacheCounts, CutPicture, RecentlyUsed
from tilewise.inputs.media.cut_worker import CutPictureJob, ReadVideoJob
from tilewise.inputs.media.cut_workers import MediaWorkers, Told
from tilewise.inputs.media.images import UnopenedFile
from tilewise.inputs.media.tile_memory import StoredTile, TileStore
from tilewise.inputs.media.tiling import Tiling, UnopenedPicture, content_digest
from tilewise.inputs.media.video import FrameChoice
from tilewise.types import Tile


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
