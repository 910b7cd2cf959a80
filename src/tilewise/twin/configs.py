"""config.json and its companions of a tiny model, in both formats, with the keys and spellings of published files."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.twin.specs import TinySpec
from tilewise.weights.family import Backbone

Spelling = Literal["new", "old"]
"""The spelling of rope and of tensors' names in the -hf format: new since transformers 5, old before."""
Dtype = Literal["bfloat16", "float16", "float32"]

ARCHITECTURES: dict[Backbone, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}


def hf_config(spec: TinySpec, spelling: Spelling = "new", dtype: Dtype = "float32") -> dict[str, Any]:
    vision = {
        **_vision_common(spec),
        "model_type": "internvl_vision",
        "image_size": [spec.tile_size, spec.tile_size],
        "patch_size": [spec.patch, spec.patch],
        "attention_bias": spec.vision == "300m",
        "use_qk_norm": spec.vision == "6b",
        "use_mean_pooling": True,
        "layer_scale_init_value": 0.1,
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": spec.image_id,
        "image_seq_length": spec.tokens_per_tile,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": spec.tied,
        "torch_dtype": dtype,
        "text_config": _text_config(spec, spelling, spec.hf_decoder),
        "vision_config": vision,
    }


def original_config(spec: TinySpec, dtype: Dtype = "float32") -> dict[str, Any]:
    vision = {
        **_vision_common(spec),
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": spec.tile_size,
        "patch_size": spec.patch,
        "qkv_bias": spec.vision == "300m",
        "qk_normalization": spec.vision == "6b",
        "initializer_factor": 0.1,
    }
    flash = {"flash_mode": True, "flash_relative_threshold": 0.1, "flash_absolute_threshold": 0.5}
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": spec.tile_size,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": spec.max_tiles,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": spec.template,
        "use_thumbnail": True,
        "torch_dtype": dtype,
        **(flash if spec.flash else {}),
        "llm_config": _text_config(spec, "old", spec.decoder),
        "vision_config": vision,
    }


def generation_config(spec: TinySpec) -> dict[str, Any]:
    ids = spec.vocabulary.ids
    return {"eos_token_id": [ids[token] for token in spec.vocabulary.ends], "pad_token_id": ids[spec.vocabulary.pad]}


def processor_config(spec: TinySpec) -> dict[str, Any]:
    """Return preprocessor_config.json of the -hf format."""
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": spec.tile_size, "width": spec.tile_size},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": spec.max_tiles,
        "resample": 3,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def _vision_common(spec: TinySpec) -> dict[str, Any]:
    return {
        "hidden_size": spec.vision_hidden,
        "num_hidden_layers": spec.vision_layers,
        "num_attention_heads": spec.vision_heads,
        "intermediate_size": spec.vision_intermediate,
        "norm_type": "layer_norm" if spec.vision == "300m" else "rms_norm",
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "num_channels": 3,
    }


def _text_config(spec: TinySpec, spelling: Spelling, decoder: Backbone) -> dict[str, Any]:
    vocabulary = spec.vocabulary
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[decoder]],
        "model_type": decoder,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position,
        "rms_norm_eps": spec.eps,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied,
        "bos_token_id": vocabulary.ids[vocabulary.start or vocabulary.pad],
        "eos_token_id": vocabulary.ids[vocabulary.eos],
        "pad_token_id": vocabulary.ids[vocabulary.pad],
        **_own_keys(spec, decoder),
    }
    if spec.head_dim is not None:
        config["head_dim"] = spec.head_dim
    return config | (_old_rope(spec) if spelling == "old" else _new_rope(spec))


def _own_keys(spec: TinySpec, decoder: Backbone) -> dict[str, Any]:
    """Return the keys that the configs of one decoder have and those of others do not."""
    no_window = {"use_sliding_window": False, "sliding_window": None}
    match decoder:
        case "qwen2" | "qwen3":
            return no_window
        case "llama":
            return {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
        case "internlm2":
            return {"bias": False}
        case "internlm3":
            return {"bias": False, "qkv_bias": False}
        case "phi3":  # its window is longer than any context
            length = spec.rope.original_length or spec.max_position
            return {"original_max_position_embeddings": length, "sliding_window": 262144}
        case "qwen3_moe":
            return {
                **no_window,
                "num_experts": spec.experts,
                "num_experts_per_tok": spec.experts_per_token,
                "moe_intermediate_size": spec.expert_intermediate,
                "norm_topk_prob": spec.renormalise,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        case "gpt_oss":
            kinds = ("sliding_attention", "full_attention")
            return {
                "num_local_experts": spec.experts,
                "num_experts_per_tok": spec.experts_per_token,
                "intermediate_size": spec.expert_intermediate,
                "attention_bias": True,
                "swiglu_limit": 7.0,
                "sliding_window": spec.window,
                "layer_types": [kinds[layer % 2] for layer in range(spec.layers)],
            }


def _new_rope(spec: TinySpec) -> dict[str, Any]:
    length = spec.rope.original_length
    original = {"original_max_position_embeddings": length} if length else {}
    return {
        "rope_parameters": {
            "rope_type": spec.rope.kind,
            **_rope_numbers(spec),
            **original,
            "rope_theta": spec.rope.theta,
        }
    }


def _old_rope(spec: TinySpec) -> dict[str, Any]:
    rope, scaling = spec.rope, _rope_numbers(spec)
    match rope.kind:
        case "default":
            return {"rope_theta": rope.theta, "rope_scaling": None}
        case "yarn":
            named = {"rope_type": "yarn", "original_max_position_embeddings": rope.original_length}
        case "longrope":
            named = {"type": "su"}  # its first name
        case "dynamic":
            named = {"type": "dynamic"}
    return {"rope_theta": rope.theta, "rope_scaling": {**named, **scaling}}


def _rope_numbers(spec: TinySpec) -> dict[str, Any]:
    match spec.rope.kind:
        case "default":
            return {}
        case "dynamic":
            return {"factor": spec.rope.factor}
        case "yarn":
            return {"factor": spec.rope.factor, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
        case "longrope":
            pairs = range((spec.head_dim or spec.hidden // spec.heads) // 2)
            return {
                "short_factor": [1 + 0.125 * pair for pair in pairs],
                "long_factor": [1.25 + 1.5 * pair for pair in pairs],
            }
