"""Text to token ids and back. The tokenizer itself is Hugging Face's; this file decides what may be special.

A caller's text can never become a control token: `<|im_end|>`, `<img>` or `<IMG_CONTEXT>` typed by a user are
encoded as the characters they are. Grounding marks (`<ref>`, `<box>`, `<quad>`) are part of the language that
InternVL speaks with its users and stay tokens.

A prompt is encoded piece by piece, and its ids are those of the whole string: what a tokenizer does only at the start
of a prompt, or to white space beside a special token, is done for each text as its place in the prompt asks.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Regex, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from tilewise.errors import GET_AGAIN, InvalidCheckpoint, InvalidRequest
from tilewise.inputs.pieces import ImageSlot, Piece, Special, Text
from tilewise.inputs.tokenizer_files import SPACE

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
_ADDED = re.compile(r'"added_tokens"\s*:\s*\[')
_FIRST = re.compile(r'("prepend_scheme"\s*:\s*)"first"')
_GROUNDING = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
_BEFORE = "\x02"  # joins with nothing, and takes the space that some tokenizers put before every text
_IN_GROUNDING = re.compile(f"(?<=<)(?={'|'.join(re.escape(mark[1:]) for mark in sorted(_GROUNDING))})")
_WHITE = "".join(map(chr, [*range(9, 14), 32, 133, 160, 5760, *range(8192, 8203), 8232, 8233, 8239, 8287, 12288]))
"""Characters that `lstrip` and `rstrip` tokens swallow: White_Space of Unicode; Python's set has four more."""


