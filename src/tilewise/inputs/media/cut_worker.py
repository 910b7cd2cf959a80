"""The processes that open files of others: decoders written in C meet them here, apart from keys, models and requests.

A worker gets jobs of the process that had it started, and answers in JSON, as a decoder that was taken over by a file
might answer anything. From its first job on it opens no file, connects to nobody and has bounded memory. A picture
becomes tiles in shared memory; of a video the chosen frames are sent back. Workers are forked off a process that is
this file run as a program, and are there in milliseconds.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import av
import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms

from tilewise.errors import InvalidMedia, InvalidRequest, TilewiseError
from tilewise.host import offer_to_be_killed, without_interrupts
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
_NUMBER = struct.Struct("!q")
_MOST = 2**16  # bytes of an order to the fork server
_LIBRARIES = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
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


class ForkServer:
    """A process that has loaded all decoders, and forks the workers; and our end of the socket to it.

    `multiprocessing` has such a server, too; its processes, however, run the caller's program again, which a user's
    script need not be made for. This one knows nothing of the program that wants it. Threads may share an instance; it
    ends with us.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        # A new interpreter, as a fork would inherit threads and what they hold; it finds modules where this one does.
        command = [sys.executable, "-P", "-m", __name__, f"{theirs.fileno()}"]
        path = os.pathsep.join(sys.path)
        # Of the variables only those that tell where libraries are: there may be keys among the others.
        known = {name: value for name, value in os.environ.items() if name in _LIBRARIES}
        environment = {**known, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs, without_interrupts():
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        self._end = weakref.finalize(self, _end, self._socket, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def fork(self, link: Connection, file: int, form: TileForm, library: str | None) -> int:
        """Start a process that does jobs, see `work`, and return its id. Raises OSError if that is not to be had."""
        order = {"cells": form.cells, "size": form.size, "library": library}
        return self._ask(order, [link.fileno(), file])

    def wait(self, process: int) -> int:
        """Wait for the end of a process, and return the signal that ended it; 0 = none."""
        return self._ask({"wait": process}, [])

    def _ask(self, order: Mapping[str, object], descriptors: Sequence[int]) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], list(descriptors))
            answer = self._socket.recv(_NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < _NUMBER.size:
            raise ConnectionResetError("The process that forks others has ended.")
        return int(_NUMBER.unpack(answer)[0])

    def close(self) -> None:
        self._end()


def _end(orders: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """End the process by closing its socket; this is done, too, where nobody closes a `ForkServer`."""
    orders.close()
    process.wait()


def main(descriptor: int) -> None:
    """Do what is ordered until nobody orders any more. One thread alone does all, so that forking is safe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the other one decides
    load_decoders()
    orders = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, _MOST, 2)
        if not message:
            return
        order = json.loads(message)
        if "wait" in order:
            answer = _ended(order["wait"])
        elif (answer := os.fork()) == 0:
            orders.close()
            link, file = descriptors
            work(Connection(link), file, TileForm(order["cells"], order["size"]), order["library"])
            os._exit(0)
        for number in descriptors:
            os.close(number)
        try:
            orders.sendall(_NUMBER.pack(answer))
        except BrokenPipeError:  # who ordered it has ended
            return


def _ended(process: int) -> int:
    with suppress(ChildProcessError):
        status = os.waitpid(process, 0)[1]
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return 0


if __name__ == "__main__":
    # Jobs are pickled as classes of the module that others import, which is not this one, of the name `__main__`.
    from tilewise.inputs.media import cut_worker

    cut_worker.main(int(sys.argv[1]))
