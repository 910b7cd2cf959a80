"""Kernels compiled for cards that are not here: what a launch would compile, to PTX and machine code.

    python -m tests.platforms.cuda.ahead [NAME ... | -]

Launching functions are called with tensors that have shapes and no numbers; each launch is written down instead of
made, with the types, constants and alignments by which Triton would specialise it, and compiled for its card by the
ptxas that is part of Triton. Neither a GPU nor a driver takes part. Prints a JSON line for each kernel, or for a case
that failed, and then ends with status 1. With "-", whole names of cases are read from standard input, and an empty line
follows what is said of each.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from tilewise.platforms.cuda import Card

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
TENSOR_CORES = {"wgmma": "wgmma.mma_async", "mma": "mma.sync", "tcgen05": "tcgen05.mma"}
"""Instructions of tensor cores by family: Hopper's, those of all since Volta, Blackwell's."""


@dataclass(frozen=True, slots=True)
class Built:
    """What became of one launch."""

    case: str
    kernel: str
    card: str
    registers: int
    """A thread's."""
    spilled: int
    """Bytes of a thread that went to local memory."""
    shared: int
    """Bytes of shared memory that a block of threads takes."""
    tensor_cores: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Launch:
    source: ASTSource
    options: dict[str, Any]


def built(case: str, card: Card, launch: Callable[[], object]) -> list[Built]:
    """Everything that `launch` would compile for the card; the same kernel with the same constants once."""
    target = GPUTarget("cuda", card.capability[0] * 10 + card.capability[1], 32)
    with _written_down(target) as launches:
        launch()
    return [_built(case, target, found) for found in launches.values()]


@contextmanager
def _written_down(target: GPUTarget) -> Iterator[dict[str, _Launch]]:
    backend, found, run = make_backend(target), dict[str, _Launch](), JITFunction.run

    def write(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kwargs |= {"debug": False, "instrumentation_mode": ""}
        bind = create_function_from_signature(self.signature, self.params, backend)
        bound, specialisation, options = bind(*args, **kwargs)
        if callable(grid):
            grid(bound)
        packed, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialisation, options)
        source = ASTSource(self, signature, constants, attributes)
        found[f"{source.hash()} {packed}"] = _Launch(source, dict(packed.__dict__))

    JITFunction.run = write
    try:
        yield found
    finally:
        JITFunction.run = run


def _built(case: str, target: GPUTarget, launch: _Launch) -> Built:
    kernel = triton.compile(launch.source, target=target, options=launch.options)
    registers, stack, _, _ = _resources(kernel.asm["cubin"])
    found = tuple(name for name, instruction in TENSOR_CORES.items() if instruction in kernel.asm["ptx"])
    return Built(
        case, launch.source.name, f"sm_{target.arch}", registers, stack, kernel.metadata.shared, tensor_cores=found
    )


def _resources(cubin: bytes) -> tuple[int, ...]:
    """Registers, stack, static shared and local memory of a thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True)
    match = _RESOURCES.search(said.stdout + said.stderr)
    assert match, said.stdout
    return tuple(map(int, match.groups()))


def tell(case: str) -> bool:
    """Print what became of a case; whether it compiled."""
    from tests.platforms.cuda.launches import LAUNCHES

    try:
        for one in built(case, *LAUNCHES[case]):
            print(json.dumps(dataclasses.asdict(one)), flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"case": case, "failed": f"{type(error).__name__}: {error}"}), flush=True)
        return False
    return True


def answer() -> None:
    for line in sys.stdin:
        tell(line.rstrip("\n"))
        print(flush=True)


def main(names: list[str]) -> int:
    from tests.platforms.cuda.launches import LAUNCHES

    if names == ["-"]:
        answer()
        return 0
    compiled = [tell(case) for case in LAUNCHES if not names or any(name in case for name in names)]
    return int(not all(compiled))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
