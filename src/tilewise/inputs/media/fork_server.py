"""A process that has loaded all decoders, and forks the processes that open media: each is there in milliseconds.

`multiprocessing` has such a server, too; its processes, however, run the caller's program again, which a user's script
need not be made for. Here a process knows nothing of the program that wants it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from tilewise.host import without_interrupts
from tilewise.inputs.media.tile_memory import TileForm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NUMBER = struct.Struct("!q")
_MOST = 2**16  # bytes of an order
_LIBRARIES = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")


class ForkServer:
    """The server's process, and our end of the socket to it. Threads may share an instance; it ends with us."""

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
        """Start a process that does jobs, and return its id: see `cut_worker.work`. Raises OSError if that is not to be
        had.
        """
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
    import signal

    from tilewise.inputs.media import cut_worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the other one decides
    cut_worker.load_decoders()
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
            cut_worker.work(Connection(link), file, TileForm(order["cells"], order["size"]), order["library"])
            os._exit(0)
        for number in descriptors:
            os.close(number)
        orders.sendall(_NUMBER.pack(answer))


def _ended(process: int) -> int:
    with suppress(ChildProcessError):
        status = os.waitpid(process, 0)[1]
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]))
