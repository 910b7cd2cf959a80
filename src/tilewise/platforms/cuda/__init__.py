"""NVIDIA GPUs: torch's own ops, and Triton kernels of ours in their places."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.platforms.base import Capture, Choice, Diagnosis, NotCapturable
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.draw import DEVICE_ROWS
from tilewise.platforms.kv_cache import BLOCK_SIZE, BLOCK_SIZES, PagedLayout
from tilewise.platforms.ops import OPS, Ops, TorchOps, overrides
from tilewise.platforms.transfers import Streams
from tilewise.units import GIB

logger = logging.getLogger("tilewise")


@dataclass(frozen=True, slots=True)
class Card:
    """The properties of a GPU from which alone the sizes of kernels are chosen, so that kernels can be compiled for a
    card that is not here.
    """

    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""
    processors: int
    """Streaming multiprocessors."""

    @classmethod
    def of(cls, device: torch.device) -> Card:
        found = torch.cuda.get_device_properties(device)
        return cls((found.major, found.minor), found.multi_processor_count)

    @property
    def has_fp8(self) -> bool:
        """True if tensor cores multiply float8_e4m3fn, as they do since Ada and Hopper."""
        return self.capability >= (8, 9)

    @property
    def has_wide_tiles(self) -> bool:
        """True if tensor cores read operands out of shared memory, of which a block of threads may have 227 KiB: those
        of Hopper and of data centres' Blackwell. Desktop cards with Blackwell (12.0) multiply as Ampere does, in 99.
        """
        return self.capability[0] in (9, 10)


A100, H100, B200 = Card((8, 0), 108), Card((9, 0), 132), Card((10, 0), 148)
RTX3090, RTX4090, RTX5090 = Card((8, 6), 82), Card((8, 9), 128), Card((12, 0), 170)
"""Cards for which the tests compile kernels: of data centres, and of desktops."""


@dataclass(frozen=True, slots=True)
class CudaGraph:
    graph: torch.cuda.CUDAGraph
    result: Tensor
    first: None = None  # kernels are written down while they are captured, and not launched

    def replay(self, layout: PagedLayout | None = None) -> Tensor:
        self.graph.replay()
        return self.result


class CudaCapture:
    """A function that captures steps. They share one pool of memory between kernels, so one runs at a time.

    They are captured on a stream of their own. cuBLAS has a workspace for each stream, whose address a graph keeps: the
    graphs of two captures, which may run beside each other, must not write to the same one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """A stream with the priority of the one that steps run in, which kernels of a graph keep."""
        return torch.cuda.Stream(self._device, priority=torch.cuda.current_stream(self._device).priority)

    def __call__(self, step: Callable[[], Tensor]) -> CudaGraph:
        steps, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        self._stream.wait_stream(steps)
        # torch stays in the stream of a capture whose end fails: this outer block leaves it in any case.
        with torch.cuda.stream(self._stream):
            # Run once outside, where kernels are compiled and libraries take their workspaces. A step may be run again:
            # it writes the same keys and values to the same places. Its memory goes back when the capture begins, which
            # waits for the device and empties torch's cache.
            step()
            steps.wait_stream(self._stream)
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    result = step()
            except RuntimeError as error:
                if any(isinstance(one, torch.OutOfMemoryError) for one in (error, error.__context__)):
                    raise
                raise NotCapturable(str(error).splitlines()[0]) from error
        return CudaGraph(graph, result)


GRAPH_SIZES = (1, 2, 4, *range(8, 513, 8))
"""Numbers of sequences for which steps are captured (vLLM's sizes): others are filled up to the next one."""


def cuda_missing() -> str | None:
    """Return why there is no GPU to compute on; None if there is one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install torch for CUDA from pytorch.org"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU: look at nvidia-smi, at the driver, and at CUDA_VISIBLE_DEVICES"
    return None


class GpuTorchOps(TorchOps):
    """Torch's ops, on a GPU for which there are no kernels of ours."""

    drawn_at_once = DEVICE_ROWS


