"""Converted sentencepiece models against the sentencepiece library: the same pieces for any text."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
import sentencepiece

from tests.inputs.kinds import numbered, train, write
from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.inputs.tokenizer_files import PieceType, SentencePieceModel

IMAGE = ("<img>", "</img>", "<IMG_CONTEXT>")
SPELLED = "abht enr  世界你好图。1234<>/_0xA]▁[\n\t😀éﬁⅣ①öü~"
WORDS = ["\n\n", "\n", "ab", "▁▁", "你好", "0", "1"]


def loaded(folder: Path, model: bytes) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    decoder = numbered(processor.get_piece_size(), IMAGE)
    tokenizer = Tokenizer.from_folder(write(folder, model=model, tokenizer_config={"added_tokens_decoder": decoder}))
    return processor, tokenizer


def random_texts(count: int, alphabet: list[str] | str, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=draw.randrange(30))) for _ in range(count)]


@pytest.mark.parametrize("extra_spaces_go", [False, True])
@pytest.mark.parametrize("rules", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("dummy_prefix", [False, True])
@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_segments_are_those_of_the_library(tmp_path, kind, byte_fallback, dummy_prefix, rules, extra_spaces_go):
    model = train(
        kind,
        vocab_size=400,
        byte_fallback=byte_fallback,
        add_dummy_prefix=dummy_prefix,
        normalization_rule_name=rules,
        remove_extra_whitespaces=extra_spaces_go,
    )
    processor, tokenizer = loaded(tmp_path, model)
    for text in random_texts(600, SPELLED):
        assert tokenizer.encode_text(text) == processor.encode(text), text


@pytest.mark.parametrize("dummy_prefix", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_user_defined_words_are_never_cut(tmp_path, kind, dummy_prefix):
    model = train(kind, vocab_size=400, add_dummy_prefix=dummy_prefix, user_defined_symbols=WORDS)
    processor, tokenizer = loaded(tmp_path, model)
    for text in random_texts(1500, SPELLED):
        assert tokenizer.encode_text(text) == processor.encode(text), text
    assert processor.piece_to_id("\n\n") in tokenizer.encode_text("a\n\nb")


def shipped_model() -> Path | None:
    """The vocabulary of Mistral 7B, with Llama's settings: 32000 pieces, BPE, bytes."""
    package = importlib.util.find_spec("mistral_common")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    return path if path.exists() else None


def test_segments_of_a_real_vocabulary(tmp_path):
    path = shipped_model()
    if path is None:
        pytest.skip("needs the package mistral-common, which ships a sentencepiece model")
    processor, tokenizer = loaded(tmp_path, path.read_bytes())
    pieces = [processor.id_to_piece(number).replace("▁", " ") for number in range(3, 32000)]
    mixed = random_texts(1000, pieces) + random_texts(500, SPELLED) + random_texts(500, [*SPELLED, *pieces[256:4000]])
    for text in mixed:
        assert tokenizer.encode_text(text) == processor.encode(text), text
        assert tokenizer.decode(processor.encode(text)) == processor.decode(processor.encode(text))


