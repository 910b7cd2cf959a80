"""GPT-OSS: every other layer sees a window, heads have sink logits, experts a clamped SwiGLU and biases.

Source: openai/gpt-oss `gpt_oss/torch/model.py` and `weights.py`; the MXFP4 layout is that of OCP Microscaling v1.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.layers.moe import store_experts
from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, ExpertConfig, text_config
from tilewise.models.decoder import Attention, Block, DecoderBlock
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Ops
from tilewise.weights.folder import Section
from tilewise.weights.names import NameTable, Select, Source, Stored
from tilewise.weights.view import View

LIMIT, ALPHA = 7.0, 1.702  # of the clamped SwiGLU
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decoder_config(text: Section) -> DecoderConfig:
    layers = text.whole("num_hidden_layers")
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    if text.get("layer_types", kinds) != kinds:
        raise InvalidCheckpoint(f"{text.where}: layer_types must alternate, a sliding layer first.")
    limit = text.number("swiglu_limit", LIMIT)
    if limit != LIMIT:
        raise InvalidCheckpoint(f"{text.where}: swiglu_limit is {limit}, expected {LIMIT}.")
    inner = text.whole("intermediate_size")
    experts = ExpertConfig(text.whole("num_local_experts"), text.whole("num_experts_per_tok"), inner)
    bias = bool(text.get("attention_bias", True))
    window = text.whole("sliding_window", 128)
    return text_config(text, head_dim=64, qkv_bias=bias, output_bias=bias, experts=experts, window=window)


def block(view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> Block:
    window = None if layer % 2 else config.window
    attention = Attention(view.at("self_attn"), config, mesh, window, sinks=True)
    return DecoderBlock(view, config, attention, GptOssMLP(view.at("mlp"), config))


class GptOssMLP:
    """The logits of the chosen experts alone go through the softmax."""

    def __init__(self, view: View, config: DecoderConfig) -> None:
        experts = config.experts
        assert experts is not None
        count, inner, hidden = experts.count, experts.intermediate_size, config.hidden_size
        self._per_token = experts.per_token
        self._router = view.tensor("router.weight", count, hidden).float()
        self._router_bias = view.tensor("router.bias", count).float()
        inside = view.at("experts")
        gate_up_bias, down_bias = (
            inside.tensor("gate_up_proj_bias", count, 2 * inner),
            inside.tensor("down_proj_bias", count, hidden),
        )
        self._gate_up = store_experts(inside, inside.tensor("gate_up_proj", count, 2 * inner, hidden), gate_up_bias)
        self._down = store_experts(inside, inside.tensor("down_proj", count, hidden, inner), down_bias)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        logits = ops.linear(x.float(), self._router, self._router_bias)
        scores, chosen = logits.topk(self._per_token, dim=-1)
        return ops.moe_experts(x, chosen, scores.softmax(-1), self._gate_up, self._down, clamped_swiglu)


def clamped_swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2F] -> [..., F]: (up + 1) * gate * sigmoid(1.702 * gate), gate at most 7, up between -7 and 7."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


def names(config: DecoderConfig) -> NameTable:
    """Experts are stored as MXFP4 blocks with scales, or in bfloat16 the other way round (in, out)."""
    experts = "model.layers.{}.mlp.experts"
    packed = frozenset({"U8"})

    def source(name: str, of_blocks: Select, of_floats: Select) -> Source:
        floats = Source(f"{experts}.{name}", of_floats)
        return Source(f"{experts}.{name}_blocks", of_blocks, (f"{experts}.{name}_scales",), packed, floats)

    return NameTable(
        {
            f"{experts}.gate_up_proj": source("gate_up_proj", _gate_up_of_blocks, _gate_up_of_floats),
            f"{experts}.gate_up_proj_bias": Source(f"{experts}.gate_up_proj_bias", _gate_up_bias),
            f"{experts}.down_proj": source("down_proj", dequantise_mxfp4, _down_of_floats),
        }
    )


def dequantise_mxfp4(blocks: Stored, scales: Stored) -> Tensor:
    """uint8 blocks [..., n, 16] of two FP4 (E2M1) codes a byte, low nibble first, and scale exponents [..., n],
    biased by 127 -> bfloat16 [..., n * 32]."""
    codes, exponents = blocks[:], scales[:].int() - 127
    table = torch.tensor(_FP4, dtype=torch.bfloat16)
    values = torch.stack((table[(codes & 15).int()], table[(codes >> 4).int()]), dim=-1).flatten(-2)
    return torch.ldexp(values, exponents[..., None]).flatten(-2).to(torch.bfloat16)


def _apart(rows: Tensor) -> Tensor:
    """Gate and up rows alternate in the files; here all gates come first. Axis 1."""
    return torch.cat((rows[:, ::2], rows[:, 1::2]), dim=1)


def _gate_up_of_blocks(blocks: Stored, scales: Stored) -> Tensor:
    return _apart(dequantise_mxfp4(blocks, scales))


def _gate_up_of_floats(stored: Stored) -> Tensor:
    return _apart(stored[:].transpose(1, 2))


def _gate_up_bias(stored: Stored) -> Tensor:
    return _apart(stored[:])


def _down_of_floats(stored: Stored) -> Tensor:
    return stored[:].transpose(1, 2).contiguous()


BACKBONE = Backbone("GptOssForCausalLM", "gpt_oss", decoder_config, names, block)
