"""Intern-S1's tokenizer from its published files: Qwen3's ids for text, and further vocabularies that are read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from tests.inputs.kinds import numbered, train
from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.twin.vocabularies import INTERNVL, TEXT_TOKENS, VOCABULARIES, tokenizer

QWEN3 = VOCABULARIES["qwen3"]
TAGS = ("<SMILES>", "</SMILES>", "<SELFIES>", "</SELFIES>")
SIZES = {"SMILES": 340, "IUPAC": 330, "FASTA": 320}
FIRST = TEXT_TOKENS + len(QWEN3.trailing)
PICTURES = FIRST + sum(SIZES.values()) + len(TAGS) + 2
"""Ids of `<img>` and the others: behind all three vocabularies, of which two have tags behind them."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = json.loads(tokenizer(QWEN3).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    added = numbered(TEXT_TOKENS, QWEN3.trailing) | numbered(PICTURES, INTERNVL)
    config = {"tokenizer_class": "InternS1Tokenizer", "auto_map": {"AutoTokenizer": ["tokenization_interns1.X", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))
    for name, size in SIZES.items():
        (tmp_path / f"tokenizer_{name}.model").write_bytes(train(vocab_size=size))
    return tmp_path


def test_text_has_the_tokens_of_qwen3(folder: Path) -> None:
    ours, qwen = Tokenizer.from_folder(folder), Tokenizer(tokenizer(QWEN3).to_str())
    for text in ("the hen in an inner town", "你好 <|im_end|>", "<SMILES>CCO</SMILES>", "MKTAYIAKQR", "\ue000a"):
        assert ours.encode_text(text) == qwen.encode_text(text)
    assert ours.encode_raw("<|im_start|>user\nthe<think>") == qwen.encode_raw("<|im_start|>user\nthe<think>")


def test_what_is_written_in_a_further_vocabulary_is_read_back(folder: Path) -> None:
    ours, start = Tokenizer.from_folder(folder), FIRST
    for name, size in SIZES.items():
        library = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"tokenizer_{name}.model"))
        pieces = [library.id_to_piece(number) for number in range(size)]
        shown = [ours.decode([start + number]) for number in range(size)]
        assert shown == [piece.replace("▁", " ") for piece in pieces]
        start += size + {"SMILES": 4, "IUPAC": 2, "FASTA": 0}[name]
    assert ours.decode([*ours.encode_text("the "), FIRST + 300]) == "the " + ours.decode([FIRST + 300])


def test_tags_and_pictures_have_their_ids(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    assert [ours.special_id(tag) for tag in TAGS] == [FIRST + SIZES["SMILES"] + number for number in range(4)]
    assert ours.special_id("<IMG_CONTEXT>") == PICTURES + INTERNVL.index("<IMG_CONTEXT>")
    assert ours.vocab_size == PICTURES + len(INTERNVL)


def test_a_vocabulary_that_is_missing_is_named(folder: Path) -> None:
    (folder / "tokenizer_FASTA.model").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer_FASTA\.model"):
        Tokenizer.from_folder(folder)
