"""The content of a sentencepiece model file, read without the sentencepiece library.

The file is one protobuf message, `ModelProto` of sentencepiece_model.proto. Only what decides about ids is read: the
pieces with scores and types, the kind of model, and the rules by which text is normalised. What to make of it is
decided in `convert.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tilewise.errors import InvalidCheckpoint

SPACE = "▁"
"""The character by which pieces write a space (U+2581)."""

_UNIGRAM, _BPE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_WIDTHS = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}

Fields = dict[int, int | bytes]


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
