"""Tokenizer files of a tiny model: byte-level BPE with the special tokens of its kind, as a fast tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tilewise.tools.twin.vocabularies import MERGES, Vocabulary


def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Leading control tokens, 256 bytes and a few merges, then the other special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*vocabulary.leading, *alphabet, *("".join(pair) for pair in MERGES)]
    vocab = {token: number for number, token in enumerate(tokens)}
    found = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    for token in vocabulary.specials:
        special = token not in vocabulary.plain
        added = AddedToken(token, special=special, normalized=False)
        (found.add_special_tokens if special else found.add_tokens)([added])
    return found


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "tokenizer_class": vocabulary.tokenizer_class,
        "bos_token": vocabulary.start,
        "eos_token": vocabulary.eos,
        "pad_token": vocabulary.pad,
        "add_bos_token": vocabulary.starts,
    }
