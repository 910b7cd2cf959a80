"""The config.json that a model was published with, made from the metadata of its text and mmproj files.

Source: ggml-org/llama.cpp `conversion/` for what is written, `tools/mtmd/clip.cpp` for what holds where nothing is:
older files do not say how many tiles a picture has, and none says which norms the tower has, or which template.
"""

from __future__ import annotations

import re
from typing import Any

from tilewise.errors import InvalidCheckpoint, did_you_mean
from tilewise.weights.folder import ORIGINAL
from tilewise.weights.gguf.container import GgufHeader

_FAMILIES = {
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "llama": ("LlamaForCausalLM", "llama"),
    "internlm2": ("InternLM2ForCausalLM", "internlm2"),
}
"""`general.architecture` -> `architectures` and `model_type` of the language model. InternLM3 and Yi are written as
llama."""
PERMUTED = ("llama", "internlm2")
"""Families whose query and key weights are written in the order in which llama.cpp's rope rotates pairs."""
_OLD_TEMPLATES = {"internlm2": "internlm2-chat", "qwen2": "Hermes-2", "llama": "Hermes-2"}
"""Templates of InternVL2 by family; later generations share one."""
_INTERNVL2 = re.compile(r"internvl[-_ ]?2(?![.\d]|[-_ ]5)", re.IGNORECASE)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SAMPLING = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_NUMBER = (int, float)


def family(text: GgufHeader) -> str:
    """Return the `general.architecture` of a text file. Raises InvalidCheckpoint if no InternVL is made of it."""
    found: str = text.need("general.architecture", str)
    if found not in _FAMILIES:
        raise InvalidCheckpoint(
            f"{text.path}: general.architecture is {found!r}, read are {', '.join(_FAMILIES)}; take the model's "
            f"safetensors.{did_you_mean(found, _FAMILIES)}"
        )
    return found


def config_of(text: GgufHeader, vision: GgufHeader) -> dict[str, Any]:
    """Return config.json of a text file and its mmproj file.

    Raises InvalidCheckpoint, naming file and key, also for two that do not belong together.
    """
    tower = _vision_config(vision)
    language = _text_config(text)
    hidden, width = language["hidden_size"], _outputs(vision, "mm.model.mlp.3.weight")
    if hidden != width:
        raise InvalidCheckpoint(
            f"{vision.path} gives rows of {width} numbers, {text.path} takes {hidden}: they are of different models. "
            "Take the mmproj file that was published with the text, or name it with --mmproj."
        )
    scale = vision.get("clip.vision.projector.scale_factor", int, 2)
    return {
        "architectures": [ORIGINAL],
        "model_type": "internvl_chat",
        "downsample_ratio": 1 / max(1, scale),
        "dynamic_image_size": True,
        "force_image_size": tower["image_size"],
        "min_dynamic_patch": vision.get("clip.vision.preproc_min_tiles", int, 1),
        "max_dynamic_patch": vision.get("clip.vision.preproc_max_tiles", int, 12),
        "ps_version": "v2",
        "select_layer": -1,
        "template": _template(text),
        "use_thumbnail": True,
        "torch_dtype": "bfloat16",
        "llm_config": language,
        "vision_config": tower,
        **QUANTIZATION,
    }


QUANTIZATION: dict[str, Any] = {"quantization_config": {"quant_method": "gguf"}}


def generation_config(text: GgufHeader) -> dict[str, Any]:
    """Return generation_config.json: end tokens, and the sampling that newer files bring along."""
    ends = {text.get(f"tokenizer.ggml.{name}_token_id", int) for name in ("eos", "eot")} - {None}
    sampling = {ours: text.get(f"general.sampling.{theirs}", _NUMBER) for theirs, ours in _SAMPLING.items()}
    return {"eos_token_id": sorted(ends)} | {name: value for name, value in sampling.items() if value is not None}


