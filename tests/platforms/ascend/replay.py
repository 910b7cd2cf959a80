"""Give calls to schemas and meta kernels of torch_npus: `python -m tests.platforms.ascend.replay FILE VERSION...`.

There can be one torch_npu in a process, so each gets one, forked from this, which has loaded torch for all. FILE has
pickled calls; what is refused is printed behind the version.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from tests.platforms.ascend.interface import load
from tests.platforms.ascend.stand_ins import STAND_INS
from tests.platforms.ascend.wheels import FOLDER


def main(file: str, *versions: str) -> int:
    """Print for each version how its process ended: `VERSION: 0` if it takes every call."""
    for version in versions:
        if not (child := os.fork()):
            _replay(version, file)
        _, status = os.waitpid(child, 0)
        print(f"{version}: {os.waitstatus_to_exitcode(status)}", flush=True)
    return 0


def _replay(version: str, file: str) -> NoReturn:
    """Leave this process with 0 if a version takes every call."""
    refused = -1
    try:
        interface, refused = load(FOLDER / version, tuple(STAND_INS)), 0
        for call in pickle.loads(Path(file).read_bytes()):
            if call.op in interface.without_meta:
                continue
            try:
                call.on_meta()
            except Exception as error:  # whatever a meta kernel raises
                refused += 1
                print(f"{version}: {call.op}: {error}", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
    finally:
        os._exit(int(refused != 0))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
