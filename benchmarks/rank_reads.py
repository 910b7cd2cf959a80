"""What a rank of 241B-A28B on sixteen devices reads of the checkpoint, and the memory that it takes to load its part.

    python benchmarks/rank_reads.py [--ranks 16] [--layers 4] [--rank 0] [--no-experts]

A sparse file has the shapes of the model, cut in depth (its layers, and as many of the tower) and not in width. A rank
is built from it in a process of its own, as an engine builds it; read is what is in the page cache then (`fincore`).
Replicated are the tower, the projector, norms and routers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from tilewise.layout import Layout
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh
from tilewise.platforms import current_platform
from tilewise.twin import tensors, write
from tilewise.twin.specs import full_size
from tilewise.units import GIB, in_bytes
from tilewise.weights.family import MEMBERS
from tilewise.weights.folder import CheckpointFolder

_MEMBER = "InternVL3_5-241B-A28B"


def write_sparse(folder: Path, layers: int) -> Path:
    """A checkpoint of zeros that take no room; returns the file of its weights."""
    spec = replace(full_size(MEMBERS[_MEMBER]), layers=layers, vision_layers=layers)
    tensors.noise = lambda name, shape, seed: torch.empty(shape, dtype=torch.bfloat16, device="meta")
    header, end = {}, 0
    for name, tensor in tensors.original_tensors(spec).items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(write.original_config(spec, "bfloat16")))
    file, text = folder / "model.safetensors", json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    return file


def load(folder: Path, layout: Layout, rank: int) -> None:
    """What the process of a rank does; prints the most memory that it had of its own, and what it keeps."""
    platform, mesh = current_platform(), Mesh.at(layout, rank)
    architecture = Architecture.of(CheckpointFolder.open(folder))
    kept = architecture.count_bytes(platform.ops(), torch.bfloat16, mesh=mesh)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("RssAnon")
    architecture.load(torch.bfloat16, platform.ops(), 4096, mesh=mesh)
    print(json.dumps({"kept": kept, "peak": _status("VmHWM") - before, "anonymous": _status("RssAnon") - before}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def in_page_cache(file: Path) -> int:
    found = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", file], capture_output=True)
    return int(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--no-experts", action="store_true", help="each rank a part of every expert")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    layout = Layout(args.ranks, experts=None if args.no_experts else "linear")
    if args.folder:
        load(args.folder, layout, args.rank)
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = write_sparse(Path(scratch) / "model", args.layers)
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(file.parent)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        read, whole = in_page_cache(file), file.stat().st_size
        facts = Architecture.of(CheckpointFolder.open(file.parent))
        ops = current_platform().ops()
        sizes = [facts.count_bytes(ops, torch.bfloat16, mesh=Mesh.at(Layout(n), 0)) for n in (1, args.ranks)]
        # kept(n) = replicated + shared / n
        shared = (sizes[0] - sizes[1]) / (1 - 1 / args.ranks)
        bound = sizes[0] - shared + shared / args.ranks
    console = Console()
    console.print(f"{_MEMBER}, {args.layers} layers: {in_bytes(whole)}; rank {args.rank} of {args.ranks}, {layout}")
    console.print(f"read: {in_bytes(read)}; replicated + 1/{args.ranks} of the rest: {in_bytes(int(bound))}")
    console.print(f"most memory while loading: {in_bytes(found['peak'])}; kept: {in_bytes(found['kept'])}")
    console.print(f"beyond its share: {(found['peak'] - found['kept']) / GIB:.2f} GiB")


if __name__ == "__main__":
    main()
