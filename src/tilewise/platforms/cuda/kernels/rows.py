"""Row kernels: what is done to each row, or number, of activations for itself."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _silu_mul(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    gate = tl.load(gate_up + row * 2 * width + place, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + place, mask=inside).to(tl.float32)
    # Rounded where the reference stores, so that both give the same numbers.
    silu = (gate / (1 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + place, (silu * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`Ops.silu_mul` of contiguous rows."""
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = out.numel() // width
    if rows:
        _silu_mul[rows, triton.cdiv(width, _BLOCK)](gate_up, out, width, BLOCK=_BLOCK)
    return out
