"""Quantised to int8: logits stay near those in float32, and kernels and plain torch agree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.models.conftest import FolderOf
from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.tiny import SPECS
from tilewise.models.load import Architecture
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.forms import Form
from tilewise.platforms.ops import TorchOps
from tilewise.platforms.weights import DenseWeight, Store, Use, Weight
from tilewise.weights.folder import CheckpointFolder

NEAR = 0.06
"""Mean difference over the mean size of logits. Random models of a few dozen inputs round worse than wide ones."""


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_near_those_in_float32(name: str, folder_of: FolderOf) -> None:
    plain, ours = TorchOps(), CpuPlatform().ops()
    exact = logits(name, folder_of, plain, "store")
    int8 = logits(name, folder_of, plain, "store_int8")
    assert 0 < (int8 - exact).abs().mean() < NEAR * exact.abs().mean()
    kernel = logits(name, folder_of, ours, "store_int8")
    # Sums are exact, but what comes before may round to another integer here and there.
    assert (kernel - int8).abs().mean() < NEAR / 2 * exact.abs().mean()


def logits(name: str, folder_of: FolderOf, ops: TorchOps, form: str) -> Tensor:
    spec = SPECS[name]
    architecture = Architecture.of(CheckpointFolder.open(folder_of(name)))
    model = architecture.load(torch.float32, ops, context=256, store=getattr(ops, form))
    return all_logits(model, prompt_of(spec, (2, 1)), random_tiles(spec, 3), spec.image_id)


@pytest.mark.parametrize("form", ["store", "store_int8"])
@pytest.mark.parametrize("name", ["qwen2-300m", "qwen2-tied-28px"])
def test_bytes_counted_over_shapes_are_those_kept(name: str, form: str, folder_of: FolderOf) -> None:
    """Every weight by itself, and a tied head beside the embedding, which the plan always takes for a tensor."""
    architecture = Architecture.of(CheckpointFolder.open(folder_of(name)))
    decoder = architecture.config.decoder
    head = 2 * decoder.vocab_size * decoder.hidden_size if name == "qwen2-tied-28px" else 0
    for ops in (TorchOps(), CpuPlatform().ops()):
        store = getattr(ops, form)
        counted, kept = architecture.count_bytes(ops, torch.bfloat16, store), bytes_kept(architecture, ops, store)
        assert kept <= counted <= kept + head


def bytes_kept(architecture: Architecture, ops: TorchOps, store: Store) -> int:
    """Of a model that is really loaded."""
    total = 0

    def read(_: str, tensor: Tensor) -> None:
        nonlocal total
        total += tensor.nbytes

    def keep(parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        nonlocal total
        weight = store(parts, bias, use)
        freed = (
            0
            if use is Use.SHARED and not isinstance(weight, DenseWeight)
            else sum(x.nbytes for part in parts for x in part.tensors)
        )
        total += weight.nbytes - freed - (0 if bias is None else bias.nbytes)
        return weight

    architecture.load(torch.bfloat16, ops, 256, watch=read, store=keep)
    return total
