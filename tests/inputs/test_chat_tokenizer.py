"""The tokenizer under the names of transformers."""

import json

import numpy as np
import pytest
from PIL import Image

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.inputs.chat_tokenizer import ChatTokenizer
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import TEMPLATES
from tilewise.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def chat_tokenizer(tokenizer):
    spec = InputSpec(TEMPLATES["internvl2_5"], Tiling(), 4, frozenset())
    return ChatTokenizer(tokenizer, spec)


def test_texts_to_ids_and_back(chat_tokenizer, tokenizer):
    text = "Hi<|im_end|>"
    ids = chat_tokenizer.encode(text)
    assert ids[-1] == tokenizer.special_id("<|im_end|>") == chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat_tokenizer.decode(ids) == chat_tokenizer.decode(np.array(ids)) == text
    assert chat_tokenizer.decode(ids, skip_special_tokens=True) == "Hi"
    assert chat_tokenizer.batch_decode([ids, ids[-1:]]) == [text, "<|im_end|>"]
    assert chat_tokenizer(text).input_ids == chat_tokenizer([text])["input_ids"][0] == ids
    assert chat_tokenizer([text, "Hi"]).attention_mask == [[1] * len(ids), [1] * (len(ids) - 1)]
    assert chat_tokenizer.encode(text, truncation=True, max_length=1) == ids[:1]
    assert chat_tokenizer.convert_ids_to_tokens(ids[-1]) == chat_tokenizer.tokenize(text)[-1] == "<|im_end|>"
    assert chat_tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|no such token|>"]) == [ids[-1], None]


def test_facts(chat_tokenizer, tokenizer):
    assert (chat_tokenizer.eos_token, chat_tokenizer.bos_token) == ("<|im_end|>", None)
    assert chat_tokenizer.eos_token_id in chat_tokenizer.all_special_ids
    assert len(chat_tokenizer) == chat_tokenizer.vocab_size == tokenizer.vocab_size
    assert chat_tokenizer.get_vocab()["<|im_end|>"] == chat_tokenizer.eos_token_id


def test_names_of_transformers(tokenizer, tmp_path):
    spec = InputSpec(TEMPLATES["internvl2_5"], Tiling(), 4, frozenset())
    settings = {
        "model_max_length": 12288,
        "unk_token": {"content": "<unk>"},
        "additional_special_tokens": ["<img>", {"content": "</img>"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = ChatTokenizer(tokenizer, spec, tmp_path)
    assert (found.model_max_length, found.unk_token, found.name_or_path) == (12288, "<unk>", str(tmp_path))
    assert found.additional_special_tokens == ["<img>", "</img>"]
    assert found.special_tokens_map["eos_token"] == "<|im_end|>"
    assert found.get_added_vocab() == found.added_tokens_encoder
    assert found.added_tokens_encoder["<|im_end|>"] == found.eos_token_id
    assert found.max_token_id == len(found) - 1
    assert found.convert_tokens_to_string(found.tokenize("Hi there<|im_end|>")) == "Hi there<|im_end|>"
    assert found.encode_plus("Hi") == found("Hi")
    assert found.batch_encode_plus(["Hi", "a"]) == found(["Hi", "a"])
    assert ChatTokenizer(tokenizer, spec).model_max_length == int(1e30)


def test_a_conversation_in_the_models_template(chat_tokenizer, make_preparer):
    """Text and ids are those of a request with the same messages, pictures as one place each."""
    preparer, pictures = make_preparer(), [Image.new("RGB", (28, 28))]
    conversation = [{"role": "user", "content": "<image>\nWhat?"}]
    text = chat_tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n")
    ids = chat_tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
    expected = preparer.prompt(text, pictures, GREEDY)
    assert preparer.prompt(ids, pictures, GREEDY).prompt_ids == expected.prompt_ids
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert chat_tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True) == text
    assert (
        chat_tokenizer.apply_chat_template([parts, parts], tokenize=False)
        == [text.removesuffix("<|im_start|>assistant\n")] * 2
    )
    short = [
        {"role": "user", "content": [{"image_url": "https://example.com/a.png"}, {"type": "text", "text": "What?"}]}
    ]
    assert chat_tokenizer.apply_chat_template(short, tokenize=False, add_generation_prompt=True) == text
    found = chat_tokenizer.apply_chat_template(parts, return_dict=True)
    assert found["input_ids"] == chat_tokenizer.apply_chat_template(parts)


def test_a_users_words_never_become_control_tokens(chat_tokenizer):
    ids = chat_tokenizer.apply_chat_template([{"role": "user", "content": "<|im_end|><img>"}])
    assert ids.count(chat_tokenizer.eos_token_id) == 2  # behind the system text and behind the user's


def test_tools_and_thinking(chat_tokenizer):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    render = [{"role": "user", "content": "a"}]
    text = chat_tokenizer.apply_chat_template(render, tools=[tool], tokenize=False, enable_thinking=True)
    assert '{"name": "look"' in text
    assert "<think>" in text
    assert text == chat_tokenizer.apply_chat_template(
        render, tools=[tool["function"]], tokenize=False, enable_thinking=True
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"chat_template": "{{ messages }}"}, InvalidRequest, "follow the template that the model was trained with"),
        ({"return_tensors": "pt"}, InvalidRequest, "return_tensors='pt' is not possible. Lists are given out"),
        ({"enable_thinkin": True}, UnknownOption, r"Did you mean enable_thinking\?"),
        ({"enable_thinking": "yes"}, InvalidRequest, "enable_thinking must be True or False, got 'yes'"),
        ({"tools": [len]}, InvalidRequest, r"tools\[0\] must be"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            InvalidRequest,
            "Cannot set both `continue_final_message` and `add_generation_prompt`",
        ),
    ],
)
def test_what_is_refused(chat_tokenizer, options, error, words):
    with pytest.raises(error, match=words):
        chat_tokenizer.apply_chat_template([{"role": "user", "content": "a"}], **options)


def test_ids_that_are_none(chat_tokenizer):
    with pytest.raises(InvalidRequest, match="token id 999999 is out of vocabulary"):
        chat_tokenizer.decode([999999])
