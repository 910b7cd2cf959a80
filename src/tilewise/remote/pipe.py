"""Pipe: one end of a pair of connected sockets, and messages over it: 8 bytes of length, then a pickle.

The pair is made before the engine's process, which inherits its end: nobody else can send what is unpickled here.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_LENGTH = struct.Struct("!Q")
_PIECE = 2**18  # bytes that are asked for at once


def pipe() -> tuple[Pipe, socket.socket]:
    """Our end, and the socket that becomes theirs, once it is in the other process."""
    ours, theirs = socket.socketpair()
    return Pipe(ours), theirs


def framed(message: object) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Pipe:
    """May be read by one thread while another writes."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = bytearray()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: object) -> None:
        """Waits until the other side has room for all of it. Raises OSError if there is no other side any more."""
        self._end.sendall(framed(message))

    def send_rest(self, data: memoryview) -> None:
        """The same for what `send_some` left."""
        self._end.sendall(data)

    def send_some(self, data: memoryview) -> int:
        """Bytes that the other side had room for; never waits. Raises OSError as above."""
        try:
            return self._end.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def receive(self) -> Any:
        """The next message, waited for. Raises EOFError when none will come."""
        while (data := self._frame()) is None:
            self._read(0)
        return pickle.loads(data)

    def arrived(self) -> Iterator[Any]:
        """The messages that are there whole; never waits. Raises EOFError behind the last one."""
        while True:
            while (data := self._frame()) is not None:
                yield pickle.loads(data)
            try:
                self._read(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    @property
    def closed(self) -> bool:
        return self._end.fileno() < 0

    def close(self) -> None:
        """Whoever waits to send learns it."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _read(self, flags: int) -> None:
        try:
            data = self._end.recv(_PIECE, flags)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._unread += data

    def _frame(self) -> bytes | None:
        """The first message that is there whole, as it is written."""
        if len(self._unread) < _LENGTH.size:
            return None
        stop = _LENGTH.size + _LENGTH.unpack_from(self._unread)[0]
        if len(self._unread) < stop:
            return None
        data = bytes(self._unread[_LENGTH.size : stop])
        del self._unread[:stop]
        return data
