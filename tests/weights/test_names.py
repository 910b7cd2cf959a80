"""Rename tables, and parts of tensors that files keep together."""

from __future__ import annotations

import torch
from torch import Tensor

from tilewise.weights.names import NameTable, RowSelector, TensorRef, part, rows, section


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
