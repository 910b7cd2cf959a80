"""The model of a plan, as it would be loaded, on a platform of which a device or an amount of memory is stated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from tilewise.capacity.files import Files, find_model, scheme_named
from tilewise.capacity.ranks import Weigher
from tilewise.config import EngineConfig, Quantization
from tilewise.errors import InvalidConfig
from tilewise.host import Memory
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.spec import tiling_of
from tilewise.models.config import ModelConfig
from tilewise.models.load import Architecture
from tilewise.plan.request import Device
from tilewise.platforms import DeviceKind, current_platform
from tilewise.platforms.ascend import AscendPlatform
from tilewise.platforms.base import Capture, Diagnosis, Platform
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cuda import GRAPH_SIZES
from tilewise.platforms.forms import Form, Grouped
from tilewise.platforms.kv_cache import BLOCK_SIZE, BLOCK_SIZES
from tilewise.platforms.ops import AttentionSize, ExpertSize, Ops, choices_bytes
from tilewise.platforms.weights import Use, Weight, nbytes_of, plain_weight, rounded_to_int8, side_by_side
from tilewise.quantize import FP8
from tilewise.runner.build import check_kv_dtype, chosen_dtype, draft_architecture
from tilewise.weights.quantization import check_method

USUAL_SHARE = 0.92
"""Share of a device's memory that engines take unless told otherwise (vLLM's default)."""
_SCALE, _ZERO = 2, 1
"""Bytes of a group's scale and zero point."""


def platform_of(device: Device, kind: DeviceKind = "auto") -> Platform:
    """Return the platform of a device; on this machine, one of that kind. Raises InvalidConfig where it has none."""
    if not device.here:
        return StatedPlatform(device.memory, npu=device.npu or kind == "npu")
    return CpuPlatform(Memory(device.memory, device.memory)) if device.memory_stated else current_platform(kind)


class StatedPlatform:
    """A device of which the memory alone is known. Attention is taken to keep no scores, as flash kernels do, and
    experts to be multiplied together.
    """

    name = "stated"
    device = torch.device("meta")
    shared_memory = False
    backend = "gloo"
    beside_host = True
    tile_batches: tuple[int, ...] = (8, 4, 2, 1)
    utilization: float | None = USUAL_SHARE
    graph_sizes = GRAPH_SIZES
    resize_kernels: str | None = None

    def __init__(self, memory: int, npu: bool = False) -> None:
        self._memory = memory
        self.tiles_beside = not npu
        self.block_sizes = AscendPlatform.block_sizes if npu else BLOCK_SIZES
        self.block_size = AscendPlatform.block_size if npu else BLOCK_SIZE

    def ops(self, batch_invariant: bool = False) -> Ops:
        if batch_invariant:
            raise InvalidConfig("batch_invariant is for CPUs: plan with --devices cpu, or leave it out.")
        return StatedOps()

    def check_ranks(self, ranks: int) -> None:
        """Do nothing: the plan counts devices."""

    def streams(self) -> None:
        return None

    def capturer(self, ops: Ops) -> Capture:
        def capture(step: Callable[[], Tensor]) -> NoReturn:
            raise NotImplementedError("nothing is computed on a stated device")

        return capture

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        return checkpoint

    def diagnose(self) -> Diagnosis:
        return Diagnosis({}, ())

    def total_memory(self) -> int:
        return self._memory

    def free_memory(self) -> int:
        return self._memory


class StatedOps(Ops):
    """Ops that tell sizes and compute nothing."""

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side(parts, bias, _kept)

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side([rounded_to_int8(part) for part in parts], bias, _kept)

    def paged_scratch(self, size: AttentionSize) -> int:
        return 0

    def dense_scratch(self, size: AttentionSize) -> int:
        return 0

    def moe_scratch(self, size: ExpertSize) -> int:
        return max(choices_bytes(size), super().moe_scratch(size))


def _kept(run: Sequence[Form], bias: Tensor | None) -> Weight:
    if not isinstance(run[0], Grouped):
        return plain_weight(run, bias)
    return _Sized(sum(_grouped_bytes(part) for part in run if isinstance(part, Grouped)) + nbytes_of(bias))


@dataclass(frozen=True, slots=True)
class _Sized:
    """A weight of which the size alone is known."""

    nbytes: int

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        raise NotImplementedError("nothing is computed on a stated device")


def _grouped_bytes(form: Grouped) -> int:
    """Return the bytes of codes with scales and zero points as files keep them."""
    zeros = 0 if form.shifts is None else form.shifts.numel() * _ZERO
    return form.scales.numel() * _SCALE + zeros + nbytes_of(form.codes, form.order)


@dataclass(frozen=True)
class PlannedModel:
    """A model as it would be loaded: its options, its number format and what counts its weights."""

    files: Files
    config: EngineConfig
    """The options that were asked for, with `quantization` as the engine knows it."""
    tiling: Tiling
    dtype: torch.dtype
    weigher: Weigher
    draft: Weigher | None = None

    @property
    def sizes(self) -> ModelConfig:
        return self.weigher.architecture.config


def planned_model(config: EngineConfig, quantization: str | None, platform: Platform, work: Path) -> PlannedModel:
    """Plan a model from its small files. Raises InvalidConfig, InvalidCheckpoint and UnknownModel, as a start would."""
    files = find_model(config, quantization, work)
    config = replace(config, quantization=_at_load(files, quantization))
    if isinstance(platform, StatedPlatform) and config.gpu_memory_utilization is None:
        # Said outright, so that no variable for the processor of this machine counts.
        config = replace(config, gpu_memory_utilization=platform.utilization)
    architecture = Architecture.of(files.folder, config.flash_router, config.quantization)
    if config.dtype == "auto" and isinstance(platform, StatedPlatform):
        dtype = architecture.dtype
    else:
        dtype = chosen_dtype(config, architecture, platform)
    check_kv_dtype(config, dtype)
    weigher = Weigher(architecture, platform.ops(), dtype, config.quantization, files.to_be)
    tiling = tiling_of(files.folder).override(config.mm_processor_kwargs)
    return PlannedModel(files, config, tiling, dtype, weigher, _draft(config, architecture, weigher, work))


def _at_load(files: Files, wanted: str | None) -> Quantization | None:
    """Return `EngineConfig.quantization`. Raises InvalidConfig where the files are quantised in another way."""
    if wanted == "int8":
        return "int8"
    if wanted == FP8 and files.folder.quantization is None:
        return "fp8"
    if wanted is None or files.scheme is not None:
        return None
    if not files.to_be:
        check_method(files.folder, wanted)
    elif files.stored not in (wanted, scheme_named(wanted)):
        raise InvalidConfig(f"--quantization {wanted}, but {files.stored} is what the model's name says: leave it out.")
    return None


def _draft(config: EngineConfig, target: Architecture, weigher: Weigher, work: Path) -> Weigher | None:
    wanted = config.speculation
    if wanted is None or wanted.model is None:
        return None
    files = find_model(replace(config, model=wanted.model, revision=None, mmproj=None), None, work)
    architecture = draft_architecture(files.folder, target, config)
    return Weigher(architecture, weigher.ops, weigher.dtype, config.quantization, files.to_be)
