"""Nodes of a Ray cluster as ranks find them: versions, files, memory, interfaces; and connections between nodes."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import tilewise
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.host import Memory, available_memory

_WEIGHTS = (".safetensors", ".gguf")
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR of Linux


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Versions and memory that a rank finds where it is."""

    versions: dict[str, str]
    memory: Memory
    pid: int

    @classmethod
    def here(cls) -> NodeFacts:
        versions = {"tilewise": tilewise.__version__, "torch": torch.__version__}
        return cls(versions, available_memory(), os.getpid())


Folders = dict[Path, dict[str, int] | None]
"""Sizes of a model's files by their names, for each folder; None = there is no such folder."""


def folders_here(folders: Sequence[Path]) -> Folders:
    return {folder: _files(folder) for folder in folders}


def check_versions(ours: NodeFacts, theirs: Mapping[str, NodeFacts]) -> None:
    """Raise InvalidConfig for a node that has another version than this one."""
    for where, found in theirs.items():
        for package, version in ours.versions.items():
            if found.versions[package] != version:
                raise InvalidConfig(
                    f"{where} has {package} {found.versions[package]}, and this node {version}: install the same."
                )


def check_folders(ours: Folders, theirs: Mapping[str, Folders]) -> None:
    """Raise InvalidConfig for a node that has other files of the model than this one."""
    for where, found in theirs.items():
        for folder, files in ours.items():
            there = found[folder]
            if there is None:
                raise InvalidConfig(
                    f"{where} has no folder {folder}: copy the model there, or put it where all nodes read it."
                )
            wrong = [name for name, size in (files or {}).items() if there.get(name) != size]
            if wrong:
                size = there.get(wrong[0], "no")
                raise InvalidConfig(
                    f"{folder} is another one on {where}: {wrong[0]} has {size} bytes there, and "
                    f"{(files or {})[wrong[0]]} here. Copy the model there again."
                )


def _files(folder: Path) -> dict[str, int] | None:
    """Return the sizes of the files that a rank reads of a model; None if there is no such folder."""
    if not folder.is_dir():
        return None
    names = [path for path in folder.iterdir() if path.suffix in _WEIGHTS or path.name == "config.json"]
    return {path.name: path.stat().st_size for path in names if path.exists()}


def choose_interface(address: str) -> None:
    """Let ranks talk on the interface of this node's address, by which Ray's nodes do, unless the user named one that
    others reach.
    """
    named = Environment.here().gloo_interface or "lo"
    if (named.startswith("lo") and not address.startswith("127.")) and (found := interface_of(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = found


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


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
