"""TileStore: encoded tiles of one model on disk, so that a tile met again tomorrow needs no encoder."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import BoundedSemaphore

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from tilewise.models.config import ModelConfig
from tilewise.models.tile_encoder import PIXEL_MEAN, PIXEL_STD
from tilewise.runner.capped_folder import CappedFolder

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


_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, slots=True)
class StoredTile:
    """An encoded tile, as it is kept."""

    rows: Tensor
    """Rows of the tile, [rows a page, hidden]."""
    score: float | None = None
    """Score of a Flash model's router."""


@dataclass(frozen=True, slots=True)
class TileFile:
    """The form of one model's files.

    Each has a seal, a SHA-256 over model, digest, rows and score, so a file that is torn, altered or in the wrong place
    is recognised, whatever happened to it.
    """

    model_key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pack(self, digest: bytes, tile: StoredTile) -> bytes:
        rows = tile.rows.cpu().contiguous()
        score = torch.tensor([] if tile.score is None else [tile.score], dtype=torch.float32)
        return _save(rows, score, self._seal(digest, _bytes(rows), _bytes(score)))

    def unpack(self, digest: bytes, data: bytes) -> StoredTile | None:
        """Return the tile; None unless `data` is exactly what `pack` made of this tile for this model."""
        try:
            parts = dict(deserialize(data))  # type: ignore[no-untyped-call]
        except SafetensorError:
            return None
        found = {name: (part["dtype"], tuple(part["shape"])) for name, part in parts.items()}
        if found not in (self._parts(scores=0), self._parts(scores=1)):
            return None
        packed_rows, packed_score, seal = (bytearray(parts[name]["data"]) for name in ("rows", "score", "seal"))
        if seal != self._seal(digest, packed_rows, packed_score):
            return None
        rows = torch.frombuffer(packed_rows, dtype=self.dtype).reshape(self.shape)
        score = torch.frombuffer(packed_score, dtype=torch.float32) if packed_score else torch.empty(0)
        # White space in the header may stand for other white space: not what was packed, though it says the same.
        if _save(rows, score, seal) != data:
            return None
        return StoredTile(rows, score.item() if len(score) else None)

    def _parts(self, scores: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"rows": (_NAMES[self.dtype], self.shape), "score": ("F32", (scores,)), "seal": ("U8", (32,))}

    def _seal(self, digest: bytes, *parts: bytes | bytearray) -> bytes:
        seal = hashlib.sha256(f"{self.model_key} {digest.hex()}".encode())
        for part in parts:
            seal.update(part)
        return seal.digest()


def _save(rows: Tensor, score: Tensor, seal: bytes | bytearray) -> bytes:
    return save({"rows": rows, "score": score, "seal": torch.frombuffer(bytearray(seal), dtype=torch.uint8)})


def _bytes(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


logger = logging.getLogger("tilewise")

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


class TileStore:
    """A store that reads at once and writes in a thread of its own. Nothing that happens to the disk is an error here.

    The first failure is a warning, and nothing is written after it; what can be read still is.
    """

    def __init__(self, folder: CappedFolder, form: TileFile) -> None:
        self.counts = TileCounts()
        self._folder = folder
        self._form = form
        self._writing = True
        self._room = BoundedSemaphore(_WAITING)
        # Its threads are joined when the interpreter exits, so tiles are written even if nobody calls `close`.
        self._writer = ThreadPoolExecutor(1, "tile-store")

    def read(self, digest: bytes) -> StoredTile | None:
        """Return the tile, bit by bit as it was written, or None."""
        tile = self._read(digest)
        if tile is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return tile

    def _read(self, digest: bytes) -> StoredTile | None:
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

    def write_later(self, digest: bytes, tile: StoredTile) -> None:
        """Write a tile in the background. Its rows must not be written to afterwards; they may be on a device."""
        if not self._writing:
            return
        if not self._room.acquire(blocking=False):
            self.counts.dropped += 1
            return
        self._writer.submit(self.write, digest, tile).add_done_callback(self._settle)

    def write(self, digest: bytes, tile: StoredTile) -> None:
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
