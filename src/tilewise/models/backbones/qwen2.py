"""Qwen2 and Qwen2.5: Llama with biases on query, key and value. Their sliding window is off in every checkpoint."""

from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, text_config
from tilewise.weights.folder import Section


def decoder_config(text: Section) -> DecoderConfig:
    if text.get("use_sliding_window", False):
        raise InvalidCheckpoint(
            f"{text.where}: use_sliding_window is true, which no InternVL checkpoint was trained with."
        )
    return text_config(text, qkv_bias=True)


BACKBONE = Backbone("Qwen2ForCausalLM", "qwen2", decoder_config)
