"""What `--devices` may name, and what is said of anything else."""

from __future__ import annotations

import pytest

from tilewise.capacity.model import platform_of
from tilewise.errors import InvalidConfig
from tilewise.plan.request import DEVICES, read_devices
from tilewise.platforms.ascend import AscendPlatform
from tilewise.platforms.kv_cache import BLOCK_SIZE

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "count", "memory"),
    [
        ("64GiB", 1, 64 * GIB),
        ("16x64GiB", 16, 64 * GIB),
        ("16 x 64 GiB", 16, 64 * GIB),
        ("4×80GB", 4, 80 * 10**9),
        ("2X24g", 2, 24 * GIB),
        ("1.5TiB", 1, 1536 * GIB),
        ("2xH100", 2, 81559 * 2**20),
        ("2xA100-40G", 2, 40 * GIB),
        ("a100", 1, 80 * GIB),
        ("A100 80GB", 1, 80 * GIB),
        ("NVIDIA RTX 4090", 1, 24564 * 2**20),
        ("4090", 1, 24564 * 2**20),
        ("2x NVIDIA GeForce RTX 3090", 2, 24 * GIB),
        ("NVIDIA RTX 6000 Ada Generation", 1, 49140 * 2**20),
        ("NVIDIA RTX A6000", 1, 49140 * 2**20),
        ("Ascend 910B4", 1, 32 * GIB),
        ("16xA3", 16, 64 * GIB),
        ("4x910B3", 4, 64 * GIB),
        ("8x910b2", 8, 64 * GIB),
        ("H200:100GiB", 1, 100 * GIB),
        ("cpu", 1, 7 * GIB),
        ("cpu:16GiB", 1, 16 * GIB),
    ],
)
def test_how_many_of_how_much_memory(text, count, memory):
    found = read_devices(text, memory_here=7 * GIB)
    assert (found.count, found.device.memory) == (count, memory)
    assert found.device.here is text.startswith("cpu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("16x", "of what.*16x64GiB"),
        ("", "of what"),
        ("0x64GiB", "between 1 and 4096 of them, got 0"),
        ("-2x64GiB", "between 1 and 4096 of them, got -2"),
        ("9999xH100", "got 9999"),
        ("x64GiB", "no device 'x64GiB' is known"),
        ("H10", r"no device 'H10' is known.*Did you mean H\d+\?.*--bandwidth"),
        ("4x910B5", r"Did you mean 910B"),
        ("0GiB", "no device '0GiB' is known"),
        ("64", "no device '64' is known, and it is no memory such as 64GiB"),
        ("H100:lots", "'lots' is no memory; write it as 64GiB"),
        ("2xcpu", "this machine is one device.*use cpu"),
        ("2xH100,2xA100", "no device 'H100,2xA100' is known"),
    ],
)
def test_what_cannot_be_named_says_what_can(text, said):
    with pytest.raises(InvalidConfig, match=said):
        read_devices(text, memory_here=GIB)


@pytest.mark.parametrize(
    ("text", "kind", "npu"), [("910B2", "auto", True), ("64GiB", "npu", True), ("H100", "auto", False)]
)
def test_an_npu_has_blocks_of_its_own(text, kind, npu):
    """The plan takes them from the platform, so that what is planned is what is served."""
    found = platform_of(read_devices(text, GIB).device, kind)
    assert found.block_size == (AscendPlatform.block_size if npu else BLOCK_SIZE)
    assert (16 in found.block_sizes) is not npu


def test_speeds_that_are_stated_win_over_the_table():
    assert read_devices("64GiB", GIB).device.bandwidth is None
    stated = read_devices("2x64GiB", GIB, "1.6TB/s", "376:752").device
    assert (stated.bandwidth, stated.floats, stated.int8) == (1.6e12, 376e12, 752e12)
    other = read_devices("H100", GIB, "2000", "500").device
    assert (other.bandwidth, other.floats, other.int8) == (2e12, 500e12, 500e12)


@pytest.mark.parametrize(
    ("bandwidth", "tflops", "said"),
    [
        ("fast", None, "--bandwidth fast: give the GB/s"),
        ("0", None, "--bandwidth 0"),
        (None, "1:2:3", "--tflops 1:2:3: give the TFLOP/s"),
        (None, "-3", "--tflops -3"),
        (None, "inf", "--tflops inf"),
        (None, "nan", "--tflops nan"),
    ],
)
def test_speeds_that_are_none_are_refused(bandwidth, tflops, said):
    with pytest.raises(InvalidConfig, match=said):
        read_devices("64GiB", GIB, bandwidth, tflops)


@pytest.mark.parametrize("device", DEVICES.values(), ids=str)
def test_the_table_is_of_one_order(device):
    """Memory between 20 and 200 GiB, and arithmetic that takes tens to hundreds of operations for each byte read."""
    assert 20 * GIB < device.memory < 200 * GIB
    assert 30 < device.floats / device.bandwidth < 500
    assert 1.9 < device.int8 / device.floats < 4.1


@pytest.mark.parametrize("many", ["9" * 400, "1" * 5000])
@pytest.mark.parametrize("text", ["{}x64GiB", "{}GiB", "cpu:{}GiB"])
def test_numbers_beyond_all_machines_are_refused(text, many):
    with pytest.raises(InvalidConfig, match="--devices"):
        read_devices(text.format(many), memory_here=7 * GIB)
    with pytest.raises(InvalidConfig, match="--bandwidth"):
        read_devices("cpu", memory_here=7 * GIB, bandwidth=many)
