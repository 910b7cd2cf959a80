"""Ranks that share a model give the logits of one that has it alone, and every rank the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.parallel.ranked import computed, rank
from tests.tiny import SPECS, TinySpec, write_hf, write_original
from tilewise.errors import InvalidConfig
from tilewise.parallel.mesh import Mesh, Share
from tilewise.parallel.ranks import TorchCollectives
from tilewise.quantize.options import QuantizeOptions
from tilewise.quantize.run import quantize

SHAPES = {"heads": 8, "kv_heads": 2, "head_dim": 16, "hidden": 128, "intermediate": 128, "expert_intermediate": 64}
"""With four ranks, two of them have the same key/value head."""
QUANTISED = ("w8a8", "w8a8-static", "w4a16", "w8a16", "fp8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TinySpec]]:
    made = tmp_path_factory.mktemp("twins")
    found = {}
    for name in SPECS:
        spec = replace(SPECS[name], **SHAPES)
        found[name] = write_original(made / name, spec), spec
    qwen = found["qwen2-300m"]
    found["hf"] = write_hf(made / "hf", qwen[1]), qwen[1]
    for scheme in QUANTISED:
        name = "qwen3moe-300m-head" if scheme == "w8a16" else "qwen2-300m"
        out = made / scheme
        quantize(QuantizeOptions(model=str(found[name][0]), out=str(out), scheme=scheme), show=False)
        found[scheme] = out, found[name][1]
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_have_the_logits_of_one(tmp_path: Path, folders: dict[str, tuple[Path, TinySpec]], size: int) -> None:
    mp.spawn(rank, (size, f"file://{tmp_path}/meeting", folders, tmp_path), nprocs=size)
    parts = [torch.load(tmp_path / f"{number}.pt") for number in range(size)]
    for name, (folder, spec) in folders.items():
        for part in parts[1:]:
            assert all(map(torch.equal, part[name], parts[0][name])), name
        (whole, *tiles), (found, *encoded) = computed(folder, spec, Mesh()), parts[0][name]
        torch.testing.assert_close(encoded, tiles, atol=1e-5, rtol=1e-5)
        if name.startswith("w8a8"):  # each rank rounds its part of a row by the largest number in it
            assert float((found - whole).norm() / whole.norm()) < 0.02
        else:
            torch.testing.assert_close(
                found, whole, atol=1e-5, rtol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
            )


def test_heads_that_do_not_divide_are_shared() -> None:
    nobody = TorchCollectives()
    assert [Mesh(rank, 4, nobody).heads(8, 2) for rank in range(4)] == [
        (Share(0, 2), Share(0, 1)),
        (Share(2, 2), Share(0, 1)),
        (Share(4, 2), Share(1, 1)),
        (Share(6, 2), Share(1, 1)),
    ]
    assert [Mesh(rank, 2, nobody).heads(8, 4)[1] for rank in range(2)] == [Share(0, 2), Share(2, 2)]
    with pytest.raises(InvalidConfig, match=r"Key/value heads \(4\) and tensor parallel size \(6\)"):
        Mesh(0, 6, nobody).heads(12, 4)
    with pytest.raises(InvalidConfig, match=r"attention heads \(6\) must be divisible by tensor parallel size \(4\)"):
        Mesh(0, 4, nobody).heads(6, 2)


def test_rows_of_a_vocabulary_need_not_divide() -> None:
    assert [Mesh(rank, 4, TorchCollectives()).rows(10) for rank in range(4)] == [
        Share(0, 3),
        Share(3, 3),
        Share(6, 3),
        Share(9, 1),
    ]
