"""Give calls to the schemas and meta kernels of one torch_npu: `python -m tests.platforms.ascend.replay VERSION FILE`.

There can be one torch_npu in a process, so this is one of its own. FILE has pickled calls; what is refused is printed.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from tests.platforms.ascend.interface import load
from tests.platforms.ascend.stand_ins import STAND_INS
from tests.platforms.ascend.wheels import FOLDER


def main(version: str, file: str) -> int:
    interface, refused = load(FOLDER / version, tuple(STAND_INS)), 0
    for call in pickle.loads(Path(file).read_bytes()):
        if call.op in interface.without_meta:
            continue
        try:
            call.on_meta()
        except Exception as error:  # whatever a meta kernel raises
            refused += 1
            print(f"{call.op}: {error}")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
