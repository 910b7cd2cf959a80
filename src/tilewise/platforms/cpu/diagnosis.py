"""The report of `tilewise doctor` on a CPU: the machine, and which implementation each op has and why."""

from __future__ import annotations

import os

import torch

from tilewise.host import available_memory
from tilewise.platforms.base import OPS, Choice
from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.build import cache_folder
from tilewise.platforms.cpu.native.check import CHECKS
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.units import GIB


def facts(dtype: torch.dtype, kernels: Native | NoKernels) -> dict[str, str]:
    """Describe the machine; `dtype` is what a small checkpoint of bfloat16 is computed in."""
    machine, memory = Machine.here(), available_memory()
    quota = "all of their time" if machine.quota is None else f"a container's quota of {machine.quota:g}"
    return {
        "CPU": machine.name,
        "cores": f"{machine.cores}, {quota}",
        "instructions": " ".join(machine.instructions) or "none of those that kernels use",
        "memory": f"{memory.total / GIB:.1f} GiB, {memory.free / GIB:.1f} free",
        "threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})",
        "dtype": f"{dtype} for a small checkpoint of torch.bfloat16".replace("torch.", ""),
        "torch": torch.__version__,
        "compiler": kernels.compiler if isinstance(kernels, Native) else "none was of use",
        "products": kernels.matrices.instructions if isinstance(kernels, Native) else "torch",
        "kernels": str(cache_folder(os.environ)) if isinstance(kernels, Native) else f"none: {kernels}",
    }


def choices(kernels: Native | NoKernels) -> tuple[Choice, ...]:
    equal = "equal to the reference when it was tried; other dtypes than float32, bfloat16 by torch"
    return (
        *(_choice(op, kernels, "torch", equal) if op in CHECKS else _without_kernel(op) for op in OPS),
        *(_choice(op, kernels, "torch", equal) for op in CHECKS if op.startswith("quantised_")),
        _choice("store_levels", kernels, "torch", "int8 of checkpoints: exact sums when it was tried"),
        _choice(
            "store_grouped",
            kernels,
            "torch",
            "codes of 4 and 8 bits in groups: equal to the dequantised matrix when it was tried",
        ),
        _choice("resize", kernels, "Pillow", "equal to Pillow, which does pictures of a few pixels"),
    )


def _without_kernel(op: str) -> Choice:
    why = "weights multiply as `store` says; this op is for others" if op == "linear" else "there is no kernel for it"
    return Choice(op, "torch", why)


def _choice(op: str, kernels: Native | NoKernels, instead: str, why: str) -> Choice:
    if isinstance(kernels, NoKernels):
        return Choice(op, instead, str(kernels))
    if op in kernels.left_out:
        return Choice(op, instead, f"the kernel {kernels.left_out[op]}")
    return Choice(op, "kernel", why)
