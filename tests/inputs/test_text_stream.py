"""Text token by token is the text of the whole, for any ids: cut characters, bytes of none, leading spaces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs.kinds import KINDS
from tilewise.inputs.tokenizer import PieceStream, Tokenizer


@pytest.fixture(scope="module", params=["qwen", "internlm2", "yi", "phi3", "unigram", "unigram_without_bytes"])
def tokenizer(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp(request.param)).tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.add, ids)) + (stream.end() if isinstance(stream, PieceStream) else "")


@settings(max_examples=100)
@given(data=st.data())
def test_any_ids(tokenizer, data):
    """Few ids of many, bytes among them more often than chance would have it."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(3, 258), max_size=12))
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    text = streamed(tokenizer, ids)
    assert whole.startswith(text)
    # A byte-level stream holds tokens back that end within a character; others give everything out.
    assert text == whole or whole.endswith("\ufffd")


@settings(max_examples=100)
@given(text=st.text(st.characters(codec="utf-8") | st.sampled_from(" 你😀\n")))
def test_any_text(tokenizer, text):
    ids = tokenizer.encode_text(text)
    assert streamed(tokenizer, ids).rstrip("\ufffd") == tokenizer.decode(ids, False).rstrip("\ufffd")


@pytest.mark.parametrize("name", ["yi", "phi3", "unigram"])
def test_a_text_starts_without_the_space_of_its_first_word(tmp_path, name):
    tokenizer = KINDS[name](tmp_path).tokenizer
    ids = [tokenizer.encode_text(" the")[0], *tokenizer.encode_text("你")[-3:]]
    assert not tokenizer.decode(ids).startswith("  ")
    assert streamed(tokenizer, tokenizer.encode_text("the panda")) == "the panda"
    assert streamed(tokenizer, tokenizer.encode_text("the panda") * 2) == "the panda the panda"


def test_a_complete_character_stays_when_a_stray_byte_follows(tmp_path):
    tokenizer = KINDS["yi"](tmp_path).tokenizer
    ids = [tokenizer.find_id(f"<0x{byte:02X}>") for byte in (*"你".encode(), 0xFF, 0xE4)]
    stream = tokenizer.stream()
    assert [stream.add(i) for i in ids] == ["", "", "你", "\ufffd", ""]
    assert tokenizer.decode(ids) == "你\ufffd\ufffd"
