"""EncodedTileStore: encoded tiles of one model on disk, so that a tile met again tomorrow needs no encoder."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore

import torch
from filelock import FileLock
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from tilewise.errors import InvalidConfig
from tilewise.models.config import ModelConfig
from tilewise.models.tile_encoder import PIXEL_MEAN, PIXEL_STD

logger = logging.getLogger("tilewise")

ENCODER_PARTS = ("vision.", "projector.", "flash.")
"""Prefixes of the tensors that rows and scores are computed from."""

VERSION = 1
"""Version to raise with every change of the encoder's arithmetic, of a tile's digest, or of the files."""


def model_key(weights: bytes, config: ModelConfig, dtype: torch.dtype, arithmetic: str) -> str:
    """Return 32 hexadecimal digits over all that rows depend on beside the pixels; `weights` is the tensors'
    fingerprint.

    `arithmetic` names the platform, its ops and the quantisation, because each of them rounds in its own way. Releases
    of torch and, in the ordinary mode, sizes of batches do so too, within the same tolerance: those are taken as equal,
    as they are within one run.
    """
    facts = (
        VERSION,
        arithmetic,
        dtype,
        config.vision,
        (config.tile_size, config.shuffle_block, config.shuffle_version, config.flash is not None),
        (PIXEL_MEAN, PIXEL_STD),
    )
    return hashlib.sha256(weights + repr(facts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class StoredTileRows:
    """An encoded tile, as it is kept."""

    rows: Tensor
    """Rows of the tile, [rows a page, hidden]."""
    score: float | None = None
    """Score of a Flash model's router."""


@dataclass(frozen=True, slots=True)
class EncodedTileFile:
    """The form of one model's files.

    Each has a seal, a SHA-256 over model, digest, rows and score, so a file that is torn, altered or in the wrong place
    is recognised, whatever happened to it.
    """

    model_key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pack(self, digest: bytes, tile: StoredTileRows) -> bytes:
        rows = tile.rows.cpu().contiguous()
        score = torch.tensor([] if tile.score is None else [tile.score], dtype=torch.float32)
        seal = hashlib.sha256(f"{self.model_key} {digest.hex()}".encode())
        for part in (rows, score):
            seal.update(part.flatten().view(torch.uint8).numpy().data)
        sealed = torch.frombuffer(bytearray(seal.digest()), dtype=torch.uint8)
        return save({"rows": rows, "score": score, "seal": sealed})

    def unpack(self, digest: bytes, data: bytes) -> StoredTileRows | None:
        """Return the tile; None unless `data` is exactly what `pack` made of this tile for this model."""
        try:
            parts = {name: bytearray(part["data"]) for name, part in deserialize(data)}  # type: ignore[no-untyped-call]
        except SafetensorError:
            return None
        rows, score = parts.get("rows", b""), parts.get("score", b"")
        if len(rows) != math.prod(self.shape) * self.dtype.itemsize or len(score) not in (0, 4):
            return None
        tile = StoredTileRows(
            torch.frombuffer(rows, dtype=self.dtype).reshape(self.shape),
            torch.frombuffer(score, dtype=torch.float32).item() if score else None,
        )
        return tile if self.pack(digest, tile) == data else None


_WAITING = 64
"""Tiles that may wait to be written, some ten megabytes; beyond, the disk is slower than the encoder and tiles are
dropped rather than waited for."""


@dataclass(slots=True)
class TileCounts:
    """Counts of tiles since the start, by what became of them."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    """Misses whose file was there, but not as it was written; it is removed."""
    written: int = 0
    evicted: int = 0
    dropped: int = 0
    """Tiles not written because too many waited."""


class EncodedTileStore:
    """A store that reads at once and writes in a thread of its own. Nothing that happens to the disk is an error here.

    The first failure is a warning, and nothing is written after it; what can be read still is.
    """

    def __init__(self, folder: CappedFolder, form: EncodedTileFile, check_numerics: bool = False) -> None:
        """Open the store. With `check_numerics`, tiles of numbers that are not finite count as missing."""
        self.counts = TileCounts()
        self._checks = check_numerics
        self._folder = folder
        self._form = form
        self._writing = True
        self._room = BoundedSemaphore(_WAITING)
        # Its threads are joined when the interpreter exits, so tiles are written even if nobody calls `close`.
        self._writer = ThreadPoolExecutor(1, "tile-store")

    def read(self, digest: bytes) -> StoredTileRows | None:
        """Return the tile, bit by bit as it was written, or None."""
        tile = self._read(digest)
        if tile is not None and self._checks and not tile.rows.isfinite().all():
            tile = None
        if tile is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return tile

    def _read(self, digest: bytes) -> StoredTileRows | None:
        try:
            data = self._folder.read(self._form.model_key, digest.hex())
            if data is None:
                return None
            tile = self._form.unpack(digest, data)
            if tile is None:
                self.counts.damaged += 1
                self._folder.remove(self._form.model_key, digest.hex())
            return tile
        except OSError as error:
            self._give_up(error)
            return None

    def write_later(self, digest: bytes, tile: StoredTileRows) -> None:
        """Write a tile in the background. Its rows must not be written to afterwards; they may be on a device."""
        if not self._writing:
            return
        if not self._room.acquire(blocking=False):
            self.counts.dropped += 1
            return
        self._writer.submit(self.write, digest, tile).add_done_callback(self._settle)

    def write(self, digest: bytes, tile: StoredTileRows) -> None:
        if not self._writing:
            return
        try:
            self.counts.written += self._folder.write(self._form.model_key, digest.hex(), self._form.pack(digest, tile))
            self.counts.evicted = self._folder.evicted
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what waits. Afterwards tiles are still read, and no longer written."""
        self._writer.shutdown()
        self._writing = False
        counts = ", ".join(f"{count} {name}" for name, count in asdict(self.counts).items())
        logger.info("Encoded tiles in %s: %s", self._folder.path, counts)

    def _settle(self, written: Future[None]) -> None:
        self._room.release()
        if error := written.exception():  # a defect: what a disk can do to a write is handled there
            logger.error("Writing an encoded tile failed", exc_info=error)

    def _give_up(self, error: OSError) -> None:
        if self._writing:
            self._writing = False
            logger.warning("%s keeps no more encoded tiles: %s", self._folder.path, error)


