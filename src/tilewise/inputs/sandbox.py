"""Work on untrusted text in a process of its own, bounded in time and memory.

Schemas, templates and grammars of others may ask for work without end, or break the library that reads them. Here that
ends a process that nobody misses.

A limit on processes (RLIMIT_NPROC) counts threads as well, and does not count those of root: under it a decoder that
starts a thread of its own fails for everybody but root. A filter of Linux (seccomp, `Documentation/userspace-api/
seccomp_filter.rst`) tells them apart: by it a process gives up starting programs and processes, and connections.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

_WALL_SECONDS = 30.0  # for a machine that is too busy to let it compute
_MEMORY_BYTES = 2**30


def run_confined(
    work: Callable[[Any], Iterable[Any]], job: Any, count: int, missing: Any, seconds: int, stack_bytes: int = 0
) -> list[Any]:
    """Return the `count` results of `work(job)`, run in another process; `missing` for those that it did not come to.

    `work` is a function of a module that loads little. It imports and opens what it needs before it returns; its
    results are computed confined, in so many seconds and on a stack of so many bytes, 0 = as large as usual. Job and
    results are JSON.
    """
    # -P: the folder it is called from is no place to import from.
    command = [sys.executable, "-P", "-m", __name__, work.__module__, work.__name__]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none) as process:
        try:
            output, _ = process.communicate(json.dumps([job, seconds, stack_bytes]).encode(), timeout=_WALL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    found = [json.loads(line) for line in output.split(b"\n")[:-1]]  # the last line may be cut short
    return [*found, *[missing] * (count - len(found))]


def main() -> None:
    job, seconds, stack_bytes = json.load(sys.stdin)
    module, name = sys.argv[1:]
    results = getattr(importlib.import_module(module), name)(job)
    threading.stack_size(stack_bytes)
    worker = threading.Thread(target=_write, args=(results, seconds))
    worker.start()
    worker.join()


def _write(results: Iterable[Any], seconds: int) -> None:
    confine_this_process(seconds)
    for result in results:
        print(json.dumps(result), flush=True)


def confine_this_process(
    seconds: int | None, memory: int = _MEMORY_BYTES, files: int = 3, threads: bool = False
) -> None:
    """Allow this process from here on so many seconds of computing (None = any), bytes of memory, and nothing new.

    That is no file or connection beyond the first `files` that it has open, no process, and no thread unless they are
    allowed. Where the system cannot tell threads from processes, there are none of either for users other than root.
    """
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if not (threads and refuse_new_processes()):
        limits[resource.RLIMIT_NPROC] = 0
    if seconds is not None:
        limits[resource.RLIMIT_CPU] = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + seconds
    for name, value in limits.items():
        with suppress(ValueError, OSError):  # stricter already, or unknown to the system
            resource.setrlimit(name, (value, value))


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


if __name__ == "__main__":
    main()
