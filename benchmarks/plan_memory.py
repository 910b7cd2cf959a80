"""What `tilewise plan` says that weights take, beside what they take once they are loaded.

    python benchmarks/plan_memory.py demo FOLDER FOLDER:int8 [--dtype bfloat16]

Each model is planned for this machine and then loaded, in a fresh process, as `tilewise serve` loads it. Taken is
counted twice: the bytes of all tensors that live then, and how much larger the process has become (resident memory,
after every tensor was read once, so that what is mapped from files is there). Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
from pathlib import Path

MIB = 2**20
_OVERHEAD = 64 * MIB
"""Libraries that loading brings with it; a model much smaller than that shows nothing in resident memory."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def load(model: str, quantization: str | None, dtype: str) -> dict[str, int]:
    """Load a model in this process, and say what it takes."""
    import torch

    from tilewise.config import EngineConfig
    from tilewise.models.load import Architecture
    from tilewise.platforms import current_platform
    from tilewise.runner.build import weight_store
    from tilewise.weights.checkpoint import Checkpoint

    config = EngineConfig(model=model, quantization=quantization, use_tqdm_on_load=False)
    folder = Checkpoint.of(config).folder
    architecture, ops = Architecture.of(folder, quantization=quantization), current_platform().ops()
    before_tensors = {id(found) for found in gc.get_objects() if isinstance(found, torch.Tensor)}
    gc.collect()
    before = resident()
    # Of one token: tables of positions are as long as sequences are, and no weights.
    loaded = architecture.load(getattr(torch, dtype), ops, 1, store=weight_store(ops, quantization))
    gc.collect()
    tensors = [
        found for found in gc.get_objects() if isinstance(found, torch.Tensor) and id(found) not in before_tensors
    ]
    places = {(found.data_ptr(), found.nbytes) for found in tensors if not found.is_meta}
    for tensor in tensors:
        if not tensor.is_meta and tensor.numel():
            tensor.view(torch.uint8).sum() if tensor.dim() else None
    taken = resident() - before
    assert loaded.config is architecture.config
    return {"tensors": sum(size for _, size in places), "resident": taken}


def planned(model: str, quantization: str | None, dtype: str) -> int:
    """Bytes of weights by the command that users have."""
    words = ["--quantization", quantization] if quantization else []
    command = [sys.executable, "-m", "tilewise", "plan", model, "--dtype", dtype, *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(done.stderr)
    found: int = json.loads(done.stdout)["plan"]["weight_bytes"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL[:QUANTIZATION]")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--load", action="store_true", help="load the one model and print what it takes")
    options = parser.parse_args()
    rows = []
    for named in options.models:
        model, _, quantization = named.partition(":")
        if options.load:
            print(json.dumps(load(model, quantization or None, options.dtype)))
            return
        command = [sys.executable, __file__, named, "--dtype", options.dtype, "--load"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"model": named, "planned": planned(model, quantization or None, options.dtype)})
        rows[-1] |= json.loads(done.stdout.splitlines()[-1])
    print(f"{'model':<40} {'planned':>12} {'tensors':>12} {'':>8} {'resident':>12}")
    for row in rows:
        differs = 100 * (row["planned"] / row["tensors"] - 1)
        shown = [f"{row[name] / MIB:>8.1f} MiB" for name in ("planned", "tensors", "resident")]
        resides = f"{100 * (row['planned'] / row['resident'] - 1):+.2f} %" if row["planned"] > _OVERHEAD else ""
        print(f"{row['model']:<40} {shown[0]:>12} {shown[1]:>12} {differs:+7.2f} % {shown[2]:>12} {resides}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
