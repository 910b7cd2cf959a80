"""Qwen3-MoE: Qwen3's attention with experts in every layer, and no shared expert."""

from collections.abc import Callable

from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.layers import ExpertShare
from tilewise.models.backbones import Backbone
from tilewise.models.backbones.llama import qwen3
from tilewise.models.config import DecoderConfig, ExpertConfig
from tilewise.models.decoder import Attention, DecoderBlock, DecoderLayer
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import Section
from tilewise.weights.names import NameTable, RowSelector, TensorRef, part
from tilewise.weights.view import View


def decoder_config(text: Section) -> DecoderConfig:
    if text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1:
        raise InvalidCheckpoint(f"{text.where}: mlp_only_layers and decoder_sparse_step leave layers without experts.")
    if text.get("router_n_groups", -1) not in (-1, 0, 1):
        raise InvalidCheckpoint(
            f"{text.where}: router_n_groups={text.get('router_n_groups')} chooses experts group by group, as "
            "Intern-S1-Pro does; that is not supported."
        )
    # transformers 5 saves its number of experts under another name.
    count = text.whole("num_local_experts" if "num_local_experts" in text.values else "num_experts")
    per_token = text.whole("num_experts_per_tok")
    if per_token > count:
        raise InvalidCheckpoint(f"{text.where}: num_experts_per_tok={per_token} of only num_experts={count}.")
    experts = ExpertConfig(
        count=count,
        per_token=per_token,
        intermediate_size=text.whole("moe_intermediate_size"),
        renormalise=bool(text.get("norm_topk_prob", False)),
    )
    return qwen3(text, experts)


def block(view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> DecoderLayer:
    assert config.experts is not None
    mlp = ExpertMLP(view.at("mlp"), config.hidden_size, config.experts, mesh)
    return DecoderBlock(view, config, Attention(view.at("self_attn"), config, mesh), mlp)


class ExpertMLP:
    """A router without bias, softmax over all experts, the likeliest of them, SwiGLU inside."""

    def __init__(self, view: View, hidden: int, experts: ExpertConfig, mesh: Mesh) -> None:
        count, inner = experts.count, experts.intermediate_size
        self._config = experts
        self._router = view.tensor("gate.weight", count, hidden).float()
        own = ExpertShare.of(mesh, count, inner)
        parts = {"gate_proj": inner, "up_proj": inner}
        self._gate_up = own.store(view.at("experts"), parts, hidden, output_share=own.inner)
        self._down = own.store(view.at("experts"), {"down_proj": hidden}, inner, input_share=own.inner)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        """Return this rank's part of the sum over experts for x [N, hidden], of the same shape.

        The router runs in float32: near ties must not depend on rounding.
        """
        logits = ops.linear(x.float(), self._router, None)
        weights, chosen = ops.choose_experts(logits, self._config.per_token, self._config.renormalise)
        return ops.moe_experts(x, chosen, weights, self._gate_up, self._down, ops.silu_mul)


def names(config: DecoderConfig) -> NameTable:
    """Name the experts: published files keep each one's matrices apart, files saved again by transformers 5 in one."""
    experts = "model.layers.{}.mlp.experts"

    def of_one(ours: str, together: str, rows: RowSelector | None = None) -> Callable[[int, int], TensorRef]:
        def row(layer: int, expert: int) -> TensorRef:
            all_of_them = TensorRef(f"{experts}.{together}", item=expert, rows=rows)
            return TensorRef(f"{experts}.{{}}.{ours}.weight", otherwise=all_of_them)

        return row

    parts = {
        "gate_proj": of_one("gate_proj", "gate_up_proj", part(0, of=2)),
        "up_proj": of_one("up_proj", "gate_up_proj", part(1, of=2)),
        "down_proj": of_one("down_proj", "down_proj"),
    }
    return NameTable({f"{experts}.{{}}.{name}.weight": row for name, row in parts.items()})


BACKBONES = (Backbone("Qwen3MoeForCausalLM", "qwen3_moe", decoder_config, names, block),)
