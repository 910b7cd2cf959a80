"""The files of checkpoints without a tokenizer.json: added tokens, and a sentencepiece model's content.

The JSON files overlap. In order of weight: `added_tokens_decoder` of tokenizer_config.json (id to token), or where
that is missing added_tokens.json (text to id); then the names in tokenizer_config.json and special_tokens_map.json,
which make a token special and say nothing of ids.

A sentencepiece model is one protobuf message, `ModelProto` of sentencepiece_model.proto, read here without the library:
the pieces with scores and types, the kind of model, and the rules by which text is normalised. What to make of it is
decided in `convert.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.folder import optional_json

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens")
SPACE = "▁"
"""The character by which pieces write a space (U+2581)."""
_UNIGRAM, _BPE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_WIDTHS = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
_MOST_DIGITS = 8  # of an id: lists are made as long as the largest
Fields = dict[int, int | bytes]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that stands for itself in a prompt. `lstrip`, `rstrip`: it swallows the white space before, behind it."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False

    @classmethod
    def of(cls, value: Any, where: str, special: bool) -> AddedToken:
        """Read a name, or an object with flags; `special` is for one that does not say. Raises InvalidCheckpoint."""
        fields = {"content": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
            raise InvalidCheckpoint(
                f"{where} must be a token (a name, or an object with content), found {value!r:.80}."
            )
        flags = {flag: bool(fields.get(flag, False)) for flag in ("lstrip", "rstrip")}
        return cls(fields["content"], bool(fields.get("special", special)), **flags)

    def as_json(self, number: int) -> dict[str, Any]:
        """Return the token as the `tokenizers` library writes it; it is found before text is normalised."""
        flags = {"lstrip": self.lstrip, "rstrip": self.rstrip, "special": self.special}
        return {"id": number, "content": self.content, "single_word": False, "normalized": False, **flags}


def token_text(token: Any) -> str | None:
    """Return the text of a token that a JSON file names, or has as an object with content; None for anything else."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def added_tokens(folder: Path, pieces: Sequence[str], inner: dict[int, AddedToken]) -> dict[int, AddedToken]:
    """Return all added tokens by id. `pieces` are the model's own, `inner` those of them that are special tokens."""
    named = {token.content: token for token in _named(folder)}
    listed = dict(_listed(folder, named))
    taken = {token.content for token in listed.values()}
    found = {number: token for number, token in inner.items() if token.content not in taken} | listed
    ids = {text: number for number, text in enumerate(pieces)} | {token.content: i for i, token in found.items()}
    next_id = max(len(pieces), *(number + 1 for number in found)) if found else len(pieces)
    for name, token in named.items():  # one without an id takes the next free one
        number = ids.get(name, next_id)
        next_id = max(next_id, number + 1)
        found[number] = replace(listed.get(number, token), special=True)
    return found


def _named(folder: Path) -> Iterator[AddedToken]:
    """Yield the tokens to which the files give a role, each of them special."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = optional_json(folder / name)
        for key in _NAMED:
            value = values.get(key)
            for item in value if isinstance(value, list) else [] if value is None else [value]:
                yield replace(AddedToken.of(item, f"{folder / name}: {key}", special=True), special=True)


def _listed(folder: Path, named: dict[str, AddedToken]) -> Iterator[tuple[int, AddedToken]]:
    path = folder / "tokenizer_config.json"
    decoder = optional_json(path).get("added_tokens_decoder")
    if decoder is not None:
        where = f"{path}: added_tokens_decoder"
        for number, value in _items(decoder, where):
            yield _id(number, where), AddedToken.of(value, f"{where}: {number}", special=False)
        return
    path = folder / "added_tokens.json"
    for name, number in optional_json(path).items():
        yield _id(number, f"{path}: {name}"), named.get(name, AddedToken(name, special=False))


def _items(value: Any, where: str) -> Iterator[tuple[Any, Any]]:
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{where} must be an object of tokens by id, found {value!r:.80}.")
    yield from value.items()


def _id(value: Any, where: str) -> int:
    if not str(value).isdecimal() or len(str(value)) > _MOST_DIGITS:
        raise InvalidCheckpoint(
            f"{where} must give each token a whole number as id, of at most {_MOST_DIGITS} digits, found {value!r:.80}."
        )
    return int(value)


class PieceType(IntEnum):
    """The use of a piece. Text is segmented into normal and user-defined pieces, and into bytes for lack of those."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class VocabularyPiece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel:
    """A model file. `charsmap` are the compiled replacements of characters, empty for none."""

    pieces: tuple[VocabularyPiece, ...]
    unigram: bool
    byte_fallback: bool
    unknown_id: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Read a file. Raises InvalidCheckpoint when it is of another kind, damaged, or of a rare type of model."""
        try:
            return cls.parse(path.read_bytes())
        except (ValueError, OSError, IndexError, struct.error) as error:
            raise InvalidCheckpoint(
                f"{path} is not a sentencepiece model that can be read ({error}): fetch the file again, or put the "
                "tokenizer.json of the same model beside it."
            ) from None

    @classmethod
    def parse(cls, data: bytes) -> SentencePieceModel:
        pieces, trainer, normalizer = [], b"", b""
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_bytes(value)))
            elif number == 2:
                trainer += _bytes(value)
            elif number == 3:
                normalizer += _bytes(value)
        if not pieces:
            raise ValueError("it holds no pieces")
        trained, rules = dict(_fields(trainer)), dict(_fields(normalizer))
        kind = trained.get(3, _UNIGRAM)
        if kind not in (_UNIGRAM, _BPE):
            raise ValueError(f"its model type is {kind!r}, expected {_UNIGRAM} (unigram) or {_BPE} (BPE)")
        if trained.get(24, 0) or not rules.get(5, 1):
            raise ValueError("it writes spaces after words or not at all, expected before words")
        return cls(
            pieces=tuple(pieces),
            unigram=kind == _UNIGRAM,
            byte_fallback=bool(trained.get(35, 0)),
            unknown_id=next((i for i, piece in enumerate(pieces) if piece.type is PieceType.UNKNOWN), 0),
            add_dummy_prefix=bool(rules.get(3, 1)),
            remove_extra_whitespaces=bool(rules.get(4, 1)),
            charsmap=_bytes(rules.get(2, b"")),
        )


def _piece(data: bytes) -> VocabularyPiece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))
    kind = fields.get(3, PieceType.NORMAL)
    if not isinstance(kind, int):
        raise ValueError("a piece has no type")
    return VocabularyPiece(_bytes(fields.get(1, b"")).decode(), score, PieceType(kind))


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where text is expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message; numbers of fixed width stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            width, at = _varint(data, at)
        elif kind in _WIDTHS:
            width = _WIDTHS[kind]
        else:
            raise ValueError(f"byte {at} starts no field")
        if at + width > len(data):
            raise ValueError("it ends too early")
        yield number, data[at : at + width]
        at += width


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for place in range(10):  # 64 bits
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"the number at byte {at} has more than 64 bits")
