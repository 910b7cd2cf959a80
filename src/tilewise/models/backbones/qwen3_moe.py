"""Qwen3-MoE: Qwen3's attention with experts in every layer, and no shared expert."""

from tilewise.errors import InvalidCheckpoint
from tilewise.layers.moe import ExpertMLP
from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, ExpertConfig, text_config
from tilewise.models.decoder import Attention, Block, DecoderBlock
from tilewise.parallel.mesh import Mesh
from tilewise.weights.folder import Section
from tilewise.weights.names import NameTable, Source, stack
from tilewise.weights.view import View


def decoder_config(text: Section) -> DecoderConfig:
    if text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1:
        raise InvalidCheckpoint(f"{text.where}: mlp_only_layers and decoder_sparse_step leave layers without experts.")
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
    bias = bool(text.get("attention_bias", False))
    return text_config(text, head_dim=128, head_norm=True, qkv_bias=bias, output_bias=bias, experts=experts)


def block(view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> Block:
    experts = config.experts
    assert experts is not None
    mlp = ExpertMLP(
        view.at("mlp"),
        config.hidden_size,
        experts.intermediate_size,
        experts.count,
        experts.per_token,
        experts.renormalise,
    )
    return DecoderBlock(view, config, Attention(view.at("self_attn"), config, mesh), mlp)


def names(config: DecoderConfig) -> NameTable:
    """Published files keep each expert's matrices apart; files saved again by transformers 5 keep them in one."""
    assert config.experts is not None
    mlp, numbers = "model.layers.{}.mlp.experts", range(config.experts.count)
    gate_up = [f"{mlp}.{number}.{name}_proj.weight" for number in numbers for name in ("gate", "up")]
    down = [f"{mlp}.{number}.down_proj.weight" for number in numbers]
    return NameTable(
        {
            f"{mlp}.gate_up_proj": Source(
                gate_up[0], stack, tuple(gate_up[1:]), otherwise=Source(f"{mlp}.gate_up_proj")
            ),
            f"{mlp}.down_proj": Source(down[0], stack, tuple(down[1:]), otherwise=Source(f"{mlp}.down_proj")),
        }
    )


BACKBONE = Backbone("Qwen3MoeForCausalLM", "qwen3_moe", decoder_config, names, block)
