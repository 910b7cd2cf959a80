"""Linear layers. The view knows how a weight is stored; a layer knows how it is sharded; models know neither."""

from __future__ import annotations

from torch import Tensor

from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Ops
from tilewise.platforms.weights import stacked
from tilewise.weights.view import View


class ColumnLinear:
    """One or several matrices that read the same input, as one product; ranks split the outputs of each.

    `parts` maps each module's name to its number of outputs.
    """

    def __init__(self, view: View, parts: dict[str, int], inputs: int, bias: bool, mesh: Mesh) -> None:
        matrices, biases = [], []
        for name, outputs in parts.items():
            share = mesh.share(outputs, f"outputs of {name}")
            matrices.append(view.at(name).tensor("weight", outputs, inputs, share=share))
            if bias:
                biases.append(view.at(name).tensor("bias", outputs, share=share))
        self.sizes = [len(matrix) for matrix in matrices]
        self._weight = view.store(matrices, stacked(biases) if biases else None)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._weight.apply(x, ops)

    def gelu(self, x: Tensor, ops: Ops) -> Tensor:
        """GELU of what a call gives."""
        return ops.linear_gelu(x, self._weight)


class RowLinear:
    """A matrix whose inputs are split over ranks; the partial sums are added up."""

    def __init__(self, view: View, name: str, inputs: int, outputs: int, bias: bool, mesh: Mesh) -> None:
        share = mesh.share(inputs, f"inputs of {name}")
        matrix = view.at(name).tensor("weight", outputs, inputs, dim=1, share=share)
        # Added once, not once a rank.
        offset = view.at(name).tensor("bias", outputs) if bias and mesh.rank == 0 else None
        self._weight = view.store([matrix], offset)
        self._mesh = mesh

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._mesh.all_reduce(self._weight.apply(x, ops))
