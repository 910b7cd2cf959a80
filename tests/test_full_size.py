"""A model of InternVL3-1B's size with random weights: it builds, and a picture of 13 tiles goes through it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.tiny import SPECS, full_size, original_config, write_original
from tilewise import LLM, SamplingParams
from tilewise.weights.family import MEMBERS

pytestmark = pytest.mark.slow


def test_a_model_of_full_size_answers_about_a_picture_of_thirteen_tiles(tmp_path):
    write_original(tmp_path, SPECS["qwen2-300m"])  # for its tokenizer; the weights are replaced by noise
    config = original_config(full_size(MEMBERS["InternVL3-1B"]), "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    llm = LLM(str(tmp_path), load_format="dummy", max_model_len=4096, max_num_seqs=2)
    content = [
        {"type": "image_pil", "image_pil": Image.new("RGB", (800, 600), "teal")},
        {"type": "text", "text": "the"},
    ]
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    output = llm.chat([{"role": "user", "content": content}], greedy)[0]
    assert (output.usage.tiles, output.usage.image_tokens, output.usage.completion_tokens) == (13, 3328, 4)
