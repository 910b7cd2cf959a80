"""Weights by part: the bytes that a start counts, and the sizes that were published."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.models.test_sizes import rounding
from tests.published_sizes import PUBLISHED
from tests.tiny import TWINS, write_original
from tilewise.capacity.files import SCHEMES, as_quantised, published
from tilewise.capacity.ranks import Weigher, rank_mesh
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.models.load import Architecture
from tilewise.platforms import current_platform
from tilewise.platforms.ops import Ops
from tilewise.runner.build import weight_store
from tilewise.weights.folder import CheckpointFolder, Section

GIB = 2**30


@cache
def folder_of(name: str, root) -> CheckpointFolder:
    known = published(name)
    assert known is not None
    folder = root / name.replace("/", "-")
    folder.mkdir()
    return known.write(folder)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return lambda name: folder_of(name, root)


def total(weigher: Weigher, layout: Layout = Layout(), rank: int = 0) -> int:
    return sum(part.bytes for part in weigher.weigh(rank_mesh(layout, rank), (layout, rank)).values())


@pytest.mark.parametrize("name", [name for name, sizes in PUBLISHED.items() if sizes.billions])
def test_parameters_are_those_published(name, full):
    weigher = Weigher(Architecture.of(full(name)), Ops(), torch.bfloat16)
    billions = PUBLISHED[name].billions
    assert weigher.parameters == pytest.approx(billions * 1e9, rel=0.01, abs=rounding(billions))


@pytest.mark.parametrize("name", [name for name, sizes in PUBLISHED.items() if sizes.parts])
def test_parts_have_the_parameters_published(name, full):
    parts = Weigher(Architecture.of(full(name)), Ops(), torch.bfloat16).weigh(rank_mesh(Layout(), 0), 0)
    tower, language = PUBLISHED[name].parts
    assert parts["tower"].bytes / 2 == pytest.approx(tower * 1e9, rel=0.01, abs=rounding(tower))
    found = sum(parts[part].bytes for part in ("embedding", "head", "attention", "mlp"))
    assert found / 2 == pytest.approx(language * 1e9, rel=0.01, abs=rounding(language))


@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("name", [*sorted(name for name in TWINS if "Flash" not in name)[::3], "InternVL3_5-8B-Flash"])
def test_they_are_what_a_start_counts(name, tensor, quantization, tmp_path):
    """Of weights in files, layer by layer alike or not."""
    architecture = Architecture.of(
        CheckpointFolder.open(write_original(tmp_path, TWINS[name])), quantization=quantization
    )
    ops, layout = current_platform().ops(), Layout(tensor)
    weigher = Weigher(architecture, ops, torch.bfloat16, quantization)
    for rank in range(tensor):
        counted = architecture.count_bytes(
            ops, torch.bfloat16, weight_store(ops, quantization), rank_mesh(layout, rank)
        )
        assert total(weigher, layout, rank) == counted


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in ("int8", "fp8")])
@pytest.mark.parametrize("name", ["InternVL3-1B", "InternVL2_5-8B", "InternVL3_5-30B-A3B", "InternVL2-4B"])
def test_of_a_checkpoint_that_is_to_be_quantised_too(name, scheme, full, tmp_path):
    architecture = Architecture.of(as_quantised(shortened(full(name)), scheme, tmp_path))
    assert architecture.quantized is not None
    for layout in (Layout(), Layout(2), Layout(2, 2, experts="linear" if "A3B" in name else None)):
        counted = architecture.count_bytes(Ops(), torch.bfloat16, mesh=rank_mesh(layout, 0))
        alike = Weigher(architecture, Ops(), torch.bfloat16, alike=True)
        assert total(alike, layout) == total(Weigher(architecture, Ops(), torch.bfloat16), layout) == counted


def shortened(folder: CheckpointFolder) -> CheckpointFolder:
    """The same model with three layers and twelve experts, where it has any."""
    language = {**folder.text.values, "num_hidden_layers": 3}
    if "num_experts" in language:
        language["num_experts"] = 12
    return CheckpointFolder(folder.path, Section({**folder.config.values, "llm_config": language}, "config.json"))


@pytest.mark.parametrize("layout", [Layout(2, 2), Layout(1, 3), Layout(3, 2, experts="linear")], ids=str)
def test_ranks_of_any_layout_have_the_whole_model_between_them(layout, full):
    """But for what is on several of them: the tower, norms, routers, and keys of heads that are too few."""
    weigher = Weigher(Architecture.of(shortened(full("InternVL3_5-30B-A3B"))), Ops(), torch.bfloat16)
    if layout.tensor == 3:  # whose heads do not divide by three
        with pytest.raises(InvalidConfig, match="must be divisible"):
            total(weigher, layout)
        layout = Layout(4, 2, experts="linear")
    whole = weigher.weigh(rank_mesh(Layout(), 0), 0)
    ranks = [weigher.weigh(rank_mesh(layout, rank), (layout, rank)) for rank in range(layout.ranks)]
    for part in ("attention", "mlp", "head"):
        assert sum(rank[part].floats for rank in ranks) == whole[part].floats
    assert [rank["tower"] for rank in ranks[: layout.tensor]] == [whole["tower"]] * layout.tensor
    assert not any(rank["tower"].bytes or rank["projector"].bytes for rank in ranks[layout.tensor :])


def test_tensor_ranks_share_all_but_the_tower(full):
    weigher = Weigher(Architecture.of(full("InternVL3_5-241B-A28B")), Ops(), torch.bfloat16)
    whole = weigher.weigh(rank_mesh(Layout(), 0), 1)
    part = weigher.weigh(rank_mesh(Layout(4), 0), 4)
    assert part["tower"] == whole["tower"]
    assert part["head"].floats * 4 == whole["head"].floats
    # Each layer's router is on all ranks.
    router = 94 * 128 * 4096 * 2
    assert (part["mlp"].bytes - router) * 4 == whole["mlp"].bytes - router
