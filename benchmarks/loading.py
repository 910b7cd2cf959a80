"""Seconds to load weights from files that are not in memory, by `safetensors_load_strategy`; medians.

    python benchmarks/loading.py [--gigabytes 1] [--runs 5] [--folder DIR]

Writes shards of bfloat16 noise and, before each run, asks the system to forget them (Linux). Each tensor is then made
float32, as on a CPU without bfloat16; the strategies take turns. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tilewise.weights.files import SafetensorFiles, read_ahead, shard_files

_STRATEGIES = ("lazy", "prefetch", "eager")
_SHARD = 2**28  # bytes
_ROWS, _COLUMNS = 4096, 4096


def write_shards(folder: Path, size: int) -> None:
    tensor = torch.randn(_ROWS, _COLUMNS).to(torch.bfloat16)
    each = _SHARD // tensor.nbytes
    for number in range(max(1, size // _SHARD)):
        tensors = {f"layer.{number}.{index}": tensor + index for index in range(each)}
        save_file(tensors, folder / f"model-{number}.safetensors")
    index = {name: path.name for path in shard_files(folder) for name in _names(path)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _names(path: Path) -> list[str]:
    number = path.stem.rpartition("-")[2]
    return [f"layer.{number}.{index}" for index in range(_SHARD // (_ROWS * _COLUMNS * 2))]


def forget(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_run(folder: Path, strategy: str) -> float:
    forget(shard_files(folder))
    started = time.perf_counter()
    thread = read_ahead(shard_files(folder), strategy)
    files = SafetensorFiles(folder)
    for name in sorted(files.names):
        files.tensor(name).float()
    taken = time.perf_counter() - started
    files.close()
    if thread:
        thread.join()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to measure (default: that of temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_shards(folder, int(options.gigabytes * 2**30))
        taken: dict[str, list[float]] = {strategy: [] for strategy in _STRATEGIES}
        for _ in range(options.runs):
            for strategy in _STRATEGIES:
                taken[strategy].append(one_run(folder, strategy))
    medians = {strategy: round(statistics.median(times), 3) for strategy, times in taken.items()}
    for strategy, times in taken.items():
        ratio = medians["lazy"] / medians[strategy]
        print(f"{strategy:9s} median {medians[strategy]:.2f} s, min {min(times):.2f}, {ratio:.2f} x as fast as lazy")
    print(json.dumps({"gigabytes": options.gigabytes, "runs": options.runs, "seconds": medians}))


if __name__ == "__main__":
    main()