class CudaPlatform:
    """One NVIDIA GPU of this machine."""

    name = "cuda"
    shared_memory = False
    backend = "cpu:gloo,cuda:nccl"  # what ranks tell each other besides numbers stays on the host
    beside_host = True
    tiles_beside = True
    # Each size is launched whole beside decoding; 13 tiles, the most of a picture, take three batches.
    tile_batches: tuple[int, ...] = (8, 4, 2, 1)
    block_sizes = BLOCK_SIZES
    block_size = BLOCK_SIZE
    utilization: float | None = 0.92
    graph_sizes: tuple[int, ...] = GRAPH_SIZES

    def __init__(self, number: int = 0) -> None:
        """Take the GPU with this number among those that are visible. Raises InvalidConfig where there is none."""
        if (missing := cuda_missing()) is not None:
            raise InvalidConfig(f"device=cuda is not possible: {missing}, or use device=cpu.")
        self._number = number
        self.check_ranks(1)
        self.device = torch.device("cuda", number)
        torch.cuda.set_device(self.device)

    def check_ranks(self, ranks: int) -> None:
        needed, found = self._number + ranks, torch.cuda.device_count()
        if needed > found:
            raise InvalidConfig(
                f"{needed} GPUs are needed, one for each rank, and {found} are visible: lower tensor_parallel_size, "
                "pipeline_parallel_size or data_parallel_size, or look at CUDA_VISIBLE_DEVICES."
            )

    @property
    def resize_kernels(self) -> str | None:
        """Path of the CPU's kernels, as pictures are cut on the host."""
        return CpuPlatform().resize_kernels

    @cached_property
    def card(self) -> Card:
        return Card.of(self.device)

    @cached_property
    def no_kernels(self) -> str | None:
        """Reason why there are no kernels of ours; None if there are."""
        if Environment.here().cuda_kernels.off:
            return "switched off by TILEWISE_CUDA_KERNELS"
        if self.card.capability < (8, 0):
            return f"compute capability {self.card.capability} is below 8.0"
        try:
            import triton  # noqa: F401
        except ImportError as error:
            return f"Triton is missing ({error})"
        return None

    @cached_property
    def fp8_rows(self) -> bool:
        """True if rows are to be rounded to FP8 for matrices of FP8; where that is asked for in vain, the log says so
        once.
        """
        if not Environment.here().fp8_rows:
            return False
        missing = self.no_kernels
        if missing is None and not self.card.has_fp8:
            missing = f"compute capability {self.card.capability} is below 8.9, and has no products of FP8"
        if missing is not None:
            logger.warning("TILEWISE_FP8_ROWS has no effect: %s", missing)
        return missing is None

    def ops(self, batch_invariant: bool = False) -> Ops:
        if batch_invariant:
            raise InvalidConfig("batch_invariant is not possible with device=cuda: use device=cpu, or leave it out.")
        fp8_rows = self.fp8_rows
        if self.no_kernels is not None:
            return GpuTorchOps()
        from tilewise.platforms.cuda.triton_ops import TritonOps

        return TritonOps(self.card, fp8_rows)

    def streams(self) -> Streams:
        return Streams(self.device)

    def capturer(self, ops: Ops) -> Capture | None:
        """Return None for torch's own ops: they ask the device for lengths, so their steps cannot be captured."""
        return None if isinstance(ops, TorchOps) and self.no_kernels is not None else CudaCapture(self.device)

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        """Return the checkpoint's dtype, but float16 for bfloat16 on cards before Ampere, which cannot multiply it."""
        if checkpoint == torch.bfloat16 and self.card.capability < (8, 0):
            logger.info("dtype: float16, as this GPU has no products of bfloat16")
            return torch.float16
        return checkpoint

    def diagnose(self) -> Diagnosis:
        found, gib = torch.cuda.get_device_properties(self.device), self.free_memory() / GIB
        facts = {
            "GPU": found.name,
            "compute capability": ".".join(map(str, self.card.capability)),
            "processors": str(found.multi_processor_count),
            "memory": f"{found.total_memory / GIB:.1f} GiB, {gib:.1f} free",
            "torch": torch.__version__,
            "CUDA": str(torch.version.cuda),
            "kernels": "Triton" if self.no_kernels is None else f"torch's: {self.no_kernels}",
        }
        if self.fp8_rows:
            facts["FP8"] = "rows are rounded to FP8 for matrices of FP8, as TILEWISE_FP8_ROWS says"
        return Diagnosis(facts, tuple(map(self._choice, OPS)))

    def _choice(self, op: str) -> Choice:
        if self.no_kernels is not None:
            return Choice(op, "torch", self.no_kernels)
        from tilewise.platforms.cuda.triton_ops import TritonOps

        return (
            Choice(op, "Triton", "a kernel of ours") if overrides(TritonOps, op) else Choice(op, "torch", "no kernel")
        )

    def total_memory(self) -> int:
        return torch.cuda.mem_get_info(self.device)[1]

    def free_memory(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]
