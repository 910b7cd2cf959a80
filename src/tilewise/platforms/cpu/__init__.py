"""The CPU: kernels of our own where they can be built, torch's where it has fused ones, the reference elsewhere."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from functools import cached_property, partial

import torch

from tilewise.environment import Environment
from tilewise.host import Memory, available_memory
from tilewise.platforms.base import Capture, Choice, Diagnosis
from tilewise.platforms.cpu.invariant import InvariantCpuOps
from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import KernelsOff, NoKernels
from tilewise.platforms.cpu.native.build import build, cache_folder
from tilewise.platforms.cpu.native.capture import Arena, capture
from tilewise.platforms.cpu.native.check import CHECKS
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.kv_cache import BLOCK_SIZE, BLOCK_SIZES
from tilewise.platforms.ops import OPS, Ops, TorchOps
from tilewise.platforms.transfers import Streams
from tilewise.units import GIB

logger = logging.getLogger("tilewise")


def choose_dtype(checkpoint: torch.dtype, parameters: int, free_bytes: int, fast_bfloat16: bool) -> torch.dtype:
    """Return the checkpoint's own dtype, with two exceptions.

    float16 becomes bfloat16: CPUs compute it slowly, and models of bfloat16 overflow in it. bfloat16 becomes float32
    where products of it take several times as long, if there is plenty of memory.
    """
    if checkpoint == torch.float32 or fast_bfloat16 or 4 * parameters > free_bytes // 2:
        return torch.bfloat16 if checkpoint == torch.float16 else checkpoint
    logger.info("dtype: float32, which this CPU computes faster than bfloat16 (--dtype bfloat16 takes half the memory)")
    return torch.float32


def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16; of those in use, only some x86 lack them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def find_kernels(environment: Mapping[str, str]) -> Native:
    """Return kernels of our own, built if need be. Raises NoKernels."""
    switch = Environment(environment).cpu_kernels
    if switch.off:
        raise KernelsOff(f"switched off by TILEWISE_CPU_KERNELS={switch.text}")
    return build(environment, switch.level)


class CpuPlatform:
    name = "cpu"
    device = torch.device("cpu")
    shared_memory = True
    backend = "gloo"
    beside_host = False
    tiles_beside = False
    # One tile keeps all cores busy, two share a read of the weights; more take memory and are no faster (docs/cpu.md).
    tile_batches: tuple[int, ...] = (2, 1)
    block_sizes = BLOCK_SIZES
    block_size = BLOCK_SIZE
    utilization: float | None = None
    graph_sizes: tuple[int, ...] = ()

    def __init__(self, part: Memory | None = None) -> None:
        """Take `part` for the memory that there is; None = all of the machine's."""
        self._part = part

    @cached_property
    def kernels(self) -> Native | NoKernels:
        """The kernels of our own, or the reason why there are none."""
        try:
            return find_kernels(os.environ)
        except NoKernels as reason:
            # Without them answers take several times as long, which whoever has not asked for it should see.
            level = logging.INFO if isinstance(reason, KernelsOff) else logging.WARNING
            logger.log(level, "CPU kernels: none, %s", reason)
            return reason

    @property
    def resize_kernels(self) -> str | None:
        found = self.kernels
        return str(found.path) if isinstance(found, Native) and found.has("resize") else None

    def ops(self, batch_invariant: bool = False) -> TorchOps:
        native = self.kernels if isinstance(self.kernels, Native) else None
        if batch_invariant:
            return InvariantCpuOps(native)
        return NativeCpuOps(native) if native else TorchOps()

    def check_ranks(self, ranks: int) -> None:
        """Accept any number: ranks share the processor."""

    def streams(self) -> Streams | None:
        return None

    def capturer(self, ops: Ops) -> Capture | None:
        return partial(capture, ops.native, Arena()) if isinstance(ops, NativeCpuOps) else None

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        return choose_dtype(checkpoint, parameters, self.free_memory(), has_bfloat16() or self._widens_bfloat16())

    def _widens_bfloat16(self) -> bool:
        """Return whether kernels of ours multiply bfloat16 as fast as float32, while they read half as many bytes."""
        return isinstance(self.kernels, Native) and self.kernels.has("store")

    def diagnose(self) -> Diagnosis:
        return Diagnosis(_facts(self.default_dtype(torch.bfloat16, 1), self.kernels), _choices(self.kernels))

    def total_memory(self) -> int:
        return (self._part or available_memory()).total

    def free_memory(self) -> int:
        return (self._part or available_memory()).free


def _facts(dtype: torch.dtype, kernels: Native | NoKernels) -> dict[str, str]:
    """Describe the machine; `dtype` is what a small checkpoint of bfloat16 is computed in."""
    machine, memory = Machine.here(), available_memory()
    quota = "all of their time" if machine.quota is None else f"a container's quota of {machine.quota:g}"
    return {
        "CPU": machine.name,
        "cores": f"{machine.cores}, {quota}",
        "instructions": " ".join(machine.instructions) or "none of those that kernels use",
        "memory": f"{memory.total / GIB:.1f} GiB, {memory.free / GIB:.1f} free",
        "threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS={Environment.here().threads or 'not set'})",
        "dtype": f"{dtype} for a small checkpoint of torch.bfloat16".replace("torch.", ""),
        "torch": torch.__version__,
        "compiler": kernels.compiler if isinstance(kernels, Native) else "none was of use",
        "products": kernels.instructions if isinstance(kernels, Native) else "torch",
        "kernels": str(cache_folder(os.environ)) if isinstance(kernels, Native) else f"none: {kernels}",
    }


def _choices(kernels: Native | NoKernels) -> tuple[Choice, ...]:
    codes = "codes of 4 and 8 bits in groups"
    equal = "equal to the reference when it was tried; other dtypes than float32, bfloat16 by torch"
    return (
        *(_choice(op, kernels, "torch", equal) if op in CHECKS else _without_kernel(op) for op in OPS),
        *(_choice(op, kernels, "torch", equal) for op in CHECKS if op.startswith("quantised_")),
        _choice("store_levels", kernels, "torch", "int8 of checkpoints: exact sums when it was tried"),
        _choice("store_grouped", kernels, "torch", f"{codes}: equal to the dequantised matrix when it was tried"),
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
