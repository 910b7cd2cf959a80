"""Ranks that share a model give the logits of one that has it alone, and every rank the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from tests.parallel.ranked import Twins, computed, rank
from tests.tiny import SPECS, write_hf, write_original
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.models.load import Architecture
from tilewise.models.tile_encoder import VisionTower
from tilewise.parallel.mesh import Mesh, Share
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.sources import ShapeSource
from tilewise.weights.view import View

SHAPES = {"heads": 8, "kv_heads": 2, "head_dim": 16, "hidden": 128, "intermediate": 128, "expert_intermediate": 64}
"""With four ranks, two of them have the same key/value head."""
EXPERTS = ("qwen3moe-300m-head", "gptoss-300m-head", "qwen3moe-6b-head", "w8a16")
FEW = ("qwen2-300m", "phi3-300m", "qwen2-tied-28px", "qwen3-6b-tied", "gptoss-300m-head", "hf", "w4a16", "w8a8")
TOWERS = ("qwen2-300m", "gptoss-300m-head", "hf", "w8a8")
QUANTISED = ("w8a8", "w8a8-static", "w4a16", "w8a16", "fp8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    made = tmp_path_factory.mktemp("twins")
    found: Twins = {}
    for name in SPECS:
        spec = replace(SPECS[name], **SHAPES)
        if spec.vision == "300m":
            spec = replace(spec, vision_heads=4)
        found[name] = write_original(made / name, spec), spec
    qwen = found["qwen2-300m"]
    found["hf"] = write_hf(made / "hf", qwen[1]), qwen[1]
    for scheme in QUANTISED:
        name = "qwen3moe-300m-head" if scheme == "w8a16" else "qwen2-300m"
        out = made / scheme
        quantize(QuantizeOptions(model=str(found[name][0]), out=str(out), scheme=scheme), show=False)
        found[scheme] = out, found[name][1]
    return found


LAYOUTS = (
    Layout(2),
    Layout(4),
    Layout(2, experts="linear"),
    Layout(4, experts="round_robin", spread_rows=2),
    Layout(1, pipeline=2),
    Layout(2, pipeline=2, experts="linear", spread_rows=2),
    Layout(4, spread_rows=2),
    Layout(4, tower="weights"),
)


def twins_for(layout: Layout, folders: Twins) -> Twins:
    if layout == Layout(4):
        return folders
    # What shares out heads and columns in no other way takes fewer twins.
    some = TOWERS if layout.tower == "weights" else EXPERTS if layout.experts else FEW
    return {name: folders[name] for name in some}


@pytest.fixture(scope="module")
def whole(folders: Twins) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """What one process has by itself."""
    return {name: computed(folder, spec, Mesh()) for name, (folder, spec) in folders.items()}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, folders: Twins) -> Path:
    """Where ranks left what they computed; the same four processes are the ranks of all layouts."""
    folder = tmp_path_factory.mktemp("ranks")
    turns = [(layout, twins_for(layout, folders)) for layout in LAYOUTS]
    mp.spawn(rank, (turns, folder), nprocs=4)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_have_the_logits_of_one(
    out: Path, folders: Twins, whole: dict[str, tuple[Tensor, Tensor, Tensor]], layout: Layout
) -> None:
    turn = LAYOUTS.index(layout)
    parts = [torch.load(out / f"{turn}-{number}.pt") for number in range(layout.ranks)]
    first, last = parts[: layout.tensor], parts[-layout.tensor :]
    for name in twins_for(layout, folders):
        assert all(torch.equal(part[name][0], last[0][name][0]) for part in last), name
        assert all(all(map(torch.equal, part[name][1:], first[0][name][1:])) for part in first), name
        logits, *tiles = whole[name]
        found, encoded = last[0][name][0], list(first[0][name][1:])
        torch.testing.assert_close(encoded, tiles, atol=1e-5, rtol=1e-5)
        if name.startswith("w8a8"):  # each rank rounds its part of a row by the largest number in it
            assert float((found - logits).norm() / logits.norm()) < 0.02
        else:
            torch.testing.assert_close(
                found, logits, atol=1e-5, rtol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
            )


def test_a_tower_that_norms_over_its_heads_is_not_cut(folders: Twins) -> None:
    folder, _ = folders["qwen2-6b-head"]
    mesh = Mesh.at(Layout(5, tower="weights"), 0)
    with pytest.raises(InvalidConfig, match="mm_encoder_tp_mode=weights: this tower norms its queries"):
        VisionTower(
            View(ShapeSource(torch.float32)),
            Architecture.of(CheckpointFolder.open(folder)).config.vision,
            56,
            mesh.tower,
        )


def test_heads_that_do_not_divide_are_shared() -> None:
    def heads(ranks: int, queries: int, keys: int) -> list[tuple[Share, Share]]:
        return [Mesh.at(Layout(ranks), rank).heads(queries, keys) for rank in range(ranks)]

    assert heads(4, 8, 2) == [
        (Share(0, 2), Share(0, 1)),
        (Share(2, 2), Share(0, 1)),
        (Share(4, 2), Share(1, 1)),
        (Share(6, 2), Share(1, 1)),
    ]
    assert [keys for _, keys in heads(2, 8, 4)] == [Share(0, 2), Share(2, 2)]
    with pytest.raises(InvalidConfig, match=r"Key/value heads \(4\) and tensor parallel size \(6\)"):
        heads(6, 12, 4)
    with pytest.raises(
        InvalidConfig, match=r"attention heads \(6\) must be divisible by tensor parallel size \(4\): take 1, 2, 3 or 6"
    ):
        heads(4, 6, 2)


def test_rows_of_a_vocabulary_need_not_divide() -> None:
    assert [Mesh.at(Layout(4), rank).rows(10) for rank in range(4)] == [
        Share(0, 3),
        Share(3, 3),
        Share(6, 3),
        Share(9, 1),
    ]
