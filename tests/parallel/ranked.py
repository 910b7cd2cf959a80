"""Ranks that are processes: each loads its part of twins, and computes a prompt and some tiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.tiny import TinySpec
from tilewise.layout import Layout
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh
from tilewise.parallel.ranks import join, leave
from tilewise.platforms.ops import Ops
from tilewise.runner.encoder import EncoderLane
from tilewise.step import EncodeJob
from tilewise.weights.folder import CheckpointFolder


def computed(
    folder: Path, spec: TinySpec, mesh: Mesh, make_ops: Callable[[], Ops] = Ops
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a prompt, the pages of five tiles that ranks share out, and the router's scores of those.

    In a pipeline, the last stage has the logits, and the first one the tiles.
    """
    model = Architecture.of(CheckpointFolder.open(folder)).load(torch.float32, make_ops(), 256, mesh=mesh)
    lane = EncoderLane([model], 8, (2, 1), mesh=mesh)
    tiles = random_tiles(spec, 5).numpy()
    with torch.inference_mode():
        jobs = [EncodeJob(bytes([number]), pixels, 7 - number) for number, pixels in enumerate(tiles)]
        found = lane.take(jobs)
        for _ in range(100):
            found += lane.advance(0.3)
    assert {tile.digest for tile in found} == ({job.digest for job in jobs} if mesh.is_first_stage else set())
    scores = torch.tensor([tile.score or 0.0 for tile in sorted(found, key=lambda tile: tile.digest)])
    return all_logits(model, prompt_of(spec, [2]), random_tiles(spec, 2), spec.image_id), lane.pools[0][3:], scores


Twins = dict[str, tuple[Path, TinySpec]]


def rank(number: int, turns: list[tuple[Layout, Twins]], out: Path, make_ops: Callable[[], Ops] = Ops) -> None:
    """What a process runs: it is a rank of each layout in turn; what comes of all twins goes into a file of its own."""
    torch.set_num_threads(1)
    for turn, (layout, folders) in enumerate(turns):
        if number < layout.ranks:
            mesh = join(number, layout, f"file://{out}/meeting-{turn}")
            found = {name: computed(folder, spec, mesh, make_ops) for name, (folder, spec) in folders.items()}
            torch.save(found, out / f"{turn}-{number}.pt")
            leave()
