"""Qwen3: Llama with RMS norm on every query and key head, and a head width apart from the hidden size."""

from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, text_config
from tilewise.weights.folder import Section


def decoder_config(text: Section) -> DecoderConfig:
    bias = bool(text.get("attention_bias", False))
    return text_config(text, head_dim=128, head_norm=True, qkv_bias=bias, output_bias=bias)


BACKBONE = Backbone("Qwen3ForCausalLM", "qwen3", decoder_config)
