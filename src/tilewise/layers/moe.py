"""Mixture of experts: a router, and MLPs of which each token takes a few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tilewise.parallel.mesh import Mesh, Share
from tilewise.platforms.base import Ops, Use, Weight
from tilewise.platforms.forms import Rows
from tilewise.weights.view import View, combined


class ExpertMLP:
    """A router without bias, softmax over all experts, the likeliest `per_token` of them, SwiGLU inside (Qwen3-MoE)."""

    def __init__(
        self, view: View, hidden: int, inner: int, count: int, per_token: int, renormalise: bool, mesh: Mesh
    ) -> None:
        self._router = view.tensor("gate.weight", count, hidden).float()
        own = ExpertShare.of(mesh, count, inner)
        parts = {"gate_proj": inner, "up_proj": inner}
        self._gate_up = own.store(view.at("experts"), parts, hidden, output_share=own.inner)
        self._down = own.store(view.at("experts"), {"down_proj": hidden}, inner, input_share=own.inner)
        self._per_token = per_token
        self._renormalise = renormalise

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        """Return this rank's part of the sum over experts for x [N, hidden], of the same shape.

        The router runs in float32: near ties must not depend on rounding.
        """
        scores = ops.linear(x.float(), self._router, None).softmax(-1)
        weights, chosen = scores.topk(self._per_token, dim=-1)
        if self._renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return ops.moe_experts(x, chosen, weights, self._gate_up, self._down, ops.silu_mul)


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """A rank's share of a layer's `count` experts: those `here` whole, or of each the `inner` part of its MLP."""

    count: int
    here: frozenset[int]
    inner: Share | None
    """Part of each expert's inner axis; None = the whole."""

    @classmethod
    def of(cls, mesh: Mesh, count: int, inner: int) -> ExpertShare:
        own = mesh.experts(count)
        if own is None:
            return cls(count, frozenset(range(count)), mesh.share(inner, "inputs of an expert's down_proj"))
        return cls(count, frozenset(own), None)

    def store(
        self,
        view: View,
        parts: Mapping[str, int],
        inputs: int,
        bias: bool = False,
        output_share: Share | None = None,
        input_share: Share | None = None,
        rows: Rows | None = None,
    ) -> tuple[Weight | None, ...]:
        """Store each expert's matrices that read the same input, by module and number of outputs, as one weight.

        A rank keeps a share of their outputs or inputs, or certain `rows` of them. None = all. Experts of other ranks
        are None.
        """

        def stored(expert: View) -> Weight:
            found = [
                expert.linear(name, outputs, inputs, bias, output_share, input_share) for name, outputs in parts.items()
            ]
            if rows is not None:
                found = [part.rows(rows) for part in found]
            return expert.store(*combined(found), Use.EXPERT)

        return tuple(stored(view.at(number)) if number in self.here else None for number in range(self.count))
