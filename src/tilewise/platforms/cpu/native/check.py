"""Tries the kernels of a shared object against the reference: `python -m ...check LIBRARY [NAME TO SKIP ...]`.

Runs in a process of its own (`verdict.py`), since a kernel may crash. It says `begin NAME`, then `right NAME` or
`wrong NAME WHY`, so that who reads knows in which kernel it ended. Shapes are small and odd on purpose.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.library import Native
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.reference import ReferenceOps

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Of numbers of about one, absolute and relative; bfloat16 rounds to a 256th."""


def noise(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_norm(ops: ReferenceOps, dtype: torch.dtype) -> Iterator[Tensor]:
    for rows, width in ((1, 64), (5, 33), (37, 896), (3, 7)):
        x, weight = noise(rows, width, seed=width, dtype=dtype), noise(width, seed=1, dtype=dtype)
        yield ops.rms_norm(x, weight, 1e-5)


CHECKS: dict[str, Callable[[ReferenceOps, torch.dtype], Iterator[Tensor]]] = {
    "rms_norm": rms_norm,
}
"""By kernel, as `NativeCpuOps` asks for it: what it does with some inputs, for any ops."""


def fault(name: str, native: NativeCpuOps) -> str:
    """What is wrong with a kernel; empty = nothing."""
    for dtype, tolerance in TOLERANCE.items():
        pairs = zip(CHECKS[name](native, dtype), CHECKS[name](ReferenceOps(), dtype), strict=True)
        for found, expected in pairs:
            if not torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=tolerance):
                worst = float((found.float() - expected.float()).abs().max())
                return f"differs from the reference by {worst:.1e} ({dtype}, {tuple(expected.shape)})"
    return ""


def main(library: str, *skip: str) -> None:
    ops = NativeCpuOps(Native.load(Path(library)))
    for name in CHECKS:
        if name not in skip:
            print("begin", name, flush=True)
            said = fault(name, ops)
            print(*(("wrong", name, said) if said else ("right", name)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
