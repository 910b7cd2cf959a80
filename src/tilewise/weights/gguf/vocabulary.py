"""The vocabulary of a text file, as the tokenizer files that it was made of.

A byte-level BPE becomes a tokenizer.json; sentencepiece becomes the tokenizer.model that it was, which
`inputs.convert` reads as it reads every other. Sources: ggml-org/llama.cpp `conversion/base.py` for what is written,
`src/llama-vocab.cpp` for the patterns that `tokenizer.ggml.pre` names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.gguf.container import GgufHeader

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Types of tokens, the same numbers as sentencepiece's."""
_TYPES = frozenset(range(_NORMAL, _BYTE + 1))
_ADDED = (_CONTROL, _USER_DEFINED)
_KEY = "tokenizer.ggml."
_REMEDY = "put the model's tokenizer.json beside the file, or name its tokenizer with --tokenizer"
_BEGIN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Cutting:
    """A way of cutting a text into words before bytes are merged; without a pattern, that of GPT-2."""

    pattern: str | None
    composed: bool = False
    """True if characters are composed first (NFC)."""
    whole_words: bool = False
    """True if a word that is a token stays whole."""


_CUTTINGS = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Cutting(_BEGIN + _END, composed=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _Cutting(_BEGIN + "{1,3}" + _END, whole_words=True)),
    "gpt-2": _Cutting(None),
}


def tokenizer_files(text: GgufHeader) -> dict[str, bytes]:
    """Return the tokenizer's files by name. Raises InvalidCheckpoint for a vocabulary of another kind."""
    vocabulary = _Vocabulary.of(text)
    files = {"tokenizer_config.json": _json(vocabulary.config())}
    if vocabulary.kind == "llama":
        files["tokenizer.model"] = vocabulary.sentencepiece()
    elif vocabulary.kind == "gpt2":
        files["tokenizer.json"] = _json(vocabulary.byte_level())
    else:
        raise InvalidCheckpoint(
            f"{text.path}: {_KEY}model is {vocabulary.kind!r}, read are 'gpt2' and 'llama': {_REMEDY}."
        )
    if template := text.get("tokenizer.chat_template", str):
        files["chat_template.jinja"] = template.encode()
    return files


@dataclass(frozen=True)
class _Vocabulary:
    text: GgufHeader
    kind: str
    tokens: list[str]
    types: list[int]

    @classmethod
    def of(cls, text: GgufHeader) -> _Vocabulary:
        tokens = text.listed(f"{_KEY}tokens", str)
        types = text.listed(f"{_KEY}token_type", int, [_NORMAL] * len(tokens))
        if len(types) != len(tokens):
            raise InvalidCheckpoint(f"{text.path}: {len(tokens)} tokens have {len(types)} types.")
        if unknown := sorted(set(types) - _TYPES):
            raise InvalidCheckpoint(f"{text.path}: {_KEY}token_type has {unknown[0]}, known are 1 to {_BYTE}.")
        return cls(text, text.need(f"{_KEY}model", str), tokens, types)

    def config(self) -> dict[str, Any]:
        """Return tokenizer_config.json."""
        pieces = self.kind == "llama"
        named = {f"{role}_token": self._role(key) for role, key in _ROLES.items()}
        start = self.text.get(f"{_KEY}add_bos_token", bool, pieces)
        return {
            "tokenizer_class": "LlamaTokenizer" if pieces else "PreTrainedTokenizerFast",
            "add_bos_token": bool(start and named["bos_token"] is not None),
            **named,
            "added_tokens_decoder": {str(token["id"]): token for token in self._added()},
        }

    def _role(self, key: str) -> str | None:
        number = self.text.get(f"{_KEY}{key}_token_id", int)
        return self.tokens[number] if number is not None and 0 <= number < len(self.tokens) else None

    def _added(self) -> Iterator[dict[str, Any]]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in _ADDED:
                yield {"id": number, "content": token, **flags, "special": kind == _CONTROL}

    def byte_level(self) -> dict[str, Any]:
        """Return tokenizer.json. Added tokens at the end stay out of the model's own vocabulary, as they did before."""
        cutting = self._cutting()
        merges = self.text.listed(f"{_KEY}merges", str)
        vocab = {token: number for number, token in enumerate(self.tokens[: self._own()])}
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        model = {
            "type": "BPE",
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in merges],
            "ignore_merges": cutting.whole_words,
        }
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(self._added()),
            "normalizer": {"type": "NFC"} if cutting.composed else None,
            "pre_tokenizer": bytes_ if cutting.pattern is None else _cut_by(cutting.pattern, bytes_),
            "post_processor": None,
            "decoder": bytes_,
            "model": model,
        }

    def _own(self) -> int:
        """Return the number of the model's own tokens; `tokenizers` itself numbers those that are added behind them."""
        # Unused tokens behind the last added one only fill the vocabulary up, and are left out.
        last_added = max((number for number, kind in enumerate(self.types) if kind in _ADDED), default=-1)
        others = (number for number, kind in enumerate(self.types) if kind not in _ADDED)
        return max((n for n in others if n < last_added or self.types[n] != _UNUSED), default=-1) + 1

    def _cutting(self) -> _Cutting:
        name = self.text.get(f"{_KEY}pre", str, "default")
        if name not in _CUTTINGS:
            raise InvalidCheckpoint(
                f"{self.text.path}: {_KEY}pre is {name!r}, read are {', '.join(_CUTTINGS)}: {_REMEDY}."
            )
        return _CUTTINGS[name]

    def sentencepiece(self) -> bytes:
        """Return tokenizer.model with the fields of sentencepiece_model.proto that `inputs.sentencepiece` reads."""
        scores = self.text.listed(f"{_KEY}scores", (int, float), [0.0] * len(self.tokens))
        if not all(map(_is_single, scores)):
            raise InvalidCheckpoint(f"{self.text.path}: {_KEY}scores has a number beyond single precision.")
        if len(scores) != len(self.tokens):
            raise InvalidCheckpoint(f"{self.text.path}: {len(self.tokens)} tokens have {len(scores)} scores.")
        pieces = (
            # piece, score (field 2, a float) and type
            _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
            for token, score, kind in zip(self.tokens, scores, self.types, strict=True)
        )
        trainer = _number(3, 2) + _number(35, int(_BYTE in self.types))  # model_type = BPE; byte_fallback
        space = self.text.get(f"{_KEY}add_space_prefix", bool, True)
        extra = self.text.get(f"{_KEY}remove_extra_whitespaces", bool, False)
        # add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
        rules = _number(3, int(space)) + _number(4, int(extra)) + _number(5, 1)
        return b"".join(_field(1, piece) for piece in pieces) + _field(2, trainer) + _field(3, rules)


_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _cut_by(pattern: str, bytes_: dict[str, Any]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**bytes_, "use_regex": False}]}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _is_single(number: float) -> bool:
    try:
        struct.pack("<f", number)
    except OverflowError:
        return False
    return True


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _number(field: int, value: int) -> bytes:
    """Encode a field of a protobuf message that holds a whole number."""
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes) -> bytes:
    """Encode a field of a protobuf message that holds bytes, a text or another message."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value
