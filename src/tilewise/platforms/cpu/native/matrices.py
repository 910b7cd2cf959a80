"""Calls of `src/linear.cpp`, `int8.cpp` and `grouped.cpp`, which multiply with a matrix that they have packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.library import DTYPES, Library, threads
from tilewise.platforms.forms import Codes, Grouped, StaticRows, stacked, zeros_of

_PANEL = 16
"""Outputs of a panel, as in `src/packed.h`."""
_INSTRUCTIONS = ("AVX2", "AVX-512", "AVX-512 with dot products", "AMX", "AVX-512, as the system refuses AMX")
"""Names of instructions, as `products_by` in `src/linear.cpp` numbers them."""

_CODES = {kind: number for number, kind in enumerate(Codes)}
_SCALES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_SHIFTS, _FLOAT_SHIFTS, _ZEROS = range(3)
"""Kinds of shifts, as `src/codes.h` numbers them; zeros are bytes, for shifts of -zero * scale."""


@dataclass(frozen=True, slots=True)
class GroupedLayout:
    """The sizes of a packed `Grouped` matrix, and the numbers of its codes, scales and shifts in `src/codes.h`."""

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

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.code, self.inputs, self.outputs, self.group, self.scales, self.shifts


class MatrixKernels:
    """The kernels that pack a matrix, and multiply with it.

    x [..., inputs] has no gaps and, like the bias, the dtype that the matrix had if it had floats. With `gelu`, the
    result goes through GELU.
    """

    def __init__(self, library: Library) -> None:
        self.instructions = _INSTRUCTIONS[library.size("products_by", "")()]
        """Name of the instructions that products are computed by."""
        self._padded = library.size("padded_inputs", "ii")
        self._pack = library.kernel("pack_linear", "ipiiiipi")
        self._linear = library.kernel("linear", "ipiipppiii")
        self._pack_int8 = library.kernel("pack_int8", "ipiiiipppi")
        self._linear_int8 = library.kernel("linear_int8", "ipiipppppiifipi")
        self._pack_levels = library.kernel("pack_levels", "piiiippi")
        self._grouped_bytes = library.size("grouped_bytes", "iiiiii")
        self._pack_grouped = library.kernel("pack_grouped", "iiiiiippppi")
        self._linear_grouped = library.kernel("linear_grouped", "ipiiiiiiippppiii")

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Pack a matrix in parts [some of outputs, inputs] into panels; meta tensors make panels of meta tensors."""
        outputs, packed = _outputs(parts), self._panels(parts, parts[0].dtype)
        for first, part in _placed(parts):
            which = (first, *part.shape, outputs)
            self._pack(DTYPES[part.dtype], part.data_ptr(), *which, packed.data_ptr(), threads())
        return packed

    def linear(self, x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, gelu: bool) -> Tensor:
        out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
        inputs = x.shape[-1]
        self._linear(
            *(DTYPES[x.dtype], x.data_ptr(), x.numel() // inputs, inputs, packed.data_ptr()),
            *(_place(bias), out.data_ptr(), outputs, gelu, threads()),
        )
        return out

    def pack_int8(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Round a matrix in parts to int8; return panels, and for each output its scale and the sum of its weights."""
        outputs, packed = _outputs(parts), self._panels(parts, torch.int8)
        scales = torch.empty(outputs, dtype=torch.float32, device=packed.device)
        totals = torch.empty(outputs, dtype=torch.int32, device=packed.device)
        places = (packed.data_ptr(), scales.data_ptr(), totals.data_ptr())
        for first, part in _placed(parts):
            which = (first, *part.shape, outputs)
            self._pack_int8(DTYPES[part.dtype], part.data_ptr(), *which, *places, threads())
        return packed, scales, totals

    def pack_levels(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Pack int8 [outputs, inputs] as it is; return panels, and for each output the sum of its weights."""
        packed = self._panels([levels], torch.int8)
        totals = torch.empty(len(levels), dtype=torch.int32, device=packed.device)
        for first, part in _placed([levels]):
            which = (first, *part.shape, len(levels))
            self._pack_levels(part.data_ptr(), *which, packed.data_ptr(), totals.data_ptr(), threads())
        return packed, totals

    def linear_int8(
        self,
        x: Tensor,
        packed: Tensor,
        scales: Tensor,
        totals: Tensor,
        bias: Tensor | None,
        gelu: bool,
        static: StaticRows | None = None,
        addend: Tensor | None = None,
    ) -> Tensor:
        """Multiply x by a matrix of int8; `static` and `addend` are those of `forms.Int8`."""
        inputs, outputs = x.shape[-1], scales.numel()
        out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
        self._linear_int8(
            *(DTYPES[x.dtype], x.data_ptr(), x.numel() // inputs, inputs),
            *(packed.data_ptr(), scales.data_ptr(), totals.data_ptr()),
            *(_place(bias), out.data_ptr(), outputs, gelu),
            *((static.scale, static.offset) if static else (0.0, 0)),
            *(_place(addend), threads()),
        )
        return out

    def pack_grouped(self, form: Grouped, layout: GroupedLayout) -> Tensor:
        """Pack codes, scales and shifts into uint8 in the order of `src/codes.h`; meta tensors make a meta tensor."""
        nbytes = self._grouped_bytes(*layout.numbers)
        packed = torch.empty(nbytes, dtype=torch.uint8, device=form.codes.device)
        if not packed.is_meta and nbytes:
            shifts = zeros_of(form) if layout.shifts == _ZEROS else form.shifts
            # Kept here by name, as addresses keep nothing alive.
            codes, scales, shifts = (None if x is None else x.contiguous() for x in (form.codes, form.scales, shifts))
            places = (_place(codes), _place(scales), _place(shifts), packed.data_ptr())
            self._pack_grouped(*layout.numbers, *places, threads())
        return packed

    def linear_grouped(
        self,
        x: Tensor,
        packed: Tensor,
        layout: GroupedLayout,
        order: Tensor | None,
        bias: Tensor | None,
        gelu: bool,
        one_way: bool,
    ) -> Tensor:
        """Multiply x by a matrix of codes; with `one_way`, any number of rows goes the way of a few, so that no row
        depends on how many there are.
        """
        out = torch.empty(*x.shape[:-1], layout.outputs, dtype=x.dtype)
        self._linear_grouped(
            *(DTYPES[x.dtype], x.data_ptr(), x.numel() // layout.inputs, *layout.numbers),
            *(packed.data_ptr(), _place(order), _place(bias), out.data_ptr(), gelu, one_way, threads()),
        )
        return out

    def _panels(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        panels, inputs = -(-_outputs(parts) // _PANEL), self._padded(parts[0].shape[1], dtype.itemsize)
        return torch.empty(panels, inputs, _PANEL, dtype=dtype, device=parts[0].device)


def _place(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _outputs(parts: Sequence[Tensor]) -> int:
    return sum(map(len, parts))


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