def test_the_model_file_is_read_as_the_library_reads_it():
    data = train(control_symbols=["<|sep|>"], user_defined_symbols=["[x]"])
    processor, model = sentencepiece.SentencePieceProcessor(model_proto=data), SentencePieceModel.parse(data)
    assert len(model.pieces) == processor.get_piece_size()
    for number, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (processor.id_to_piece(number), processor.get_score(number))
        assert (piece.type is PieceType.CONTROL) == processor.is_control(number)
        assert (piece.type is PieceType.BYTE) == processor.is_byte(number)
    assert (model.unigram, model.byte_fallback, model.unknown_id) == (False, True, processor.unk_id())
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces, model.charsmap) == (True, False, b"")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"", "no pieces"),
        (b"AAAA 0\nAQ== 1\n", "not a sentencepiece model"),
        (train()[:-40], "ends too early"),
        (train()[:1], "not a sentencepiece model"),
        (train("word", vocab_size=40, byte_fallback=False), "model type is 3"),
        (train(treat_whitespace_as_suffix=True), "after words"),
        (bytes([1 << 3 | 2, 2, 3 << 3, 9]), "9 is not a valid PieceType"),
        (bytes([1 << 3, 5]), "a number stands where text is expected"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(tmp_path, model, reason):
    with pytest.raises(InvalidCheckpoint, match=rf"tokenizer\.model .*{reason}.*tokenizer\.json"):
        Tokenizer.from_folder(write(tmp_path, model=model))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_damaged_file_loads_or_is_refused(tmp_path, kind):
    model, draw = train(kind, vocab_size=400), random.Random(0)
    config = {"added_tokens_decoder": numbered(len(SentencePieceModel.parse(model).pieces), IMAGE)}
    refused = 0
    for _ in range(200):
        damaged = bytearray(model)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.choice([draw.randrange(40), draw.randrange(len(model))])] = draw.randrange(256)
        try:
            Tokenizer.from_folder(write(tmp_path, model=bytes(damaged), tokenizer_config=config))
        except InvalidCheckpoint:
            refused += 1
    assert 0 < refused < 200


def test_added_tokens_of_the_oldest_files(tmp_path):
    """Ids from added_tokens.json, flags and further tokens from special_tokens_map.json."""
    model = train()
    size = len(SentencePieceModel.parse(model).pieces)
    ids = {name: size + place for place, name in enumerate(("<ref>", *IMAGE, "<|end|>"))}
    end = {"content": "<|end|>", "rstrip": True, "lstrip": False, "normalized": False, "single_word": False}
    named = {"bos_token": "<s>", "eos_token": end, "additional_special_tokens": [*IMAGE, "<|new|>"]}
    tokenizer = Tokenizer.from_folder(write(tmp_path, model=model, added_tokens=ids, special_tokens_map=named))
    assert {name: tokenizer.find_id(name) for name in ids} == ids
    assert tokenizer.find_id("<|new|>") == size + len(ids)
    assert tokenizer.special_ids == {0, 1, 2, *range(size + 1, size + 6)}
    assert tokenizer.encode_raw("a<|end|> \nb") == tokenizer.encode_raw("a<|end|>b")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": []}, "added_tokens_decoder must be an object"),
        ({"added_tokens_decoder": {"x": "<img>"}}, "added_tokens_decoder must give each token a whole number as id"),
        ({"added_tokens_decoder": {"500": {"special": True}}}, "added_tokens_decoder: 500 must be a token"),
        ({"bos_token": 1}, "bos_token must be a token"),
    ],
)
def test_wrong_added_tokens_are_named(tmp_path, config, message):
    with pytest.raises(InvalidCheckpoint, match=rf"tokenizer_config\.json: {message}"):
        Tokenizer.from_folder(write(tmp_path, model=train(), tokenizer_config=config))


def test_ids_may_have_a_gap_in_bpe_and_not_in_unigram(tmp_path):
    for kind in ("bpe", "unigram"):
        model = train(kind, vocab_size=400)
        size = len(SentencePieceModel.parse(model).pieces)
        write(tmp_path, model=model, tokenizer_config={"added_tokens_decoder": numbered(size + 5, IMAGE)})
        if kind == "bpe":
            tokenizer = Tokenizer.from_folder(tmp_path)
            assert [tokenizer.find_id(name) for name in IMAGE] == [size + 5, size + 6, size + 7]
            assert tokenizer.vocab_size == size + 8
        else:
            with pytest.raises(InvalidCheckpoint, match=f"no token has id {size}"):
                Tokenizer.from_folder(tmp_path)


def test_tiktoken_files_ask_for_a_definition(tmp_path):
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(InvalidCheckpoint, match=r"qwen\.tiktoken .*put the model's tokenizer\.json beside it"):
        Tokenizer.from_folder(tmp_path)
