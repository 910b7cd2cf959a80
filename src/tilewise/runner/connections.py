"""TCP connections of this process to other ranks: on which interface they are made, and how they are cut."""

from __future__ import annotations

import os
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path

_SOCKET = re.compile(r"socket:\[(\d+)\]")
_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR of Linux


class RankConnections:
    """The connections that were made between two moments, `begin` and `end`.

    A collective waits for minutes for a machine that has gone without a word. Once it is known that it has gone, its
    connections are shut down, and whoever waits gets an error.
    """

    def __init__(self) -> None:
        self._before: frozenset[int] | None = None
        self._made: frozenset[int] | None = None

    def begin(self) -> None:
        self._before = frozenset(_connected().values())

    def end(self) -> None:
        self._made = frozenset(_connected().values()) - (self._before or frozenset())

    def cut(self) -> None:
        if self._before is None:
            return
        for descriptor, number in _connected().items():
            if number in self._made if self._made is not None else number not in self._before:
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as end:
                    end.shutdown(socket.SHUT_RDWR)


def _connected() -> dict[int, int]:
    """Return this process' descriptors of established TCP connections, and the kernel's numbers of these (inodes)."""
    numbers = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "01":  # established
                    numbers.add(int(columns[9]))
    found = {}
    with suppress(OSError):
        for path in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if (match := _SOCKET.fullmatch(str(path.readlink()))) and int(match[1]) in numbers:
                    found[int(path.name)] = int(match[1])
    return found


def interface_of(address: str) -> str | None:
    """Return the interface that has an IPv4 address; None where it cannot be told."""
    import fcntl  # not there on Windows

    wanted = socket.inet_aton(address) if ":" not in address else None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(asked.fileno(), _ADDRESS_OF_INTERFACE, struct.pack("256s", name.encode()[:15]))
                if answer[20:24] == wanted:
                    return name
    return None
