"""NativeCpuOps: kernels of our own where they apply, torch's ops elsewhere."""

from __future__ import annotations

from torch import Tensor

from tilewise.platforms.cpu.native.call import Rows, readable
from tilewise.platforms.cpu.native.library import Native
from tilewise.platforms.cpu.ops import CpuOps


class NativeCpuOps(CpuOps):
    """Each op asks whether its kernel was right when it was tried, and whether it can read these tensors."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self._has("rms_norm") and readable(x, weight) and (rows := Rows.of(x)):
            return self._native.rows.rms_norm(x, rows, weight, eps)
        return super().rms_norm(x, weight, eps)

    def _has(self, kernel: str) -> bool:
        return kernel not in self._native.left_out