def _text_config(text: GgufHeader) -> dict[str, Any]:
    name = family(text)
    heads = text.need(f"{name}.attention.head_count", int)
    architecture, model_type = _FAMILIES[name]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": text.need(f"{name}.embedding_length", int),
        "num_hidden_layers": text.need(f"{name}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": text.get(f"{name}.attention.head_count_kv", int, heads),
        "intermediate_size": text.get(f"{name}.feed_forward_length", int) or 1,  # that of experts stands apart
        "vocab_size": _outputs(text, "token_embd.weight"),
        "max_position_embeddings": text.need(f"{name}.context_length", int),
        "rms_norm_eps": text.need(f"{name}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": text.get(f"{name}.rope.freq_base", _NUMBER, 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in text.by_name,
        **_rope_scaling(text, name),
        **_experts(text, name),
    }
    if (head_dim := text.get(f"{name}.attention.key_length", int)) is not None:
        config["head_dim"] = head_dim
    if name == "internlm2":
        config["bias"] = "blk.0.attn_q.bias" in text.by_name
    elif name in ("llama", "qwen3moe"):
        config["attention_bias"] = "blk.0.attn_q.bias" in text.by_name
    return config


def _experts(text: GgufHeader, name: str) -> dict[str, Any]:
    if name != "qwen3moe":
        return {}
    return {
        "num_experts": text.need(f"{name}.expert_count", int),
        "num_experts_per_tok": text.need(f"{name}.expert_used_count", int),
        "moe_intermediate_size": text.need(f"{name}.expert_feed_forward_length", int),
        "norm_topk_prob": True,  # llama.cpp does so for all of them
    }


def _rope_scaling(text: GgufHeader, name: str) -> dict[str, Any]:
    """Return the rope scaling. Files state it only if it changes positions within the trained length.

    Dynamic scaling is therefore not in them.
    """
    kind = text.get(f"{name}.rope.scaling.type", str, "none")
    if kind == "none":
        return {}
    scaling = {"type": kind}
    theirs = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    for key, ours in theirs.items():
        if (value := text.get(f"{name}.rope.scaling.{key}", _NUMBER)) is not None:
            scaling[ours] = value
    return {"rope_scaling": scaling}


def _vision_config(vision: GgufHeader) -> dict[str, Any]:
    projector = vision.get("clip.projector_type", str, vision.get("clip.vision.projector_type", str))
    if vision.get("general.architecture", str) != "clip" or projector != "internvl":
        raise InvalidCheckpoint(
            f"{vision.path} is no vision tower of an InternVL: general.architecture is "
            f"{vision.get('general.architecture', str)!r}, expected 'clip', and clip.projector_type is {projector!r}, "
            "expected 'internvl'."
        )
    _check_pixels(vision)
    if not vision.get("clip.use_gelu", bool, True) or vision.get("clip.use_silu", bool, False):
        raise InvalidCheckpoint(f"{vision.path}: the tower's activation is not GELU, as every InternViT has it.")
    tensors = vision.by_name
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": vision.need("clip.vision.embedding_length", int),
        "num_hidden_layers": vision.need("clip.vision.block_count", int),
        "num_attention_heads": vision.need("clip.vision.attention.head_count", int),
        "intermediate_size": vision.need("clip.vision.feed_forward_length", int),
        "image_size": vision.need("clip.vision.image_size", int),
        "patch_size": vision.need("clip.vision.patch_size", int),
        "layer_norm_eps": vision.get("clip.vision.attention.layer_norm_epsilon", float, 1e-6),
        "norm_type": "layer_norm" if "v.blk.0.ln1.bias" in tensors else "rms_norm",
        "qkv_bias": "v.blk.0.attn_q.bias" in tensors,
        "qk_normalization": "v.blk.0.attn_q_norm.weight" in tensors,
        "hidden_act": "gelu",
    }


def _check_pixels(vision: GgufHeader) -> None:
    """Raise InvalidCheckpoint for other means and deviations of pixels than every InternVL was trained with.

    Files hold them in single precision.
    """
    for key, expected in (("image_mean", _MEAN), ("image_std", _STD)):
        found = vision.listed(f"clip.vision.{key}", _NUMBER, list(expected))
        alike = len(found) == 3 and all(abs(a - b) < 1e-4 for a, b in zip(found, expected, strict=True))
        if not alike:
            raise InvalidCheckpoint(f"{vision.path}: clip.vision.{key} is {found}, expected {list(expected)}.")


def _template(text: GgufHeader) -> str:
    """Return the name of the template. Only the names of file and model tell generations apart."""
    names = [text.path.name, *(text.get(f"general.{key}", str, "") for key in ("name", "basename"))]
    old = _OLD_TEMPLATES.get(family(text))
    return old if old is not None and any(map(_INTERNVL2.search, names)) else "internvl2_5"


def _outputs(container: GgufHeader, name: str) -> int:
    """Return the number of rows of a matrix. Raises InvalidCheckpoint where it is missing."""
    tensor = container.by_name.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise InvalidCheckpoint(f"{container.path} has no matrix {name}; is it a part of another model?")
    return tensor.shape[0]
