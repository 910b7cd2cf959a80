"""Memory of mapped files: given back, read again, and never taken from anything that is no file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tilewise.platforms.forms import Dense
from tilewise.platforms.ops import Ops
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import MappedPages, SafetensorFiles
from tilewise.weights.names import TensorRef
from tilewise.weights.view import View

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped where")
MIB = 2**20
NAMES = ("a", "b", "c")


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    found = {name: torch.randn(1024, 2048) for name in NAMES}  # 8 MiB each
    save_file(found, tmp_path / "model.safetensors")
    return found


def test_what_was_stored_takes_no_memory_and_can_be_read_again(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    source = CheckpointSource(SafetensorFiles(tmp_path), TensorRef, torch.float32)
    view = View(source, store=source.tensors.giving_back(Ops().store))
    kept = [view.store([Dense(view.tensor(name, 1024, 2048))], None) for name in NAMES[:2]]
    x = torch.randn(3, 2048)
    products = [weight.apply(x, Ops()) for weight in kept]
    for name, product in zip(NAMES, products, strict=False):
        assert torch.equal(product, x @ tensors[name].T)
    assert resident(tmp_path / "model.safetensors") > 15 * MIB
    view.store([Dense(view.tensor(name, 1024, 2048)) for name in NAMES], None)
    assert resident(tmp_path / "model.safetensors") < MIB
    assert torch.equal(kept[0].apply(x, Ops()), products[0])


def test_a_copy_is_left_alone(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    pages = MappedPages([tmp_path / "model.safetensors"])
    for copy in (tensors["a"].clone(), torch.ones(5 * MIB)):
        before = copy.clone()
        pages.give_back(copy)
        assert torch.equal(copy, before)


def test_neighbours_on_the_same_page_stay(tmp_path: Path) -> None:
    """Pages that a tensor shares with others are not given back, nor is anything of one that fills none."""
    small = {"a": torch.randn(100), "b": torch.randn(5000), "c": torch.randn(70)}
    save_file(small, tmp_path / "model.safetensors")
    files = SafetensorFiles(tmp_path)
    for name, tensor in small.items():
        files.give_back(name)
        assert torch.equal(files.tensor(name), tensor)
