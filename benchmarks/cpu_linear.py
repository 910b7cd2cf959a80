"""Products of a model's matrices on the CPU: packed weights beside torch's F.linear, in turn.

    python benchmarks/cpu_linear.py [--rows 1 8 256 1025] [--seconds 1] [--threads 2] [--busy] [--grouped]

Shapes are those of InternVL3-1B. GFLOP/s (GOP/s of int8) are those of the median run, GB/s the bytes of the weights in
it; int8 stands beside torch in bfloat16. Memory is read first, by torch's sum of a GiB, as what one row can hope for.
With --grouped, codes in groups stand beside int8 and bfloat16, with rows of bfloat16: ratios are those to int8.
With --busy it is one thread and the seconds that it computes, for a machine that others use at the time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tilewise.host import short_waits

# Read when torch is imported: its threads would spin behind each of its products, on the cores of ours that come next.
os.environ.update(short_waits(os.environ))

import torch
import torch.nn.functional as F

from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.cpu.packed import PackedGrouped
from tilewise.platforms.forms import Codes, Dense, Grouped
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Weight

SHAPES = {
    "tower qkv": (1024, 3072),
    "tower fc1": (1024, 4096),
    "tower fc2": (4096, 1024),
    "decoder gate, up": (896, 2 * 4864),
    "decoder down": (4864, 896),
    "decoder o": (896, 896),
    "head": (896, 151674),
}
"""Inputs and outputs."""
GROUPED_SHAPES = {
    "decoder gate": (896, 4864),
    "decoder down": (4864, 896),
    "4096": (4096, 4096),
    "head": (896, 151674),
}
TOO_MANY = 300e9
"""Operations of a product that is left out: the head never meets so many rows."""


@dataclass(frozen=True)
class Clock:
    seconds: float
    now: Callable[[], float]

    def medians(self, *works: Callable[[], object]) -> list[float]:
        """Of runs in turn, at least five each."""
        taken: list[list[float]] = [[] for _ in works]
        ends = time.perf_counter() + self.seconds
        while len(taken[0]) < 5 or time.perf_counter() < ends:
            for work, times in zip(works, taken, strict=True):
                started = self.now()
                work()
                times.append(self.now() - started)
        return [statistics.median(times) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 256, 1025])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line, at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--grouped", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.busy else options.threads)
    clock = Clock(options.seconds, time.thread_time if options.busy else time.perf_counter)
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__},", end=" ")
    print(f"{torch.get_num_threads()} threads; {' '.join(sys.argv[1:])}")
    ops = CpuPlatform().ops()
    if not isinstance(ops, NativeCpuOps):
        raise SystemExit("There are no kernels here: `tilewise doctor` says why.")
    print(f"memory is read at {memory_rate(clock):.1f} GB/s\n")
    if options.grouped:
        compare_forms(options.rows, ops, clock)
        return
    print(f"{'':18}{'rows':>6} {'weights':9}{'ours':>8}{'torch':>8}   {'ours':>6}{'torch':>7}        ratio")
    print(f"{'':18}{'':>6} {'':9}{'GFLOP/s':>16}   {'GB/s':>13}")
    for name, shape in SHAPES.items():
        for rows in options.rows:
            if 2 * rows * shape[0] * shape[1] < TOO_MANY:
                compare(name, shape, rows, ops, clock)


def memory_rate(clock: Clock) -> float:
    numbers = torch.ones(2**28)
    return numbers.nbytes / 1e9 / clock.medians(numbers.sum)[0]


def compare(name: str, shape: tuple[int, int], rows: int, ops: Ops, clock: Clock) -> None:
    inputs, outputs = shape
    for dtype in (torch.float32, torch.bfloat16):
        matrix, x = torch.randn(outputs, inputs).to(dtype), torch.randn(rows, inputs).to(dtype)
        kept = {str(dtype)[6:]: ops.store([Dense(matrix)], None)}
        if dtype == torch.bfloat16:
            kept["int8"] = ops.store_int8([Dense(matrix)], None)
        works = [partial(weight.apply, x, ops) for weight in kept.values()]
        *ours, torchs = clock.medians(*works, partial(F.linear, x, matrix))
        for (form, weight), seconds in zip(kept.items(), ours, strict=True):
            show(f"{name:18}{rows:6} {form:9}", 2e-9 * rows * inputs * outputs, weight, seconds, torchs, matrix.nbytes)


def grouped(kind: Codes, inputs: int, outputs: int, group: int, shifts: str, ops: NativeCpuOps) -> PackedGrouped:
    """Numbers do not matter: codes are any, scales what half precision holds unless shifts are floats."""
    codes = torch.randint(0, 120, (outputs, inputs * kind.bits // 8), dtype=torch.uint8)
    scales = (torch.rand(outputs, -(-inputs // group)) / 100 + 1e-3).half().float()
    zeros = {"": None, "zeros": torch.randint_like(scales, 16), "floats": torch.rand_like(scales)}[shifts]
    form = Grouped(kind, codes, scales, None if zeros is None else -zeros * scales, group)
    weight = PackedGrouped.of(ops.native, form, None)
    assert weight is not None
    return weight


def compare_forms(numbers_of_rows: list[int], ops: NativeCpuOps, clock: Clock) -> None:
    print(f"{'':14}{'rows':>6} {'weights':16}{'ms':>8}{'GB/s':>7}   time and GB/s to int8's")
    for name, (inputs, outputs) in GROUPED_SHAPES.items():
        matrix = torch.randn(outputs, inputs).bfloat16()
        kept: dict[str, Weight] = {
            "int8": ops.store_int8([Dense(matrix)], None),
            "bfloat16": ops.store([Dense(matrix)], None),
        }
        for title, kind, group, shifts in (
            ("4 bits", Codes.INT4, 128, ""),
            ("4 bits, zeros", Codes.UINT4, 128, "zeros"),
            ("4 bits, shifts", Codes.UINT4, 128, "floats"),
            ("FP4 by 32", Codes.FP4, 32, ""),
            ("8 bits", Codes.INT8, 128, ""),
            ("FP8", Codes.FP8, inputs, ""),
        ):
            kept[title] = grouped(kind, inputs, outputs, group, shifts, ops)
        for rows in numbers_of_rows:
            if 2 * rows * inputs * outputs < TOO_MANY:
                x = torch.randn(rows, inputs).bfloat16()
                times = clock.medians(*(partial(weight.apply, x, ops) for weight in kept.values()))
                for (title, weight), seconds in zip(kept.items(), times, strict=True):
                    rate, plain = weight.nbytes / 1e9 / seconds, kept["int8"].nbytes / 1e9 / times[0]
                    print(f"{name:14}{rows:6} {title:16}{1e3 * seconds:8.3f}{rate:7.1f}", end="")
                    print(f"{times[0] / seconds:9.2f} x {rate / plain:6.2f} x", flush=True)


def show(title: str, operations: float, weight: Weight, ours: float, torchs: float, nbytes: int) -> None:
    rates = f"{operations / ours:8.1f}{operations / torchs:8.1f}"
    reads = f"{weight.nbytes / 1e9 / ours:6.1f}{nbytes / 1e9 / torchs:7.1f}"
    print(f"{title}{rates}   {reads}   {torchs / ours:9.2f} x", flush=True)


if __name__ == "__main__":
    main()
