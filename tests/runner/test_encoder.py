"""Encoder lane: tiles in slices give the rows of tiles encoded whole, batch by batch, first come first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.models.driving import random_tiles
from tests.tiny import SPECS, write_original
from tilewise.models.decoder import InternVL
from tilewise.models.load import Architecture
from tilewise.models.tile_encoder import TileEncoder
from tilewise.platforms.ops import Ops
from tilewise.runner.encoder import EncoderLane
from tilewise.step import EncodedTile, EncodeJob
from tilewise.weights.folder import CheckpointFolder

SPEC = SPECS["qwen2-300m"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> InternVL:
    folder = write_original(tmp_path_factory.mktemp("lane") / "twin", SPEC)
    return Architecture.of(CheckpointFolder.open(folder)).load(torch.float32, Ops(), 16)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the tower gets."""
    sizes: list[int] = []
    steps = TileEncoder.steps
    monkeypatch.setattr(TileEncoder, "steps", lambda self, tiles: (sizes.append(len(tiles)), steps(self, tiles))[1])
    return sizes


def jobs(count: int) -> list[EncodeJob]:
    return [EncodeJob(bytes([n]), tile, count - 1 - n) for n, tile in enumerate(random_tiles(SPEC, count).numpy())]


@torch.inference_mode()
def run(lane: EncoderLane, wanted: Sequence[EncodeJob], tiles: float | None) -> list[tuple[EncodedTile, ...]]:
    """What each slice fills."""
    assert lane.take(wanted) == ()
    filled = []
    while sum(map(len, filled)) < len(wanted):
        filled.append(lane.advance(tiles))
    assert lane.advance(tiles) == ()
    return filled


@pytest.mark.parametrize("tiles", [None, 0.01, 0.5, 1, 2.5, 100])
def test_slices_do_not_change_rows(model: InternVL, tiles: float | None) -> None:
    wanted, lane = jobs(7), EncoderLane([model], 7, (2, 1))
    filled = run(lane, wanted, tiles)
    assert [tile.digest for found in filled for tile in found] == [job.digest for job in wanted]
    with torch.inference_mode():
        for first, stop in ((0, 2), (2, 4), (4, 6), (6, 7)):
            pixels = torch.stack([torch.from_numpy(job.pixels) for job in wanted[first:stop]])
            pages = [job.page for job in wanted[first:stop]]
            assert torch.equal(lane.pools[0][pages], model.encoder(pixels).rows)


def test_a_slice_is_at_most_what_was_asked_for(model: InternVL) -> None:
    layers = SPEC.vision_layers
    assert len(run(EncoderLane([model], 4, (1,)), jobs(4), 1 / layers)) == 4 * layers
    assert [len(found) for found in run(EncoderLane([model], 4, (1,)), jobs(4), 2)] == [2, 2]
    assert [len(found) for found in run(EncoderLane([model], 5, (2, 1)), jobs(5), None)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [(13, (16, 8, 4, 2, 1), [8, 4, 1]), (13, (2, 1), [2] * 6 + [1]), (3, (1,), [1, 1, 1]), (16, (8, 1), [8, 8])],
)
def test_batches_are_as_few_as_can_be(
    model: InternVL, batches: list[int], count: int, sizes: tuple[int, ...], expected: list[int]
) -> None:
    run(EncoderLane([model], count, sizes), jobs(count), 100)
    assert batches == expected


def test_a_draft_model_goes_through_the_same_tiles(model: InternVL) -> None:
    lane = EncoderLane([model, model], 3, (2, 1))
    run(lane, jobs(3), 0.5)
    assert torch.equal(*lane.pools)
