"""The demo checkpoint's configuration files."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

VISION = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "image_size": 112,
    "patch_size": 14,
    "num_channels": 3,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_normalization": False,
    "hidden_act": "gelu",
    "initializer_factor": 1.0,
    "torch_dtype": "bfloat16",
}
DECODER = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 352,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json for a tokenizer."""
    end_of_text, end_of_turn = (tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_turn}
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "force_image_size": 112,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "pad2square": False,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": VISION,
        "llm_config": {**DECODER, "vocab_size": tokenizer.get_vocab_size(), **ids},
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json: greedy answers that end with the turn."""
    end_of_text, end_of_turn = (tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))
    return {"do_sample": False, "eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text}


PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPFeatureExtractor",
    "feature_extractor_type": "CLIPFeatureExtractor",
    "crop_size": 112,
    "size": 112,
    "do_center_crop": True,
    "do_resize": True,
    "do_normalize": True,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
