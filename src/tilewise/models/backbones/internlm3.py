"""InternLM3: Llama's names, grouped-query attention with two key/value heads."""

from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones import Backbone
from tilewise.models.config import DecoderConfig, text_config
from tilewise.weights.folder import Section


def decoder_config(text: Section) -> DecoderConfig:
    if text.get("bias", False):
        raise InvalidCheckpoint(f"{text.where}: bias is true, which no InternVL checkpoint was trained with.")
    return text_config(text, qkv_bias=bool(text.get("qkv_bias", False)))


BACKBONE = Backbone("InternLM3ForCausalLM", "internlm3", decoder_config)
