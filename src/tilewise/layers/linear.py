"""Linear layers. The view knows how a weight is stored; a layer knows how it is sharded; models know neither."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tilewise.parallel.mesh import Mesh, Share
from tilewise.platforms.base import Ops
from tilewise.weights.view import View, combined


class ColumnLinear:
    """One or several matrices that read the same input, as one product; ranks split the outputs of each.

    `parts` maps each module's name to its number of outputs. Those named in `shares` are not cut into equal parts.
    """

    def __init__(
        self,
        view: View,
        parts: Mapping[str, int],
        inputs: int,
        bias: bool,
        mesh: Mesh,
        shares: Mapping[str, Share] | None = None,
    ) -> None:
        given = shares or {}
        found = [
            view.linear(
                *(name, outputs, inputs, bias),
                output_share=given[name] if name in given else mesh.share(outputs, f"outputs of {name}"),
            )
            for name, outputs in parts.items()
        ]
        self.sizes = [part.matrix.shape[0] for part in found]
        self._weight = view.store(*combined(found))

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._weight.apply(x, ops)

    def gelu(self, x: Tensor, ops: Ops) -> Tensor:
        """Return GELU of what a call gives."""
        return ops.linear_gelu(x, self._weight)


class RowLinear:
    """A matrix whose inputs are split over ranks; what it gives is a part of the sum over them."""

    def __init__(self, view: View, name: str, inputs: int, outputs: int, bias: bool, mesh: Mesh) -> None:
        found = view.linear(name, outputs, inputs, bias, input_share=mesh.share(inputs, f"inputs of {name}"))
        self._weight = view.store([found.matrix], found.bias)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._weight.apply(x, ops)
