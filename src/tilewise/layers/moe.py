"""Mixture of experts: a router, and MLPs of which each token takes a few."""

from __future__ import annotations

from torch import Tensor

from tilewise.platforms.base import Ops, Weight
from tilewise.weights.view import View


class ExpertMLP:
    """Router without bias, softmax over all experts, the likeliest `per_token` of them, SwiGLU inside (Qwen3-MoE)."""

    def __init__(self, view: View, hidden: int, inner: int, count: int, per_token: int, renormalise: bool) -> None:
        self._router = view.tensor("gate.weight", count, hidden).float()
        self._gate_up = store_experts(view, view.tensor("experts.gate_up_proj", count, 2 * inner, hidden))
        self._down = store_experts(view, view.tensor("experts.down_proj", count, hidden, inner))
        self._per_token = per_token
        self._renormalise = renormalise

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        """x [N, hidden] -> the same shape. The router runs in float32: near ties must not depend on rounding."""
        scores = ops.linear(x.float(), self._router, None).softmax(-1)
        weights, chosen = scores.topk(self._per_token, dim=-1)
        if self._renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return ops.moe_experts(x, chosen, weights, self._gate_up, self._down, ops.silu_mul)


def store_experts(view: View, matrices: Tensor, biases: Tensor | None = None) -> tuple[Weight, ...]:
    """matrices [experts, out, in] and biases [experts, out], each expert's in the form in which the view keeps them."""
    own = [None] * len(matrices) if biases is None else list(biases)
    return tuple(view.store([matrix], bias) for matrix, bias in zip(matrices, own, strict=True))
