"""What this machine can reach, the floor of each row by arithmetic, and which fraction of it was reached.

    python -m benchmarks.roofline --checkpoint DIR [--results benchmarks/results.json] [--threads N]

A C program measures memory reads and multiply-adds (limits.c, built on the fly); without a compiler torch's sum and
products stand in for it. Torch's products on the shapes of a tile are shown beside them: what a library reaches, not
what the chip can do. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.peers.floors import Amounts, Floors, Rates
from benchmarks.peers.report import NAMES
from benchmarks.peers.results import PRECISIONS, Results
from benchmarks.peers.tasks import ROWS
from benchmarks.peers.work import FULL, QUICK

from tilewise.models.load import Architecture
from tilewise.weights.folder import CheckpointFolder

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
CACHE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2}
SOURCE = Path(__file__).with_name("limits.c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="results.json of benchmarks.compare")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    limits = measure_limits(options.threads)
    amounts = Amounts(Architecture.of(CheckpointFolder.open(options.checkpoint)).config)
    print("\n".join(_limits_page(limits, options.threads)))
    print("\n".join(_amounts_page(amounts)))
    results = Results.load(options.results) if options.results else None
    sizes = QUICK if results and results.quick else FULL
    for precision in PRECISIONS:
        rates = Rates(limits["read"], _operations(limits, precision))
        floors = Floors(amounts, rates, BYTES[precision], CACHE_BYTES[precision], sizes)
        print("\n".join(_floors_page(precision, floors, results)))


def measure_limits(threads: int) -> dict[str, float]:
    """Bytes and operations a second by name; the best of several, since other work only makes them smaller."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return _compiled(compiler, threads) if compiler else _by_torch()


def _compiled(compiler: str, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "limits"))
        subprocess.run([compiler, "-O3", "-march=native", "-pthread", str(SOURCE), "-o", program], check=True)
        said = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in map(str.split, said.splitlines())}  # the best comes last


def _by_torch() -> dict[str, float]:
    values = torch.ones(2**28, dtype=torch.float32)
    return {"read": values.nbytes / _seconds(values.sum), "float32": _product(torch.float32)}


def _operations(limits: dict[str, float], precision: str) -> float:
    """A CPU without an instruction for a type computes it in float32."""
    return max(limits.get(precision, 0.0), limits["float32"])


def _product(dtype: torch.dtype) -> float:
    """Operations a second of one of the tower's products on four tiles."""
    rows, columns, inner = 4100, 4096, 1024
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    return 2 * rows * columns * inner / _seconds(lambda: torch.nn.functional.linear(x, weight))


def _seconds(call: Callable[[], object], runs: int = 5) -> float:
    call()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _limits_page(limits: dict[str, float], threads: int) -> list[str]:
    page = [f"## Limits, {threads} threads", ""]
    page.append(f"- memory reads: {limits['read'] / 1e9:.1f} GB/s")
    for precision in PRECISIONS:
        own = "its own instructions" if precision in limits else "computed in float32: there are none for it"
        page.append(f"- {precision}: {_operations(limits, precision) / 1e9:.0f} GFLOP/s, {own}")
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        page.append(f"- torch's product in {name}, 4100x1024x4096: {_product(dtype) / 1e9:.0f} GFLOP/s")
    return page


def _amounts_page(amounts: Amounts) -> list[str]:
    weights = amounts.layer_weights + amounts.head
    return [
        "",
        "## Amounts",
        "",
        f"- a tile: {amounts.tile / 1e9:.0f} GFLOP",
        f"- a prompt token: {2 * amounts.layer_weights / 1e9:.3f} GFLOP without attention and head",
        f"- a decoded token reads {weights / 1e6:.1f} M weights: "
        + ", ".join(f"{weights * BYTES[precision] / 1e6:.0f} MB {precision}" for precision in PRECISIONS),
        f"- and {amounts.kv_bytes(1, 2)} bytes for each token before it, in bfloat16",
    ]


def _floors_page(precision: str, floors: Floors, results: Results | None) -> list[str]:
    """The bound of each row, and what each peer reached of it."""
    found = results.measured(precision) if results else {}
    page = ["", f"## {precision}", ""]
    page.append(" | ".join(["| work", "bound", *(NAMES[peer] for peer in found)]) + " |")
    page.append("|---" * (2 + len(found)) + "|")
    for row, bound in floors.rows().items():
        cells = []
        for measured in found.values():
            value = measured.value(row)
            reached = None if value is None else value / bound if ROWS[row].more_is_better else bound / value
            cells.append("-" if reached is None else f"{reached:.0%}")
        page.append(" | ".join([f"| {ROWS[row].title(floors.sizes)}", f"{bound:.3g}", *cells]) + " |")
    return page


if __name__ == "__main__":
    main()
