"""Ranks that are processes: each loads its part of twins and computes the logits of one prompt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.tiny import TinySpec
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh
from tilewise.parallel.ranks import join, leave
from tilewise.platforms.reference import ReferenceOps
from tilewise.weights.folder import CheckpointFolder


def logits_of(folder: Path, spec: TinySpec, mesh: Mesh) -> Tensor:
    model = Architecture.of(CheckpointFolder.open(folder)).load(torch.float32, ReferenceOps(), 256, mesh=mesh)
    return all_logits(model, prompt_of(spec, [2]), random_tiles(spec, 2), spec.image_id)


def rank(number: int, size: int, address: str, folders: dict[str, tuple[Path, TinySpec]], out: Path) -> None:
    """What a process runs: the logits of all twins go into a file of its own."""
    torch.set_num_threads(1)
    mesh = join(number, size, address)
    found = {name: logits_of(folder, spec, mesh) for name, (folder, spec) in folders.items()}
    torch.save(found, out / f"{number}.pt")
    leave()