_LEVELS = [re.compile(level) for level in (r"[0-9a-f]{32}", r"[0-9a-f]{2}", r"[0-9a-f]{32}\.(safetensors|tmp)")]
_KEPT = 0.9
"""Share of the cap that stays when something has to go, so that the folder is walked once for each tenth written."""
_PATIENCE = 60.0  # seconds until a lock that another process holds counts as a failure


class CappedFolder:
    """A folder of files under a cap of bytes, which processes share and keep across restarts. The cap has to hold the
    largest file at least.

        <folder>/lock                                  writers take turns
        <folder>/total                                 the sum of all sizes
        <folder>/<group>/<2 digits>/<name>.safetensors group and name are 32 hexadecimal digits

    A file's time of change is when it was last used. Nothing is flushed to the device: a file that a power cut tore is
    for the reader to notice, and costs less to make again than all files cost to flush.

    Raises InvalidConfig if it cannot be made and written to; later every failure is an OSError.

    The recorded total is never below the true one: room is reserved before a file is written, under the lock, and what
    vanishes without notice (a reader's `remove`, a writer that was killed) is found by the next walk.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.evicted = 0
        """Files that this process removed to stay below the cap."""
        self._total = path / "total"
        self._lock = FileLock(path / "lock", timeout=_PATIENCE, poll_interval=0.005)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._record(self._shrink(0))
        except (OSError, NotImplementedError) as error:  # the second where a file system knows no locks
            raise InvalidConfig(f"{path} cannot keep files ({error}): give a folder that can be written to.") from None

    def read(self, group: str, name: str) -> bytes | None:
        """Return a file's content, and mark it as used just now; None if there is no such file."""
        path = self._file(group, name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        with suppress(OSError):  # it was removed meanwhile, or is another user's and then ages as if it were not used
            os.utime(path)
        return data

    def write(self, group: str, name: str, data: bytes) -> bool:
        """Write a file; return False if another process was faster. A reader sees all of it or nothing."""
        path = self._file(group, name)
        temporary = path.with_suffix(".tmp")  # what a killed writer leaves is counted and grows old like any file
        with self._lock:
            if path.exists():
                return False
            self._make_room(len(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        return True

    def remove(self, group: str, name: str) -> None:
        self._file(group, name).unlink(missing_ok=True)

    def _file(self, group: str, name: str) -> Path:
        return self.path / group / name[:2] / f"{name}.safetensors"

    def _make_room(self, wanted: int) -> None:
        total = self._recorded()
        if total is None or total + wanted > self.max_bytes:
            total = self._shrink(wanted)
        self._record(total + wanted)

    def _shrink(self, wanted: int) -> int:
        """Count the bytes that are there; if `wanted` more are too many, remove files, the longest unused first."""
        files = sorted((stat.st_mtime_ns, stat.st_size, path) for path, stat in _files(self.path, _LEVELS))
        total = sum(size for _, size, _ in files)
        if total + wanted <= self.max_bytes:
            return total
        for _, size, path in files:
            if total + wanted <= _KEPT * self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
            self.evicted += 1
        return total

    def _recorded(self) -> int | None:
        """Return the recorded total of bytes; None if the record is missing or torn."""
        try:
            text = self._total.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return int(text) if re.fullmatch(r"\d+\n", text) else None

    def _record(self, total: int) -> None:
        temporary = self._total.with_suffix(".tmp")
        temporary.write_text(f"{total}\n", encoding="ascii")
        temporary.replace(self._total)


def _files(folder: Path | str, levels: Sequence[re.Pattern[str]]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files that were written here; others in the folder are neither counted nor removed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not levels[0].fullmatch(entry.name):
                continue
            if len(levels) > 1 and entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, levels[1:])
            elif len(levels) == 1 and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # a reader removed it
                    yield entry.path, entry.stat(follow_symlinks=False)
