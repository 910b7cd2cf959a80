"""A model of InternVL3-1B's size with random weights: it builds, and a picture of 13 tiles goes through it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.tiny import SPECS, original_config, write_original
from tilewise import LLM, SamplingParams

pytestmark = pytest.mark.slow

TEXT = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151674,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
VISION = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_normalization": False,
}


def test_a_model_of_full_size_answers_about_a_picture_of_thirteen_tiles(tmp_path):
    write_original(tmp_path, SPECS["qwen2-300m"])  # for its tokenizer; the weights are replaced by noise
    config = original_config(SPECS["qwen2-300m"])
    config |= {"llm_config": TEXT, "vision_config": VISION, "force_image_size": 448, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    llm = LLM(str(tmp_path), load_format="dummy", max_model_len=4096, max_num_seqs=2)
    content = [
        {"type": "image_pil", "image_pil": Image.new("RGB", (800, 600), "teal")},
        {"type": "text", "text": "the"},
    ]
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    output = llm.chat([{"role": "user", "content": content}], greedy)[0]
    assert (output.usage.tiles, output.usage.image_tokens, output.usage.completion_tokens) == (13, 3328, 4)
