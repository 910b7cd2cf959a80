"""Calls of `src/linear.cpp` and `src/int8.cpp`, which multiply with a matrix that they have packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.call import DTYPES, threads
from tilewise.platforms.cpu.native.library import Library
from tilewise.platforms.forms import stacked

_PANEL = 16
"""Outputs of a panel: as `src/packed.h` has it."""
_INSTRUCTIONS = ("AVX2", "AVX-512", "AVX-512 with dot products", "AMX", "AVX-512, as the system refuses AMX")
"""As `products_by` in `src/linear.cpp` numbers them."""


class MatrixKernels:
    """x [..., inputs] without gaps, in the dtype that the matrix had; bias in the same. `gelu`: of what comes out."""

    def __init__(self, library: Library) -> None:
        self.instructions = _INSTRUCTIONS[library.size("products_by", "")()]
        """What products are computed by."""
        self._padded = library.size("padded_inputs", "ii")
        self._pack = library.kernel("pack_linear", "ipiiiipi")
        self._linear = library.kernel("linear", "ipiipppiii")
        self._pack_int8 = library.kernel("pack_int8", "ipiiiipppi")
        self._linear_int8 = library.kernel("linear_int8", "ipiipppppiii")

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Panels of a matrix in parts [some of outputs, inputs]; of shapes alone, their shape."""
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
            *(None if bias is None else bias.data_ptr(), out.data_ptr(), outputs, gelu, threads()),
        )
        return out

    def pack_int8(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Panels, and for each output its scale and the sum of its weights."""
        outputs, packed = _outputs(parts), self._panels(parts, torch.int8)
        scales = torch.empty(outputs, dtype=torch.float32, device=packed.device)
        totals = torch.empty(outputs, dtype=torch.int32, device=packed.device)
        places = (packed.data_ptr(), scales.data_ptr(), totals.data_ptr())
        for first, part in _placed(parts):
            which = (first, *part.shape, outputs)
            self._pack_int8(DTYPES[part.dtype], part.data_ptr(), *which, *places, threads())
        return packed, scales, totals

    def linear_int8(
        self, x: Tensor, packed: Tensor, scales: Tensor, totals: Tensor, bias: Tensor | None, gelu: bool
    ) -> Tensor:
        inputs, outputs = x.shape[-1], scales.numel()
        out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
        self._linear_int8(
            *(DTYPES[x.dtype], x.data_ptr(), x.numel() // inputs, inputs),
            *(packed.data_ptr(), scales.data_ptr(), totals.data_ptr()),
            *(None if bias is None else bias.data_ptr(), out.data_ptr(), outputs, gelu, threads()),
        )
        return out

    def _panels(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        panels, inputs = -(-_outputs(parts) // _PANEL), self._padded(parts[0].shape[1], dtype.itemsize)
        return torch.empty(panels, inputs, _PANEL, dtype=dtype, device=parts[0].device)


def _outputs(parts: Sequence[Tensor]) -> int:
    return sum(map(len, parts))


def _placed(parts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each part that has numbers, without gaps, behind its first output.

    A panel is packed at once, so parts that end within one are put together, which takes a copy.
    """
    if any(len(part) % _PANEL for part in parts[:-1]):
        parts = [stacked(parts)]
    first = 0
    for part in parts:
        if not part.is_meta:
            yield first, part.contiguous()
        first += len(part)
