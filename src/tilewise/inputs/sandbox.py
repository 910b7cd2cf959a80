"""Work on untrusted text in a process of its own, bounded in time and memory.

The parent calls `run_confined`, and the process calls `confine_this_process` before it reads a word.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

_WALL_SECONDS = 30.0  # for a machine that is too busy to let it compute
_MEMORY_BYTES = 2**30


def run_confined(module: str, job: dict[str, Any]) -> list[Any]:
    """Give a module its job as JSON on standard input; return the JSON lines that it wrote, even if it was killed."""
    # -P: the folder it is called from is no place to import from.
    command = [sys.executable, "-P", "-m", module]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none) as process:
        try:
            output, _ = process.communicate(json.dumps(job).encode(), timeout=_WALL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return [json.loads(line) for line in output.split(b"\n")[:-1]]  # the last line may be cut short


def confine_this_process(seconds: int) -> None:
    """Allow this process from here on so many seconds of computing, 1 GiB, and no new file, connection or process."""
    if sys.platform == "win32":
        return
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {
        resource.RLIMIT_CPU: int(used) + seconds,
        resource.RLIMIT_AS: _MEMORY_BYTES,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        with suppress(ValueError, OSError):  # stricter already, or unknown to the system
            resource.setrlimit(name, (value, value))
