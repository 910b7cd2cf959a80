"""Work on untrusted text in a process of its own, bounded in time and memory.

Schemas, templates and grammars of others may ask for work without end, or break the library that reads them. Here that
ends a process that nobody misses.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from tilewise.inputs.syscalls import refuse_new_processes

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


if __name__ == "__main__":
    main()
