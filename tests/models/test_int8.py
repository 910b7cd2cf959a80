"""Quantised to int8: logits stay near those in float32, and kernels and plain torch agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.conftest import FolderOf
from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.tiny import SPECS
from tilewise.models.load import Architecture
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.ops import CpuOps
from tilewise.weights.folder import CheckpointFolder

NEAR = 0.06
"""Mean difference over the mean size of logits. Random models of few inputs are worse than wide trained ones."""


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_near_those_in_float32(name: str, folder_of: FolderOf) -> None:
    plain, ours = CpuOps(), CpuPlatform().ops()
    exact = logits(name, folder_of, plain, "store")
    int8 = logits(name, folder_of, plain, "store_int8")
    assert 0 < (int8 - exact).abs().mean() < NEAR * exact.abs().mean()
    kernel = logits(name, folder_of, ours, "store_int8")
    # Sums are exact, but what comes before may round to another integer here and there.
    assert (kernel - int8).abs().mean() < NEAR / 2 * exact.abs().mean()


def logits(name: str, folder_of: FolderOf, ops: CpuOps, form: str) -> Tensor:
    spec = SPECS[name]
    architecture = Architecture.of(CheckpointFolder.open(folder_of(name)))
    model = architecture.load(torch.float32, ops, context=256, store=getattr(ops, form))
    return all_logits(model, prompt_of(spec, (2, 1)), random_tiles(spec, 3), spec.image_id)
