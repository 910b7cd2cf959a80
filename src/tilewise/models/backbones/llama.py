"""Decoders that are Llama but for a few switches: Llama 2 and 3 itself, Qwen2 and 2.5, Qwen3, InternLM3."""

from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, ExpertConfig, text_config
from tilewise.weights.folder import Section


def llama(text: Section) -> DecoderConfig:
    """Read Llama 2 and 3, and Yi, which is Llama under its own name. InternLM2 and 3 become this in the -hf format."""
    bias = bool(text.get("attention_bias", False))
    return text_config(text, qkv_bias=bias, output_bias=bias)


def qwen2(text: Section) -> DecoderConfig:
    """Read Llama with biases on query, key and value. Its sliding window is off in every checkpoint."""
    if text.get("use_sliding_window", False):
        raise InvalidCheckpoint(
            f"{text.where}: use_sliding_window is true, which no InternVL checkpoint was trained with."
        )
    return text_config(text, qkv_bias=True)


def qwen3(text: Section, experts: ExpertConfig | None = None) -> DecoderConfig:
    """Read Llama with RMS norm on every query and key head, and a head width apart from the hidden size."""
    bias = bool(text.get("attention_bias", False))
    return text_config(text, head_dim=128, head_norm=True, qkv_bias=bias, output_bias=bias, experts=experts)


def internlm3(text: Section) -> DecoderConfig:
    """Read Llama with grouped-query attention of two key/value heads."""
    if text.get("bias", False):
        raise InvalidCheckpoint(f"{text.where}: bias is true, which no InternVL checkpoint was trained with.")
    return text_config(text, qkv_bias=bool(text.get("qkv_bias", False)))


BACKBONES = (
    Backbone("LlamaForCausalLM", "llama", llama),
    Backbone("Qwen2ForCausalLM", "qwen2", qwen2),
    Backbone("Qwen3ForCausalLM", "qwen3", qwen3),
    Backbone("InternLM3ForCausalLM", "internlm3", internlm3),
)
