"""An encoded tile as the bytes of a safetensors file: `rows`, `score` (empty without a router) and `seal`.

The seal is a SHA-256 over model, digest, rows and score, so a file that is torn, altered or in the wrong place is
recognised, whatever happened to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, slots=True)
class StoredTile:
    rows: Tensor
    """[rows a page, hidden]"""
    score: float | None = None
    """Of a Flash model's router."""


@dataclass(frozen=True, slots=True)
class TileFile:
    """The form of one model's files."""

    model_key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pack(self, digest: bytes, tile: StoredTile) -> bytes:
        rows = tile.rows.cpu().contiguous()
        score = torch.tensor([] if tile.score is None else [tile.score], dtype=torch.float32)
        return _save(rows, score, self._seal(digest, _bytes(rows), _bytes(score)))

    def unpack(self, digest: bytes, data: bytes) -> StoredTile | None:
        """None unless `data` is exactly what `pack` made of this tile for this model."""
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
