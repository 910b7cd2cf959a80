"""Loading a tokenizer: from tokenizer.json, from the older files, and from broken ones."""

from __future__ import annotations

import json

import pytest

from tests.tiny import SPECIAL_IDS, tokenizer
from tilewise.errors import InvalidCheckpoint, InvalidRequest
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.twin.vocabularies import VOCABULARIES

PLAIN = VOCABULARIES["qwen2.5"].plain
TEXTS = ["the hen in an inner town", "你好 <|im_end|>", "<img><ref>x</ref>", "  a\n\n b"]


def older_files(folder):
    """What checkpoints carry that were published without a tokenizer.json."""
    model = json.loads(tokenizer().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    added = {
        str(number): {"content": token, "special": token not in PLAIN, "normalized": False, "lstrip": False,
                      "rstrip": False, "single_word": False}
        for token, number in SPECIAL_IDS.items()
    }  # fmt: skip
    names = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "added_tokens_decoder": added}))


def test_the_older_files_give_the_same_ids(tmp_path):
    older_files(tmp_path)
    ours, converted = Tokenizer(tokenizer().to_str()), Tokenizer.from_folder(tmp_path)
    assert converted.special_ids == ours.special_ids == {SPECIAL_IDS[token] for token in SPECIAL_IDS.keys() - PLAIN}
    assert converted.image_context_id == SPECIAL_IDS["<IMG_CONTEXT>"]
    for text in TEXTS:
        assert converted.encode_text(text) == ours.encode_text(text)
        assert converted.encode_raw(text) == ours.encode_raw(text)


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    with pytest.raises(InvalidCheckpoint, match=r"neither tokenizer\.json, vocab\.json nor tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json",
        "{}",
        '{"added_tokens": 5}',
        '{"added_tokens": [',
        '{"added_tokens": [1]}',
        '{"added_tokens": []}',
        "\xff",
    ],
)
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json .*fetch the file again"):
        Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_without_the_image_token_is_refused():
    bare = json.loads(tokenizer().to_str())
    bare["added_tokens"] = [token for token in bare["added_tokens"] if token["content"] != "<IMG_CONTEXT>"]
    renumbered = [{**token, "id": 264 + number} for number, token in enumerate(bare["added_tokens"])]
    with pytest.raises(InvalidCheckpoint, match="no token <IMG_CONTEXT>"):
        Tokenizer(json.dumps({**bare, "added_tokens": renumbered}))


def test_patterns_that_give_up_are_an_error_of_the_request():
    """A checkpoint's own pattern may go back without end; the library panics then, which is no Exception."""
    definition = json.loads(tokenizer().to_str())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, definition["pre_tokenizer"]]}
    harmful = Tokenizer(json.dumps(definition))
    assert harmful.encode_text("aab")
    with pytest.raises(InvalidRequest, match=r"^The tokenizer gives up on a text of 40 characters: "):
        harmful.encode_text("a" * 40)


@pytest.mark.parametrize("wrong", [{"content": []}, {"content": None}, {"id": []}, {"id": "7"}, {"special": 1}])
def test_an_added_token_of_another_type_is_refused(wrong):
    definition = json.loads(tokenizer().to_str())
    definition["added_tokens"][0] |= wrong
    with pytest.raises(InvalidCheckpoint, match="an added token lacks id, content or special, or has one of another"):
        Tokenizer(json.dumps(definition))
