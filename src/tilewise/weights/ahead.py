"""Reads files of weights before they are needed, so that building a model does not wait for a slow disk page by page.

Files are mapped either way; what is read here is what the system keeps of them in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from tilewise.config import LoadStrategy

_PIECE = 16 * 2**20  # bytes


def read_ahead(files: Sequence[Path], strategy: LoadStrategy | None) -> Thread | None:
    """eager: all is read when this returns; prefetch: a thread, which is returned, reads while the model is built."""
    if strategy == "eager":
        read_through(files)
    if strategy != "prefetch":
        return None
    thread = Thread(target=read_through, args=(files,), name="prefetch", daemon=True)
    thread.start()
    return thread


def read_through(files: Sequence[Path]) -> int:
    """Bytes read; they are the system's to keep."""
    piece, total = memoryview(bytearray(_PIECE)), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                total += count
    return total
