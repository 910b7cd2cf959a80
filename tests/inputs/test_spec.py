"""What a checkpoint says of its inputs: end tokens from everywhere they are named, and the start token, once."""

from __future__ import annotations

import json

import pytest

from tests.tiny import SPECIAL_IDS, SPECS, tokenizer, write_original
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import Message
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.types import SamplingParams
from tilewise.weights.folder import CheckpointFolder

END, START = SPECIAL_IDS["<|im_end|>"], SPECIAL_IDS["<|endoftext|>"]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def spec_of(tmp_path):
    """Names and values for tokenizer_config.json -> the spec and a preparer."""
    write_original(tmp_path, SPECS["qwen2-300m"])

    def make(**options):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
        found = Tokenizer(tokenizer().to_str())
        spec = InputSpec.of(CheckpointFolder.open(tmp_path), found)
        return spec, Preparer(spec, found, max_model_len=512)

    return make


def test_end_tokens_come_from_template_generation_config_and_qwen(spec_of):
    assert spec_of()[0].end_ids == {END, START}


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, None),
        ({"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<|endoftext|>"}, None),
        ({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>"}, START),
        ({"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<|endoftext|>"}, START),
        ({"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<|endoftext|>"}}, START),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "bos_token": "<|endoftext|>"}, None),
        ({"add_bos_token": True, "bos_token": None}, None),
    ],
)
def test_the_start_token_is_the_tokenizers(spec_of, options, start):
    assert spec_of(**options)[0].start_id == start


def test_the_start_token_stands_once(spec_of):
    _, prepare = spec_of(add_bos_token=True, bos_token="<|endoftext|>")
    chat = prepare.chat([Message("user", "the hen")], [], GREEDY).prompt_ids
    assert chat.count(START) == 1
    assert chat[0] == START
    for prompt in ("the hen", "<|endoftext|>the hen"):
        ids = prepare.prompt(prompt, [], GREEDY).prompt_ids
        assert ids.count(START) == 1
        assert ids[0] == START
