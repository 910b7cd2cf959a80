"""Ascend NPUs: torch's own ops, which torch_npu brings to them, and fused kernels of CANN in their places.

Checked call by call against torch_npu's schemas, and not yet run on a card (docs/ascend.md).
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.platforms.ascend.npu_ops import AscendOps
from tilewise.platforms.ascend.weights import NzLayout
from tilewise.platforms.base import Capture, Choice, Diagnosis, NotCapturable
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import OPS, Ops, overrides
from tilewise.platforms.transfers import Streams
from tilewise.units import GIB

logger = logging.getLogger("tilewise")

GRAPH_SIZES = (1, 2, 4, *range(8, 65, 8), *range(80, 513, 16))
"""Numbers of sequences for which steps are captured: fewer than on a GPU, as each takes streams, of which a card has
two thousand."""


def npu_installed() -> str | None:
    """Return the version of torch_npu in this environment; None if there is none."""
    try:
        return version("torch_npu")
    except PackageNotFoundError:
        return None


@cache
def npu_missing() -> str | None:
    """Return why there is no NPU to compute on; None if there is one. The first call loads torch_npu."""
    if (found := npu_installed()) is None:
        return "torch_npu is not installed, which brings torch to Ascend NPUs (docs/ascend.md says how)"
    if _release(found) != _release(torch.__version__):
        return f"torch_npu {found} is for another torch than {torch.__version__}: install those of one release"
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError) as error:
        return (
            f"torch_npu {found} cannot be loaded ({error}): install CANN, and source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh"
        )
    if not torch.get_device_module("npu").is_available():
        return "torch_npu finds no NPU: look at npu-smi info, at the driver, and at ASCEND_RT_VISIBLE_DEVICES"
    return None


def _release(found: str) -> list[str]:
    """Return the first two numbers of a version.

    >>> _release("2.13.0+cpu")
    ['2', '13']
    """
    return re.findall(r"\d+", found)[:2]


@dataclass(frozen=True, slots=True)
class AclGraph:
    """A step that an NPU repeats. Attention is told the lengths of its sequences by the host, so each replay tells
    it anew, by an update of the launches that were captured.
    """

    graph: Any
    result: Tensor
    npu: Any
    """torch's module for NPUs."""
    first: None = None  # launches are written down while they are captured, and not done

    def replay(self, layout: PagedLayout | None = None) -> Tensor:
        lengths = {} if layout is None or layout.own_lengths is None else _of_lengths(layout.own_lengths)
        # The last replay has to be through, or else it would be told the lengths of this one.
        self.npu.current_stream().synchronize()
        self.graph.replay()
        self.graph.update(cpu_update_input=[lengths])
        return self.result


def _of_lengths(lengths: Any) -> dict[str, list[int]]:
    """Return the arguments for an update; each kernel takes the one that it knows."""
    return {"actual_seq_lengths_kv": list(lengths), "actual_seq_kvlen": list(lengths)}


def capturer_of(npu: Any) -> Capture:
    """Return a function that captures steps, by torch's module for NPUs.

    They share one pool of memory between kernels, so one runs at a time.
    """
    pool = npu.graph_pool_handle()

    def capture(step: Callable[[], Tensor]) -> AclGraph:
        # Run once outside, where libraries take their workspaces. A step may be run again: it writes the same keys and
        # values to the same places.
        step()
        npu.synchronize()
        graph = npu.NPUGraph()
        try:
            with npu.graph(graph, pool=pool, auto_dispatch_capture=True):
                result = step()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:  # TypeError: torch_npu before 2.9 cannot update a graph
            raise NotCapturable((str(error).splitlines() or [type(error).__name__])[0]) from error
        return AclGraph(graph, result, npu)

    return capture


class AscendPlatform:
    """One Ascend NPU of this machine."""

    name = "npu"
    shared_memory = False
    backend = "cpu:gloo,npu:hccl"  # what ranks tell each other besides numbers stays on the host
    beside_host = True
    tiles_beside = False
    tile_batches: tuple[int, ...] = (8, 4, 2, 1)
    utilization: float | None = 0.92
    graph_sizes: tuple[int, ...] = GRAPH_SIZES
    block_sizes = range(128, 513, 128)  # as attention over a paged cache takes them
    block_size = 128

    def __init__(self, number: int = 0) -> None:
        """Take the NPU with this number among those that are visible. Raises InvalidConfig where there is none."""
        if (missing := npu_missing()) is not None:
            raise InvalidConfig(f"device=npu is not possible: {missing}, or use device=cpu.")
        self._npu: Any = torch.get_device_module("npu")
        self._number = number
        self.check_ranks(1)
        self.device = torch.device("npu", number)
        self._npu.set_device(self.device)

    def check_ranks(self, ranks: int) -> None:
        needed, found = self._number + ranks, self._npu.device_count()
        if needed > found:
            raise InvalidConfig(
                f"{needed} NPUs are needed, one for each rank, and {found} are visible: lower tensor_parallel_size, "
                "pipeline_parallel_size or data_parallel_size, or look at ASCEND_RT_VISIBLE_DEVICES."
            )

    @property
    def resize_kernels(self) -> str | None:
        """Path of the CPU's kernels, as pictures are cut on the host."""
        return CpuPlatform().resize_kernels

    def ops(self, batch_invariant: bool = False) -> Ops:
        if batch_invariant:
            raise InvalidConfig("batch_invariant is not possible with device=npu: use device=cpu, or leave it out.")
        asked = Environment.here().nz_layout
        return AscendOps(NzLayout.QUANTISED if asked is None else NzLayout(int(asked)))

    def streams(self) -> Streams | None:
        """Return None: tiles are encoded between steps, until a card has shown what is gained beside them."""
        return None

    def capturer(self, ops: Ops) -> Capture | None:
        return capturer_of(self._npu) if isinstance(ops, AscendOps) else None

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        """Return the checkpoint's dtype, but bfloat16 for float32, in which attention has no kernel."""
        return torch.bfloat16 if checkpoint == torch.float32 else checkpoint

    def diagnose(self) -> Diagnosis:
        found, gib = self._npu.get_device_properties(self.device), self.free_memory() / GIB
        facts = {
            "NPU": found.name,
            "memory": f"{self.total_memory() / GIB:.1f} GiB, {gib:.1f} free",
            "torch": torch.__version__,
            "torch_npu": version("torch_npu"),
            "kernels": "CANN's, checked against torch_npu's schemas (tilewise doctor --ops tries them)",
        }
        return Diagnosis(facts, tuple(map(_choice, OPS)))

    def total_memory(self) -> int:
        total: int = self._npu.mem_get_info(self.device)[1]
        return total

    def free_memory(self) -> int:
        free: int = self._npu.mem_get_info(self.device)[0]
        return free


def _choice(op: str) -> Choice:
    if overrides(AscendOps, op):
        return Choice(op, "CANN", "a fused kernel, where it takes dtype and sizes; else torch")
    return Choice(op, "torch", "no kernel")
