"""A filter of system calls, by which a process of Linux gives up starting programs and processes, and connections.

A limit on processes (RLIMIT_NPROC) counts threads as well, and does not count those of root: under it a decoder that
starts a thread of its own fails for everybody but root. The kernel's filter (seccomp, `Documentation/userspace-api/
seccomp_filter.rst`) tells them apart.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple


class _Machine(NamedTuple):
    """The numbers of an architecture and its system calls (`linux/audit.h`, `asm/unistd.h`)."""

    arch: int
    refused: tuple[int, ...]
    """Numbers of fork, vfork, execve, execveat, socket, connect, ptrace, kill and process_vm_writev."""
    clone: int
    clone3: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, (57, 58, 59, 322, 41, 42, 101, 62, 311), 56, 435),
    "aarch64": _Machine(0xC00000B7, (221, 281, 198, 203, 117, 129, 271), 220, 435),
}
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_CLONE_THREAD = 0x00010000
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _IS, _AT_LEAST, _HAS_ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_X32 = 0x40000000
"""The bit that x86-64 sets in the numbers of calls with 32-bit pointers, which are other ways to the same."""
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's description of a call, `struct seccomp_data`."""


def _program(machine: _Machine) -> Iterator[tuple[int, int, int, int]]:
    """Yield instructions: code, jumps if true and if false, and the number that they are about."""
    yield _LOAD, 0, 0, _ARCH
    yield _IS, 1, 0, machine.arch
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM  # calls of another architecture, whose numbers are others
    yield _LOAD, 0, 0, _NUMBER
    yield _AT_LEAST, 0, 1, _X32
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    for number in machine.refused:
        yield _IS, 0, 1, number
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    # As if the kernel had no clone3, whose flags are out of a filter's sight: libraries ask for clone then.
    yield _IS, 0, 1, machine.clone3
    yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    yield _IS, 0, 3, machine.clone
    yield _LOAD, 0, 0, _FIRST_ARGUMENT
    yield _HAS_ANY, 1, 0, _CLONE_THREAD
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_new_processes() -> bool:
    """Refuse this process new processes, programs and connections for good; it may still start threads.

    Return False where there is no such filter: on other systems and processors, and in sandboxes that forbid it.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.maxsize < 2**32:
        return False
    instructions = b"".join(struct.pack("=HBBI", *one) for one in _program(machine))
    program = _Program(len(instructions) // 8, instructions)
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return bool(library.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0)
