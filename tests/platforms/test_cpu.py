"""What `--dtype auto` means on a CPU."""

from __future__ import annotations

import pytest
import torch

from tilewise.platforms.cpu import CpuPlatform, choose_dtype, has_bfloat16
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.kernels import Native

B16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("checkpoint", "native", "free", "expected"),
    [
        (B16, True, 100, B16),
        (F16, True, 100, B16),
        (F32, True, 100, F32),
        (B16, False, 80, F32),  # ten parameters take 40 bytes, half of what is free
        (F16, False, 80, F32),
        (B16, False, 79, B16),
        (F16, False, 79, B16),
        (F32, False, 1, F32),
    ],
)
def test_float32_where_bfloat16_is_slow_and_memory_is_plenty(checkpoint, native, free, expected):
    assert choose_dtype(checkpoint, 10, free, native) == expected


def test_without_kernels_this_machine_chooses_by_its_instructions():
    platform = CpuPlatform()
    platform.kernels = NoKernels("none are wanted")
    assert platform.default_dtype(B16, parameters=1000) == (B16 if has_bfloat16() else F32)


def test_kernels_that_widen_bfloat16_keep_it():
    platform = CpuPlatform()
    if isinstance(platform.kernels, NoKernels):
        pytest.skip(str(platform.kernels))
    assert platform.default_dtype(B16, parameters=1000) == B16
    platform.kernels = Native(platform.kernels.path, left_out={"store": "differs"})
    assert platform.default_dtype(B16, parameters=1000) == (B16 if has_bfloat16() else F32)


def test_kernels_that_resize_wrongly_are_not_used():
    platform = CpuPlatform()
    if isinstance(platform.kernels, NoKernels):
        pytest.skip(str(platform.kernels))
    assert platform.resize_kernels == str(platform.kernels.path)
    platform.kernels = Native(platform.kernels.path, left_out={"resize": "differs"})
    assert platform.resize_kernels is None
    platform.kernels = NoKernels("none are wanted")
    assert platform.resize_kernels is None
