"""GPT-OSS: every other layer sees a window, heads have sink logits, experts a clamped SwiGLU and biases.

Source: openai/gpt-oss `gpt_oss/torch/model.py` and `weights.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.layers import ExpertShare
from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, ExpertConfig, text_config
from tilewise.models.decoder import Attention, DecoderBlock, DecoderLayer
from tilewise.parallel.mesh import Mesh, Share
from tilewise.platforms.forms import Rows
from tilewise.platforms.ops import SWIGLU_LIMIT, Ops
from tilewise.weights.folder import Section
from tilewise.weights.names import NameTable, RowSelector, TensorRef
from tilewise.weights.view import View


def decoder_config(text: Section) -> DecoderConfig:
    layers = text.whole("num_hidden_layers")
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    if text.get("layer_types", kinds) != kinds:
        raise InvalidCheckpoint(f"{text.where}: layer_types must alternate, a sliding layer first.")
    limit = text.number("swiglu_limit", SWIGLU_LIMIT)
    if limit != SWIGLU_LIMIT:
        raise InvalidCheckpoint(f"{text.where}: swiglu_limit is {limit}, expected {SWIGLU_LIMIT}.")
    inner = text.whole("intermediate_size")
    experts = ExpertConfig(text.whole("num_local_experts"), text.whole("num_experts_per_tok"), inner)
    bias = bool(text.get("attention_bias", True))
    window = text.whole("sliding_window", 128)
    return text_config(text, head_dim=64, qkv_bias=bias, output_bias=bias, experts=experts, window=window)


def block(view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> DecoderLayer:
    window = None if layer % 2 else config.window
    attention = Attention(view.at("self_attn"), config, mesh, window, sinks=True)
    return DecoderBlock(view, config, attention, GptOssMLP(view.at("mlp"), config, mesh))


class GptOssMLP:
    """A mixture of experts whose softmax is over the logits of the chosen experts alone."""

    def __init__(self, view: View, config: DecoderConfig, mesh: Mesh) -> None:
        experts = config.experts
        assert experts is not None
        count, inner, hidden = experts.count, experts.intermediate_size, config.hidden_size
        self._per_token = experts.per_token
        self._router = view.tensor("router.weight", count, hidden).float()
        self._router_bias = view.tensor("router.bias", count).float()
        own, experts_view = ExpertShare.of(mesh, count, inner), view.at("experts")
        self._gate_up = own.store(experts_view, {"gate_up_proj": 2 * inner}, hidden, True, rows=_both(own.inner, inner))
        self._down = own.store(experts_view, {"down_proj": hidden}, inner, True, input_share=own.inner)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        logits = ops.linear(x.float(), self._router, self._router_bias)
        weights, chosen = ops.choose_experts(logits, self._per_token, renormalise=True)
        return ops.moe_experts(x, chosen, weights, self._gate_up, self._down, ops.clamped_swiglu)


def _both(share: Share | None, inner: int) -> Tensor | None:
    """Return the rows of a share of gates, and of the same share of what they gate, in a matrix that has both.

    None = all rows.
    """
    if share is None or share.length == inner:
        return None
    gates = torch.arange(share.start, share.start + share.length)
    return torch.cat((gates, inner + gates))


def names(config: DecoderConfig) -> NameTable:
    """Name the experts, which are stored in one tensor a layer: as MXFP4 blocks with scales [out, in], or in floats
    [in, out].
    """
    experts = "model.layers.{}.mlp.experts"

    def of_one(ours: str, kind: str, rows: RowSelector | None) -> Callable[[int, int], TensorRef]:
        matrix, name = kind == "weight", ours if kind == "weight" else f"{ours}_{kind}"
        return lambda layer, expert: TensorRef(f"{experts}.{name}", item=expert, transposed=matrix, rows=rows)

    return NameTable(
        {
            f"{experts}.{{}}.{name}.{kind}": of_one(name, kind, rows)
            for name, rows in (("gate_up_proj", _apart), ("down_proj", None))
            for kind in ("weight", "bias")
        }
    )


def _apart(count: int) -> Rows:
    """Return the order of rows in which all gates come first; in the files, rows of gate and up alternate."""
    return torch.cat((torch.arange(0, count, 2), torch.arange(1, count, 2)))


BACKBONES = (Backbone("GptOssForCausalLM", "gpt_oss", decoder_config, names, block),)
