"""Text of a growing list of tokens. What was given out is never taken back: joined, it is the text of the whole."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from tilewise.inputs.sentencepiece import SPACE


class TextStream(Protocol):
    """A stream from tokens to text; characters whose bytes are incomplete are held back."""

    def add(self, token_id: int) -> str:
        """Return the text that this token makes known."""
        ...


class WholeStream:
    """A stream for tokenizers whose tokens are all of one kind, byte-level ones above all."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""


@dataclass(frozen=True)
class BytePieces:
    """A sentencepiece vocabulary with byte fallback: most pieces are text, some are single bytes of other characters.

    The library's decoder takes back a character that is complete when the byte after it belongs to none. Here bytes
    are read as they come, and what is no UTF-8 shows as U+FFFD.
    """

    tokenizer: FastTokenizer
    bytes: Mapping[int, int]
    strips_space: bool
    """True = the first text loses the space that every first word has."""

    @classmethod
    def of(cls, tokenizer: FastTokenizer) -> BytePieces | None:
        """Read a tokenizer's definition; return None for one without byte fallback."""
        steps = _steps(tokenizer)
        if not any(step["type"] == "ByteFallback" for step in steps):
            return None
        named = {value: tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256)}
        strips = any(step["type"] == "Strip" and step["start"] > 0 for step in steps)
        return cls(tokenizer, {number: value for value, number in named.items() if number is not None}, strips)

    def stream(self) -> PieceStream:
        return PieceStream(self)

    def decode(self, ids: list[int]) -> str:
        stream = self.stream()
        return "".join(map(stream.add, ids)) + stream.end()


class PieceStream:
    """A stream that reads pieces and bytes as they come."""

    def __init__(self, pieces: BytePieces) -> None:
        self._pieces = pieces
        self._strip = pieces.strips_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        byte = self._pieces.bytes.get(token_id)
        if byte is not None:
            return self._stripped(self._utf8.decode(bytes([byte])))
        piece = self._pieces.tokenizer.id_to_token(token_id) or ""
        return self._stripped(self.end() + piece.replace(SPACE, " "))

    def end(self) -> str:
        """End the text; return U+FFFD when its last character is incomplete, else ""."""
        return self._utf8.decode(b"", final=True)

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        self._strip = False
        return text.removeprefix(" ")


def _steps(tokenizer: FastTokenizer) -> list[dict[str, Any]]:
    """Return the parts of the tokenizer's decoder, as its definition writes them."""
    if tokenizer.decoder is None:
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return list(state.get("decoders", [state]))
