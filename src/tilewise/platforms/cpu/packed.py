"""Packed weights: matrices in the order in which the CPU's own kernels read them, put so once at load.

The kernels are those of `native/src/linear.cpp`, `int8.cpp` and `grouped.cpp`. A row's product is the same, bit by bit,
whatever other rows there are: the kernels sum up in one order. With codes in groups there are two orders, for few rows
and for many, unless `one_way` asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.kernels import DTYPES, Native, address, rows_and_width
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows, joined, stacked, zeros_of
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Kept, Weight, plain_weight, rounded_to_int8

_PANEL = 16
"""Outputs of a panel, as in `native/src/packed.h`."""
_CODES = {kind: number for number, kind in enumerate(Codes)}
_SCALES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_SHIFTS, _FLOAT_SHIFTS, _ZEROS = range(3)
"""Kinds of shifts, as `native/src/codes.h` numbers them; zeros are bytes, for shifts of -zero * scale."""


@dataclass(frozen=True, slots=True)
class PackedWeight(Kept):
    """A matrix of float32 or bfloat16 in panels, which multiplies rows of the same dtype."""

    native: Native
    panels: Tensor
    bias: Tensor | None
    outputs: int

    @classmethod
    def of(cls, native: Native, parts: Sequence[Tensor], bias: Tensor | None) -> PackedWeight:
        """Pack a matrix in parts [some of outputs, inputs]; meta tensors make panels of meta tensors."""
        outputs, panels = sum(map(len, parts)), _panels(native, parts, parts[0].dtype)
        for first, part in _placed(parts):
            which = (first, *part.shape, outputs)
            native.launch("pack_linear", DTYPES[part.dtype], part.data_ptr(), *which, panels.data_ptr())
        return cls(native, panels, bias, outputs)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        assert x.dtype == self.panels.dtype
        x, out = _rows_and_result(x, self.outputs)
        self.native.launch(
            "linear",
            *(DTYPES[x.dtype], x.data_ptr(), *rows_and_width(x), self.panels.data_ptr()),
            *(address(self.bias), out.data_ptr(), self.outputs, gelu),
        )
        return out


@dataclass(frozen=True, slots=True)
class PackedInt8Weight(Kept):
    """An `Int8Weight` in panels; `totals` are sums of the weights of each output.

    `static` and `addend` are those of `forms.Int8`.
    """

    native: Native
    panels: Tensor
    scales: Tensor
    totals: Tensor
    bias: Tensor | None
    static: StaticRows | None = None
    addend: Tensor | None = None

    @classmethod
    def rounded(cls, native: Native, parts: Sequence[Tensor], bias: Tensor | None) -> PackedInt8Weight:
        """Round a matrix of floats in parts to int8, with a scale for each output, and pack it."""
        outputs, panels = sum(map(len, parts)), _panels(native, parts, torch.int8)
        scales = torch.empty(outputs, dtype=torch.float32, device=panels.device)
        totals = torch.empty(outputs, dtype=torch.int32, device=panels.device)
        places = (panels.data_ptr(), scales.data_ptr(), totals.data_ptr())
        for first, part in _placed(parts):
            which = (first, *part.shape, outputs)
            native.launch("pack_int8", DTYPES[part.dtype], part.data_ptr(), *which, *places)
        return cls(native, panels, scales, totals, bias)

    @classmethod
    def of(cls, native: Native, form: Int8, bias: Tensor | None) -> PackedInt8Weight | None:
        """Pack int8 as it was stored; return None if there is no kernel for it."""
        if not native.has("store_levels") or (bias is not None and bias.dtype not in DTYPES):
            return None
        panels = _panels(native, [form.matrix], torch.int8)
        totals = torch.empty(len(form.matrix), dtype=torch.int32, device=panels.device)
        for first, part in _placed([form.matrix]):
            which = (first, *part.shape, len(form.matrix))
            native.launch("pack_levels", part.data_ptr(), *which, panels.data_ptr(), totals.data_ptr())
        addend = None if form.addend is None else form.addend.contiguous()
        return cls(native, panels, form.scales.contiguous(), totals, bias, form.static, addend)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        if x.dtype not in DTYPES:
            return self.apply(x.float(), ops, gelu).to(x.dtype)
        outputs = self.scales.numel()
        x, out = _rows_and_result(x, outputs)
        self.native.launch(
            "linear_int8",
            *(DTYPES[x.dtype], x.data_ptr(), *rows_and_width(x)),
            *(self.panels.data_ptr(), self.scales.data_ptr(), self.totals.data_ptr()),
            *(address(self.bias), out.data_ptr(), outputs, gelu),
            *((self.static.scale, self.static.offset) if self.static else (0.0, 0)),
            address(self.addend),
        )
        return out


class GroupedLayout(NamedTuple):
    """The sizes of a packed `Grouped` matrix, and the numbers of its codes, scales and shifts in `native/src/codes.h`,
    in the order in which kernels take them.
    """

    code: int
    inputs: int
    outputs: int
    group: int
    scales: int
    shifts: int

    @classmethod
    def of(cls, form: Grouped) -> GroupedLayout:
        """Choose scales and shifts as short as they are exact, or for meta tensors as long as they may be."""
        scales, shifts = 0, _NO_SHIFTS if form.shifts is None else _FLOAT_SHIFTS
        if not form.scales.is_meta:
            exact = (
                number for dtype, number in _SCALES.items() if torch.equal(form.scales.to(dtype).float(), form.scales)
            )
            scales = max(exact, default=0)
            if form.shifts is not None and zeros_of(form) is not None:
                shifts = _ZEROS
        outputs, inputs = form.shape
        return cls(_CODES[form.kind], inputs, outputs, min(form.group, inputs), scales, shifts)

    def pack(self, native: Native, form: Grouped) -> Tensor:
        """Pack codes, scales and shifts into uint8 in the order of `codes.h`; meta tensors make a meta tensor."""
        nbytes = native.number("grouped_bytes", *self)
        packed = torch.empty(nbytes, dtype=torch.uint8, device=form.codes.device)
        if not packed.is_meta and nbytes:
            shifts = zeros_of(form) if self.shifts == _ZEROS else form.shifts
            # Kept here by name, as addresses keep nothing alive.
            codes, scales, shifts = (None if x is None else x.contiguous() for x in (form.codes, form.scales, shifts))
            native.launch("pack_grouped", *self, address(codes), address(scales), address(shifts), packed.data_ptr())
        return packed


@dataclass(frozen=True, slots=True)
class PackedGrouped(Kept):
    """A matrix of codes in groups, which multiplies rows of float32 or bfloat16; a bias has the dtype of the rows.

    The kernels read columns of x in the `order` of the codes: that is a copy of the rows that they make anyway, and a
    step can be captured with it.
    """

    native: Native
    panels: Tensor
    layout: GroupedLayout
    order: Tensor | None
    bias: Tensor | None
    one_way: bool = False
    """True if any number of rows goes the way of a few, so that a row's product does not depend on how many there are;
    many take longer then."""

    @classmethod
    def of(cls, native: Native, form: Grouped, bias: Tensor | None, one_way: bool = False) -> PackedGrouped | None:
        """Pack codes in groups; return None if there is no kernel for it."""
        if not native.has("store_grouped") or (bias is not None and bias.dtype not in DTYPES):
            return None
        layout = GroupedLayout.of(form)
        order = None if form.order is None else form.order.contiguous()
        return cls(native, layout.pack(native, form), layout, order, bias, one_way)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        if x.dtype not in DTYPES:
            return self.apply(x.float(), ops, gelu).to(x.dtype)
        x, out = _rows_and_result(x, self.layout.outputs)
        self.native.launch(
            "linear_grouped",
            *(DTYPES[x.dtype], x.data_ptr(), rows_and_width(x)[0], *self.layout),
            *(self.panels.data_ptr(), address(self.order), address(self.bias), out.data_ptr(), gelu, self.one_way),
        )
        return out


def keeper(
    native: Native | None, int8: bool = False, one_way: bool = False
) -> Callable[[Sequence[Form], Tensor | None], Weight]:
    """Return a function that keeps a run of forms: packed where there is a kernel for it, else in plain torch.

    With `int8`, floats are rounded. `one_way` is that of `PackedGrouped`, for batch-invariant ops.
    """

    def keep(run: Sequence[Form], bias: Tensor | None) -> Weight:
        ours = _packed(native, run, bias, int8, one_way) if native else None
        return ours or plain_weight([rounded_to_int8(form) for form in run] if int8 else run, bias)

    return keep


def _packed(native: Native, run: Sequence[Form], bias: Tensor | None, int8: bool, one_way: bool) -> Weight | None:
    """Pack forms that are kept alike; return None if there is no kernel for them."""
    floats = [form.matrix for form in run if isinstance(form, Dense)]
    if not floats:
        form = joined(run)
        if isinstance(form, Int8):
            return PackedInt8Weight.of(native, form, bias)
        return PackedGrouped.of(native, form, bias, one_way) if isinstance(form, Grouped) else None
    if floats[0].dtype not in DTYPES:
        return None
    if int8 and native.has("store_int8"):
        return PackedInt8Weight.rounded(native, floats, bias)
    return PackedWeight.of(native, floats, bias) if native.has("store") else None


def _panels(native: Native, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    panels = -(-sum(map(len, parts)) // _PANEL)
    inputs = native.number("padded_inputs", parts[0].shape[1], dtype.itemsize)
    return torch.empty(panels, inputs, _PANEL, dtype=dtype, device=parts[0].device)


def _placed(parts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield each part that has numbers, without gaps, with the place of its first output before it.

    A panel is packed at once, so parts that end within one are put together, which takes a copy.
    """
    if any(len(part) % _PANEL for part in parts[:-1]):
        parts = [stacked(parts)]
    first = 0
    for part in parts:
        if not part.is_meta:
            yield first, part.contiguous()
        first += len(part)


def _rows_and_result(x: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Return x [..., inputs] without gaps, and an empty tensor [..., outputs]."""
    return x.contiguous(), torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
