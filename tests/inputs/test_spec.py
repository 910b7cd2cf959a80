"""What a checkpoint says of its inputs: end tokens from everywhere they are named, and the start token, once."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken

from tests.tiny import SPECIAL_IDS, SPECS, tokenizer, write_hf, write_original
from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.pieces import Message
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams
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


@pytest.mark.parametrize(("write", "order"), [(write_original, "media first"), (write_hf, "as looped")])
def test_parts_are_ordered_as_the_format_has_them(tmp_path, write, order):
    write(tmp_path, SPECS["qwen2-300m"])
    assert InputSpec.of(CheckpointFolder.open(tmp_path), Tokenizer(tokenizer().to_str())).template.order == order


@pytest.mark.parametrize("thinks", [False, True])
def test_thinking_was_trained_where_the_vocabulary_has_a_token_for_it(tmp_path, thinks):
    write_original(tmp_path, SPECS["qwen2-300m"])
    words = tokenizer()
    if thinks:
        words.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    spec = InputSpec.of(CheckpointFolder.open(tmp_path), Tokenizer(words.to_str()))
    assert (spec.template.thinking is not None) is thinks


def test_the_start_token_stands_once(spec_of):
    _, prepare = spec_of(add_bos_token=True, bos_token="<|endoftext|>")
    chat = prepare.chat([Message("user", "the hen")], [], GREEDY).prompt_ids
    assert chat.count(START) == 1
    assert chat[0] == START
    for prompt in ("the hen", "<|endoftext|>the hen"):
        ids = prepare.prompt(prompt, [], GREEDY).prompt_ids
        assert ids.count(START) == 1
        assert ids[0] == START


@pytest.mark.parametrize(
    ("template", "eos", "separator"),
    [
        ("Hermes-2", [2, 6, 7], "<|im_end|>"),  # Yi
        ("internlm2-chat", [92542, 92543], "<|im_end|>"),
        ("phi3-chat", [], "<|end|>"),
        ("internvl3_5_gpt_oss", 7, "<|return|>"),
    ],
)
def test_end_tokens_of_each_family(tmp_path, template, eos, separator):
    """The separator of the template and what generation_config lists; llm_config's token is not among them."""
    write_original(tmp_path, SPECS["qwen2-300m"])
    config = json.loads((tmp_path / "config.json").read_text())
    config["llm_config"]["eos_token_id"] = 5
    (tmp_path / "config.json").write_text(json.dumps({**config, "template": template}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    fast = tokenizer()
    fast.add_special_tokens(["<|end|>", "<|return|>", "<|start|>", "<|channel|>", "<|message|>"])
    listed = set(eos) if isinstance(eos, list) else {eos}
    found = InputSpec.of(CheckpointFolder.open(tmp_path), Tokenizer(fast.to_str())).end_ids
    assert found == {fast.token_to_id(separator), fast.token_to_id("<|endoftext|>"), *listed}


@pytest.mark.parametrize("eos", ["<|im_end|>", True, -1, 2.5, [2, "7"], [None], {"id": 2}])
def test_an_end_token_that_is_no_id_is_named(spec_of, tmp_path, eos):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(InvalidCheckpoint, match=r"generation_config\.json: eos_token_id must be a token id"):
        spec_of()


@pytest.mark.parametrize("name", [5, {"id": 5}, ["<s>"]])
def test_a_start_token_that_is_no_name_is_refused(spec_of, name):
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer_config\.json: bos_token must be a token"):
        spec_of(add_bos_token=True, bos_token=name)


def test_a_start_token_that_only_the_map_names(spec_of, tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<|endoftext|>"}}))
    assert spec_of(tokenizer_class="LlamaTokenizer")[0].start_id == START


def test_a_start_token_that_the_tokenizer_lacks_is_refused(spec_of):
    with pytest.raises(InvalidCheckpoint, match="no token <s>"):
        spec_of(tokenizer_class="LlamaTokenizer")


@pytest.mark.parametrize("known", [(), ("<tool_response>",)])
def test_words_of_the_template_are_tokens_where_the_vocabulary_has_them(tmp_path, known):
    write_original(tmp_path, SPECS["qwen2-300m"])
    fast = tokenizer()
    fast.add_tokens([AddedToken(word, normalized=False, special=False) for word in known])
    found = Tokenizer(fast.to_str())
    spec = InputSpec.of(CheckpointFolder.open(tmp_path), found)
    preparer = Preparer(spec, found, max_model_len=10_000)
    request = preparer.chat([Message("tool", "a wall")], [], GREEDY, TemplateOptions(tools=['{"a": 1}']))
    assert request.prompt_ids == tuple(found.encode_raw(request.prompt))
    assert found.find_id("<tool_call>") in request.prompt_ids
    assert (found.find_id("<tool_response>") in request.prompt_ids) is bool(known)


@pytest.mark.parametrize("template", [[], {}, 7, True])
def test_a_template_that_is_no_name_is_refused(tmp_path, template):
    write_original(tmp_path, SPECS["qwen2-300m"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "template": template}))
    with pytest.raises(InvalidCheckpoint, match="template must be the name of one, found"):
        InputSpec.of(CheckpointFolder.open(tmp_path), Tokenizer(tokenizer().to_str()))