class Tokenizer:
    """A checkpoint's tokenizer, with the two ways of reading text kept apart."""

    def __init__(self, definition: str, where: str = "tokenizer.json") -> None:
        """`definition` is the content of a `tokenizer.json`."""
        self._where = where
        added, span = _added_tokens(definition, where)
        self.special_ids = frozenset(token["id"] for token in added if token["special"])
        self.added_tokens: dict[str, int] = {token["content"]: token["id"] for token in added}
        self._swallow_before = {token["content"] for token in added if token.get("lstrip")}
        self._swallow_behind = {token["content"] for token in added if token.get("rstrip")}
        # Grounding marks are made plain here: they stay tokens where a text's special tokens are spelled out.
        neutral = [{**token, "special": token["content"] not in _GROUNDING} for token in added]
        plain = definition[: span.start] + json.dumps(neutral) + definition[span.stop :]
        self.definition = definition
        self._typed = _Encoder.of(plain, where, control=[t["content"] for t in neutral if t["special"]])
        self._plain = self._typed.first
        self._pieces = BytePieces.of(self._plain)
        self.image_context_id = self.special_id(IMAGE_CONTEXT)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Load `tokenizer.json`, or the older files of a checkpoint without one (no remote code)."""
        path = folder / "tokenizer.json"
        if not path.exists():
            from tilewise.inputs.convert import definition_of

            return cls(definition_of(folder), str(folder))
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidCheckpoint(f"{path} cannot be read ({error}); {GET_AGAIN}.") from None

    @cached_property
    def _meant(self) -> _Encoder:
        return _Encoder.of(self.definition, self._where)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id in use; the embedding table of the model may have more rows."""
        return max(self._plain.get_vocab(with_added_tokens=True).values()) + 1

    def spells_as(self, other: Tokenizer) -> bool:
        """True if both mean the same by every id."""
        return self._plain.get_vocab(with_added_tokens=True) == other._plain.get_vocab(with_added_tokens=True)

    @cached_property
    def start_id(self) -> int | None:
        """The token that the definition itself puts before every prompt, as Llama 3's does; None for most."""
        sample = self._plain.encode("a")
        return sample.ids[0] if sample.special_tokens_mask[:1] == [1] else None

    def special_id(self, token: str) -> int:
        """Return the id of a token that has to exist. Raises InvalidCheckpoint."""
        found = self._plain.token_to_id(token)
        if found is None:
            raise InvalidCheckpoint(f"{self._where}: the tokenizer has no token {token}, which InternVL prompts need.")
        return found

    def find_id(self, token: str) -> int | None:
        return self._plain.token_to_id(token)

    def encode_text(self, text: str) -> list[int]:
        """Encode plain text: control tokens in it stay characters."""
        return self._typed.encode(text, first=True)

    def token_text(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it; None when there is none with this id."""
        return self._plain.id_to_token(token_id)

    def encode_raw(self, text: str) -> list[int]:
        """Encode a ready-made prompt, in which special tokens are meant."""
        return self._meant.encode(text, first=True)

    def encode_characters(self, text: str) -> list[int]:
        """Encode text inside of an answer, in which all special tokens are characters, grounding marks as well."""
        # Marks are cut behind their "<". Each part is encoded behind `_BEFORE`, as text in the middle, less its ids.
        before = len(self._typed.encode(_BEFORE, first=False))
        parts = _IN_GROUNDING.split(text)
        return [token for part in parts for token in self._typed.encode(_BEFORE + part, first=False)[before:]]

    def encode_pieces(self, pieces: Sequence[Piece], raw: bool = False) -> list[int | ImageSlot]:
        """Encode the pieces of a prompt; image slots stay in place for `prepare` to fill.

        The ids are those of the whole string, pictures written out as `<img>...</img>`. In `raw` texts special tokens
        are meant.
        """
        encoder = self._meant if raw else self._typed
        ids: list[int | ImageSlot] = []
        for place, piece in enumerate(pieces):
            if isinstance(piece, ImageSlot):
                ids.append(piece)
            elif isinstance(piece, Special):
                ids.append(self.special_id(piece.token))
            else:
                ids += encoder.encode(self._beside_tokens(piece.text, pieces, place), first=place == 0)
        return ids

    def token_ends(self, pieces: Sequence[Piece], place: int) -> list[int]:
        """Return for each token of the text at `place` of a prompt the character of that text behind which it ends."""
        piece = pieces[place]
        assert isinstance(piece, Text)
        kept = self._beside_tokens(piece.text, pieces, place)
        offset = piece.text.index(kept)
        return [offset + end for _, end in self._typed.encoded(kept, first=place == 0).offsets]

    def _beside_tokens(self, text: str, pieces: Sequence[Piece], place: int) -> str:
        """Return a text without the white space that the special tokens on both sides swallow."""
        before = pieces[place - 1] if place else None
        after = pieces[place + 1] if place + 1 < len(pieces) else None
        if _token_at(before, IMAGE_END) in self._swallow_behind:
            text = text.lstrip(_WHITE)
        return text.rstrip(_WHITE) if _token_at(after, IMAGE_START) in self._swallow_before else text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        kept = [i for i in ids if i not in self.special_ids] if skip_special_tokens else list(ids)
        if self._pieces is not None:
            return self._pieces.decode(kept)
        return self._plain.decode(kept, skip_special_tokens=False)

    def stream(self) -> TextStream:
        """Return a stream whose text, token by token, is what `decode` makes of them all."""
        return WholeStream(self._plain) if self._pieces is None else self._pieces.stream()


def _token_at(piece: Piece | None, of_picture: str) -> str | None:
    """Return the special token next to a text; a picture has `of_picture` there, `<img>` or `</img>`."""
    if isinstance(piece, ImageSlot):
        return of_picture
    return piece.token if isinstance(piece, Special) else None


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer for the first text of a prompt, and one for those after it."""

    first: FastTokenizer
    later: FastTokenizer

    @classmethod
    def of(cls, definition: str, where: str, control: Sequence[str] = ()) -> _Encoder:
        """Read a definition, for text that never becomes a `control` token."""
        # `prepend_scheme` "first" puts a space before the first text of a prompt alone, so later ones go without it.
        elsewhere = _FIRST.sub(r'\1"never"', definition)
        first = _spelling_out(control, _parse(definition, where))
        return cls(first, first if elsewhere == definition else _spelling_out(control, _parse(elsewhere, where)))

    def encode(self, text: str, first: bool) -> list[int]:
        return self.encoded(text, first).ids

    def encoded(self, text: str, first: bool) -> Encoding:
        """Return the library's encoding. Raises InvalidRequest for a text that its patterns give up on."""
        try:
            return (self.first if first else self.later).encode(text, add_special_tokens=False)
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise InvalidRequest(
                f"The tokenizer gives up on a text of {len(text)} characters: send it in other words, or shorter."
            ) from None


def _spelling_out(control: Sequence[str], fast: FastTokenizer) -> FastTokenizer:
    """Change the tokenizer so that `control` tokens in a text are characters like any other, and return it.

    Sentencepiece has its control tokens among the pieces that it cuts a text into. One that a text spells is therefore
    cut behind its first character before that.
    """
    if not control:
        return fast
    fast.encode_special_tokens = True  # "encode them like other text"
    marks = [mark for mark in control if len(mark) > 1 and fast.model.token_to_id(mark) is not None]
    if marks:
        cut = Regex("|".join(f"{re.escape(mark[0])}(?={re.escape(mark[1:])})" for mark in marks))
        splits = [fast.pre_tokenizer, pre_tokenizers.Split(cut, "merged_with_previous")]
        fast.pre_tokenizer = pre_tokenizers.Sequence([split for split in splits if split is not None])
    return fast


def _added_tokens(definition: str, where: str) -> tuple[list[dict[str, Any]], slice]:
    """Return the added tokens, and the span of the text they stand in; the large vocabulary after it is not parsed."""
    found = _ADDED.search(definition)
    try:
        if found is None:
            raise ValueError("it has no list 'added_tokens'")
        start = found.end() - 1
        tokens, stop = json.JSONDecoder().raw_decode(definition, start)
        if not all(map(_is_added_token, tokens)):
            raise ValueError("an added token lacks id, content or special, or has one of another type")
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{where} is not a tokenizer definition: {error}; {GET_AGAIN}.") from None
    return tokens, slice(start, stop)


def _is_added_token(token: Any) -> bool:
    kinds = {"id": int, "content": str, "special": bool}
    typed = isinstance(token, dict) and all(isinstance(token.get(key), kind) for key, kind in kinds.items())
    return typed and not isinstance(token["id"], bool)


def _is_panic(error: BaseException) -> bool:
    """Return whether the library gave up, for which its class has no name in Python, and is none of Exception."""
    return type(error).__name__ == "PanicException"


def _parse(definition: str, where: str) -> FastTokenizer:
    try:
        return FastTokenizer.from_str(definition)
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):  # the library raises nothing narrower
            raise
        raise InvalidCheckpoint(f"{where} cannot be read ({error}); {GET_AGAIN}.") from None


class WholeStream:
    """A stream for tokenizers whose tokens are all of one kind, byte-level ones above all."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token_id: int) -> str:
        """Return the text that this token makes known."""
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


TextStream = WholeStream | PieceStream
"""A stream from tokens to text; characters whose bytes are incomplete are held back."""


def _steps(tokenizer: FastTokenizer) -> list[dict[str, Any]]:
    """Return the parts of the tokenizer's decoder, as its definition writes them."""
    if tokenizer.decoder is None:
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return list(state.get("decoders", [state]))
