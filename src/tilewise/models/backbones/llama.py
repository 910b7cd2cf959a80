"""Llama 2 and 3, and Yi, which is Llama under its own name. InternLM2 and 3 become this in the -hf format."""

from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, text_config
from tilewise.weights.folder import Section


def decoder_config(text: Section) -> DecoderConfig:
    bias = bool(text.get("attention_bias", False))
    return text_config(text, qkv_bias=bias, output_bias=bias)


BACKBONE = Backbone("LlamaForCausalLM", "llama", decoder_config)
