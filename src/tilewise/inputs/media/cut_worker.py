"""The process that opens files of others: decoders written in C meet them here, apart from keys, models and requests.

It gets jobs of the process that started it, and answers in JSON, as a decoder that was taken over by a file might
answer anything. From its first job on it opens no file, connects to nobody and has bounded memory. A picture becomes
tiles in shared memory; of a video the chosen frames are sent back.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import av
import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms

from tilewise.errors import InvalidMedia, InvalidRequest, TilewiseError
from tilewise.host import offer_to_be_killed
from tilewise.ignored import Ignored
from tilewise.inputs.media.fetch import decode_base64
from tilewise.inputs.media.images import DAMAGE, UnopenedFile, further_frames, on_background, open_image, reason, to_rgb
from tilewise.inputs.media.tile_memory import TileForm, TileMemory
from tilewise.inputs.media.tiling import Tiling, choose_grid, cut_into, tile_digest
from tilewise.inputs.media.video import FrameChoice, read_video
from tilewise.inputs.sandbox import confine_this_process
from tilewise.resize import Resize, resizer

_MEMORY_BYTES = 3 * 2**30
"""Bytes that a file may take beside the shared memory: the largest picture that Pillow opens, several times over."""
_NICE = 5
"""Priority of this process: what has been opened is answered before more is opened."""
_KILLED_FIRST = 1000
"""This process is the one to be killed when memory ends, of all that the server has: its file is opened again."""
_KEPT_BYTES = 64 * 2**20
"""Freed memory that this process keeps for its next picture."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
ERRORS: dict[str, type[TilewiseError]] = {error.__name__: error for error in (InvalidMedia, InvalidRequest)}
"""Errors of files, by the names that answers have for them."""


@dataclass(frozen=True, slots=True)
class CutPictureJob:
    """A picture to be opened and cut, into cells of the shared memory; there are as many as it may have tiles."""

    file: UnopenedFile
    tiling: Tiling
    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadVideoJob:
    """A video, of which some frames are wanted."""

    file: UnopenedFile
    frames: FrameChoice


Job = CutPictureJob | ReadVideoJob


@dataclass(frozen=True, slots=True)
class CutWorker:
    """The worker that does the jobs of this process."""

    memory: TileMemory
    resize: Resize
    send_pixels: Callable[[bytes], None]

    def do(self, job: Job) -> dict[str, Any]:
        """Do a job and return what is told of it. Pixels are where they belong before that, frames sent behind it."""
        began, budget = time.monotonic(), job.file.budget
        before = (budget.bytes_taken, budget.decoded_taken)
        try:
            told = self._cut(job) if isinstance(job, CutPictureJob) else self._read(job)
        except tuple(ERRORS.values()) as error:
            return {"error": type(error).__name__, "message": str(error)}
        except MemoryError:
            return {"error": "InvalidMedia", "message": f"{job.file.name} takes too much memory: send a smaller one."}
        taken = {"bytes": budget.bytes_taken - before[0], "decoded": budget.decoded_taken - before[1]}
        return {**told, **taken, "seconds": time.monotonic() - began}

    def _cut(self, job: CutPictureJob) -> dict[str, Any]:
        file, opening = job.file, job.file.opening
        image = open_image(_content(file), opening.limits, file.budget, file.name)
        several = further_frames(image)
        try:
            rgb = to_rgb(on_background(image, opening), opening.exif_orientation)
        except DAMAGE as error:
            raise InvalidMedia(f"{file.name or 'A picture'} is damaged or cut short ({reason(error)}).") from None
        tiles = [self.memory.place(cell) for cell in job.cells]
        count = cut_into(tiles, rgb, job.tiling, self.resize)
        digests = [tile_digest(tile).hex() for tile in tiles[:count]]
        grid = choose_grid(rgb.width, rgb.height, job.tiling)
        return {"grid": grid, "size": rgb.size, "digests": digests, "further_frames": several}

    def _read(self, job: ReadVideoJob) -> dict[str, Any]:
        file, ignored = job.file, Ignored()
        frames = read_video(_content(file), job.frames, file.opening, file.budget, file.name, ignored, threads=1)
        for frame in frames:
            self.send_pixels(np.asarray(frame.convert("RGB")).tobytes())
        return {"sizes": [frame.size for frame in frames], "ignored": ignored.reasons}


def _content(file: UnopenedFile) -> bytes:
    return decode_base64(file.content.decode("latin-1"), file.budget) if file.is_base64 else file.content


def work(link: Connection, file: int, form: TileForm, library: str | None) -> None:
    """Do jobs until the process that sends them is gone, in a process that the fork server has just forked.

    `file` is the descriptor of a tile file; `library` has the kernels that resize, if there are any.
    """
    frames: list[bytes] = []
    worker = CutWorker(TileMemory(file, form), resizer(library), frames.append)
    if sys.platform != "win32":
        os.nice(_NICE)
    offer_to_be_killed(_KILLED_FIRST)
    _keep_freed_memory()
    confine_this_process(None, memory=form.num_bytes + _MEMORY_BYTES, files=_highest_open_file() + 1, threads=True)
    while True:
        try:
            job = link.recv()
        except (EOFError, OSError):
            return
        link.send_bytes(json.dumps(worker.do(job)).encode())
        for frame in frames:
            link.send_bytes(frame)
        frames.clear()


def _keep_freed_memory() -> None:
    """Give pages of pictures back to the system only beyond some size: to get them again takes as long as resizing."""
    with suppress(OSError, AttributeError):  # another C library
        allocator = ctypes.CDLL("libc.so.6")
        allocator.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        allocator.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def load_decoders() -> None:
    """Load whatever the libraries would load with the first file that needs it, and let them decode in one thread.

    There are as many of these processes as CPUs.
    """
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.init()
    ImageCms.createProfile("LAB")
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1


def _highest_open_file() -> int:
    highest = 2
    for number in range(256):
        try:
            os.fstat(number)
        except OSError:
            continue
        highest = number
    return highest
