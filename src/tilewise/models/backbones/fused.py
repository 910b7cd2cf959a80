"""Decoders that are Llama with several matrices fused in their files: InternLM2 and 2.5, Phi-3."""

import math

import torch

from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, text_config
from tilewise.platforms.forms import Rows
from tilewise.weights.folder import Section
from tilewise.weights.names import NameTable, RowSelector, TensorRef, part, rows, section

_MODULES = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def internlm2(text: Section) -> DecoderConfig:
    bias = bool(text.get("bias", False))
    return text_config(text, qkv_bias=bias, output_bias=bias)


def packed(config: DecoderConfig, letter: str) -> RowSelector:
    """Return a function that finds the rows of queries, keys or values ("q", "k" or "v") in `wqkv`.

    Each key/value head's group stands together there: its query heads, then its key, then its value.
    """
    queries = config.num_heads // config.num_kv_heads
    heads = {"q": slice(0, queries), "k": slice(queries, queries + 1), "v": slice(queries + 1, queries + 2)}[letter]

    def rows(count: int) -> Rows:
        groups = (config.num_kv_heads, queries + 2, config.head_dim)
        if count != math.prod(groups):
            return slice(None)
        return torch.arange(count).view(groups)[:, heads].flatten()

    return rows


def internlm2_names(config: DecoderConfig) -> NameTable:
    """Name tensors of InternLM2: names of its own, and queries, keys and values packed by key/value head.

    Source: InternLM/lmdeploy `lmdeploy/pytorch/models/internlm2.py`, huggingface/transformers
    `convert_internvl_weights_to_hf.py`.
    """
    layer = "model.layers.{}"
    return NameTable(
        {
            "model.embed_tokens.weight": TensorRef("model.tok_embeddings.weight"),
            "lm_head.weight": TensorRef("output.weight"),
            **rows({f"{layer}.{ours}": f"{layer}.{theirs}" for ours, theirs in _MODULES.items()}),
            **{
                f"{layer}.self_attn.{letter}_proj.{kind}": TensorRef(
                    f"{layer}.attention.wqkv.{kind}", rows=packed(config, letter)
                )
                for letter in "qkv"
                for kind in ("weight", "bias")
            },
        }
    )


def phi3_names(config: DecoderConfig) -> NameTable:
    """Name tensors of Phi-3: queries, keys and values in one matrix, gate and up in another."""
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


BACKBONES = (
    Backbone("InternLM2ForCausalLM", "internlm2", internlm2, internlm2_names),
    # Its sliding window of 262144 is longer than any context, hence not read.
    Backbone("Phi3ForCausalLM", "phi3", text_config, phi3_names),
)
