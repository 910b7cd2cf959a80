"""Kernels of our own against torch's ops, in turn, on shapes of InternVL3-1B: medians, rates and ratios.

python benchmarks/cpu_ops.py [--threads N] [--rounds N] [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tilewise.errors import InvalidConfig
from tilewise.host import short_waits

# Read when torch is imported: its threads would spin behind each of its ops, on the cores of ours that come next.
os.environ.update(short_waits(os.environ))

import torch

from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import TorchOps

TOKENS, HEADS, WIDTH = 1025, 16, 64
"""Of a tile in the tower."""
BLOCK = 16


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    call: Callable[[TorchOps], object]
    work: float
    """Floating-point operations of an attention, bytes of all else."""
    unit: str


def attention(name: str, lengths: list[int], counts: list[int], dtype: torch.dtype, unit: str = "GFLOP/s") -> Case:
    """14 query heads on 2 key/value heads, blocks out of order."""
    needed = [-(-length // BLOCK) for length in lengths]
    table = torch.zeros(len(lengths), max(needed), dtype=torch.int64)
    for row, blocks in enumerate(torch.randperm(sum(needed)).split(needed)):
        table[row, : len(blocks)] = blocks
    starts = [sum(counts[:row]) for row in range(len(counts) + 1)]
    layout = PagedLayout(torch.tensor(starts), torch.tensor(lengths), table, torch.zeros(0, dtype=torch.int64))
    cache, query = torch.randn(2, sum(needed), BLOCK, 2, 64).to(dtype), torch.randn(sum(counts), 14, 64).to(dtype)
    pairs = sum(
        count * (length - count) + count * (count + 1) / 2 for length, count in zip(lengths, counts, strict=True)
    )
    work = 4 * pairs * 14 * 64 if unit == "GFLOP/s" else sum(lengths) * 2 * 2 * 64 * dtype.itemsize
    return Case(name, lambda ops: ops.paged_attention(query, cache, layout, 0.125), work, unit)


def cases(dtype: torch.dtype) -> Iterator[Case]:
    qkv = torch.randn(1, TOKENS, 3 * HEADS * WIDTH).to(dtype).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (HEADS, WIDTH)) for part in qkv)
    work = 4.0 * HEADS * TOKENS**2 * WIDTH
    yield Case("attention of a tile", lambda ops: ops.dense_attention(query, key, value, 0.125), work, "GFLOP/s")
    yield attention("prefill of 3,400", [3400], [3400], dtype)
    yield attention("chunk of 512 behind 2,888", [3400], [512], dtype)
    yield attention("decode behind 3,400", [3400], [1], dtype, "GB/s")
    yield attention("decode of 8 behind 300", [300] * 8, [1] * 8, dtype, "GB/s")
    x, wide = torch.randn(TOKENS, 1024).to(dtype), torch.randn(TOKENS, 4096).to(dtype)
    vector, gate_up, heads = torch.randn(1024).to(dtype), torch.randn(300, 9728).to(dtype), torch.randn(300, 14, 64)
    angles, turned = torch.randn(300, 32), heads.to(dtype)
    size, times = dtype.itemsize, x.numel() * dtype.itemsize
    yield Case("layer norm", lambda ops: ops.layer_norm(x, vector, vector, 1e-6), 2 * times, "GB/s")
    yield Case("RMS norm", lambda ops: ops.rms_norm(x, vector, 1e-6), 2 * times, "GB/s")
    yield Case("GELU", lambda ops: ops.gelu(wide), 8 * times, "GB/s")
    yield Case("scaled residual", lambda ops: ops.add_scaled(x, vector, x), 2 * times, "GB/s")
    yield Case("silu, product", lambda ops: ops.silu_mul(gate_up), 1.5 * gate_up.numel() * size, "GB/s")
    yield Case(
        "residual, layer norm", lambda ops: ops.add_layer_norm(x, vector, x, vector, vector, 1e-6), 4 * times, "GB/s"
    )
    slots = torch.arange(300)
    layout, cache = (
        PagedLayout(torch.tensor([0, 300]), torch.tensor([300]), slots[None, :19], slots),
        torch.zeros(2, 19, BLOCK, 2, 64, dtype=dtype),
    )
    parts = turned, turned[:, :2], turned[:, 2:4]
    moved = 2 * size * sum(part.numel() for part in parts)
    yield Case("rope, KV write", lambda ops: ops.rope_into_cache(*parts, angles, angles, cache, layout), moved, "GB/s")


def seconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Medians of calls made in turn, so that a busy spell meets all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            own.append(time.perf_counter() - started)
    return [statistics.median(own[1:]) for own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only cases with one of these words in their name")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    platform = CpuPlatform()
    if isinstance(platform.kernels, NoKernels):
        raise InvalidConfig(f"There is nothing to compare: {platform.kernels}.")
    both = [platform.ops(), TorchOps()]
    title = f"medians of {options.rounds}, {options.threads} threads"
    table = Table("op", "dtype", "kernel, ms", "torch, ms", "torch / kernel", "kernel reaches", title=title)
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases(dtype):
            if options.names and not any(name in case.name for name in options.names):
                continue
            ours, torchs = seconds([lambda ops=ops, case=case: case.call(ops) for ops in both], options.rounds)
            rate = f"{case.work / ours * 1e-9:.1f} {case.unit}"
            name = str(dtype).removeprefix("torch.")
            table.add_row(case.name, name, f"{1e3 * ours:.3f}", f"{1e3 * torchs:.3f}", f"{torchs / ours:.1f}", rate)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
