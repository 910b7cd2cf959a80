"""Norms of both kinds, as callables that hold their weights."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from tilewise.platforms.base import Ops
from tilewise.weights.view import View

NormKind = Literal["layer_norm", "rms_norm"]


class Norm(Protocol):
    def __call__(self, x: Tensor, ops: Ops) -> Tensor: ...

    def after(self, x: Tensor, scale: Tensor | None, y: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Return x + scale * y, and the norm of it."""
        ...


class RMSNorm:
    def __init__(self, view: View, width: int, eps: float) -> None:
        self.weight = view.tensor("weight", width)
        self._eps = eps

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.rms_norm(x, self.weight, self._eps)

    def after(self, x: Tensor, scale: Tensor | None, y: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, scale, y, self.weight, self._eps)


class LayerNorm:
    def __init__(self, view: View, width: int, eps: float) -> None:
        self._weight = view.tensor("weight", width)
        self._bias = view.tensor("bias", width)
        self._eps = eps

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.layer_norm(x, self._weight, self._bias, self._eps)

    def after(self, x: Tensor, scale: Tensor | None, y: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        return ops.add_layer_norm(x, scale, y, self._weight, self._bias, self._eps)


def norm_of(kind: NormKind, view: View, width: int, eps: float) -> Norm:
    return LayerNorm(view, width, eps) if kind == "layer_norm" else RMSNorm(view, width, eps)
