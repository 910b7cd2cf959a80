"""Phi-3: Llama with queries, keys and values in one matrix, gate and up in another, and longrope."""

from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, text_config
from tilewise.weights.folder import Section
from tilewise.weights.names import NameTable, TensorRef, part, section


def decoder_config(text: Section) -> DecoderConfig:
    # Its sliding window of 262144 is longer than any context, hence not read.
    return text_config(text)


def names(config: DecoderConfig) -> NameTable:
    layer = "model.layers.{}"
    keys = config.num_kv_heads * config.head_dim
    sizes = (config.num_heads * config.head_dim, keys, keys)
    return NameTable(
        {
            **{
                f"{layer}.self_attn.{letter}_proj.weight": TensorRef(
                    f"{layer}.self_attn.qkv_proj.weight", rows=section(sizes, index)
                )
                for index, letter in enumerate("qkv")
            },
            **{
                f"{layer}.mlp.{name}_proj.weight": TensorRef(f"{layer}.mlp.gate_up_proj.weight", rows=part(index, of=2))
                for index, name in enumerate(("gate", "up"))
            },
        }
    )


BACKBONE = Backbone("Phi3ForCausalLM", "phi3", decoder_config, names)
