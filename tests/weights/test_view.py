"""Sources without a checkpoint, views, and rename tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import SPECS, TinySpec, hf_tensors, write_hf, write_original
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import NameTable, RowSelector, TensorRef, part, rows, section
from tilewise.weights.sources import RandomSource, ShapeSource
from tilewise.weights.view import View


class Recorder:
    """A source that remembers the names it was asked for."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.asked: list[str] = []

    def has(self, name: str) -> bool:
        self.asked.append(name)
        return False

    def read(self, name: str, shape: object) -> Tensor:
        self.asked.append(name)
        return torch.arange(24.0).view(6, 4)


def test_view_adds_its_modules_to_the_name() -> None:
    source = Recorder()
    view = View(source).at("layers").at(3).at("mlp")
    view.tensor("up.weight", 6, 4)
    view.has("bias")
    assert source.asked == ["layers.3.mlp.up.weight", "layers.3.mlp.bias"]


def test_random_source_depends_on_seed_and_name_alone() -> None:
    first, again, other = RandomSource(torch.float32), RandomSource(torch.float32), RandomSource(torch.float32, seed=5)
    first.read("something.else", (3,))
    assert torch.equal(first.read("a.weight", (4, 5)), again.read("a.weight", (4, 5)))
    assert not torch.equal(first.read("a.weight", (4, 5)), first.read("b.weight", (4, 5)))
    assert not torch.equal(first.read("a.weight", (4, 5)), other.read("a.weight", (4, 5)))


def test_random_norms_are_around_one() -> None:
    source = RandomSource(torch.bfloat16)
    assert source.read("norm.weight", (1000,)).mean().item() == pytest.approx(1, abs=0.01)
    assert source.read("norm.bias", (1000,)).mean().item() == pytest.approx(0, abs=0.01)
    assert source.read("x.weight", (2,)).dtype == torch.bfloat16


def test_absent_tensors_are_absent() -> None:
    for source in (
        RandomSource(torch.float32, absent=frozenset({"a"})),
        ShapeSource(torch.float32, absent=frozenset("a")),
    ):
        assert not source.has("a")
        assert source.has("b")


def test_shape_source_counts_without_allocating() -> None:
    source = ShapeSource(torch.bfloat16)
    huge = View(source).tensor("x", 10**9, 10**6)
    assert huge.is_meta
    assert (huge.shape, huge.dtype) == ((10**9, 10**6), torch.bfloat16)
    View(source).tensor("y", 7)
    assert source.parameters == 10**15 + 7


@pytest.mark.parametrize("name", SPECS)
def test_counted_parameters_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    architecture = Architecture.of(CheckpointFolder.open(write_hf(tmp_path, spec)))
    stored = sum(tensor.numel() for tensor in hf_tensors(spec).values())
    assert architecture.count_parameters(Ops(), tied=spec.tied) == stored


@pytest.mark.parametrize("name", ["qwen3-300m-head", "internlm2-300m", "phi3-300m", "qwen3moe-300m-head"])
@pytest.mark.parametrize("write", [write_hf, write_original], ids=["hf", "original"])
def test_every_tensor_is_read_once_and_its_bytes_are_told(
    name: str, write: Callable[[Path, TinySpec], Path], tmp_path: Path
) -> None:
    spec, told = SPECS[name], list[int]()
    architecture = Architecture.of(CheckpointFolder.open(write(tmp_path, spec)))
    architecture.load(torch.float32, Ops(), context=16, on_read=told.append)
    assert sum(told) == sum(tensor.nbytes for tensor in hf_tensors(spec).values())


def test_two_random_models_agree(tmp_path: Path) -> None:
    architecture = Architecture.of(CheckpointFolder.open(write_hf(tmp_path, SPECS["qwen2-300m"])))
    pixels = torch.full((1, 56, 56, 3), 90, dtype=torch.uint8)
    first, second = (
        architecture.build(RandomSource(torch.float32), Ops(), context=16).encode(pixels).rows for _ in range(2)
    )
    assert torch.equal(first, second)


def test_name_without_a_row_keeps_its_own_behind_the_prefix() -> None:
    assert NameTable({}, prefix="model.").source("layers.3.x.weight") == TensorRef("model.layers.3.x.weight")


def test_row_puts_layer_numbers_back_in_their_places() -> None:
    table = NameTable(rows({"blocks.{}.experts.{}.up": "h.{}.e.{}.w3"}), prefix="lm.")
    assert table.source("blocks.11.experts.7.up.weight").name == "lm.h.11.e.7.w3.weight"
    assert table.source("blocks.11.experts.7.up.bias").name == "lm.h.11.e.7.w3.bias"


def test_row_made_of_the_numbers_and_its_other_place_are_renamed_throughout() -> None:
    def row(layer: int, expert: int) -> TensorRef:
        return TensorRef("h.{}.{}.up", otherwise=TensorRef("h.{}.experts", item=expert))

    source = NameTable({"blocks.{}.{}.up": row}, prefix="lm.").source("blocks.4.7.up").renamed(lambda name: f"x.{name}")
    assert source == TensorRef("x.lm.h.4.7.up", otherwise=TensorRef("x.lm.h.4.experts", item=7))


class Stored:
    """A tensor in a file."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def get_shape(self) -> list[int]:
        return list(self.data.shape)

    def __getitem__(self, index: int | slice) -> Tensor:
        return self.data[index]


NINE = torch.arange(18).view(9, 2)


def read(which: RowSelector) -> Tensor:
    return TensorRef("nine", rows=which).read(Stored(NINE))


def test_parts_of_a_fused_tensor_are_its_rows_in_order() -> None:
    parts = [read(part(index, of=3)) for index in range(3)]
    assert torch.equal(torch.cat(parts), NINE)
    assert [len(rows_of_part) for rows_of_part in parts] == [3, 3, 3]


def test_sections_of_a_packed_tensor_have_their_own_sizes() -> None:
    sections = [read(section((4, 2, 3), index)) for index in range(3)]
    assert [len(rows_of_section) for rows_of_section in sections] == [4, 2, 3]
    assert torch.equal(torch.cat(sections), NINE)


def test_what_does_not_divide_is_given_whole_to_be_reported() -> None:
    assert torch.equal(read(part(0, of=2)), NINE)
    assert torch.equal(read(section((4, 4), 1)), NINE)


def test_rows_of_one_of_several_that_are_stored_the_other_way_round() -> None:
    stacked = torch.arange(24).view(2, 3, 4)
    chosen = TensorRef("both", item=1, transposed=True, rows=lambda count: torch.tensor([count - 1, 0]))
    assert torch.equal(chosen.read(Stored(stacked)), stacked[1].T[[3, 0]])
