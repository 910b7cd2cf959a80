"""Text to token ids and back. The tokenizer itself is Hugging Face's; this file decides what may be special.

A caller's text can never become a control token: `<|im_end|>`, `<img>` or `<IMG_CONTEXT>` typed by a user are
encoded as the characters they are. Grounding marks (`<ref>`, `<box>`, `<quad>`) are part of the language that
InternVL speaks with its users and stay tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.templates import ImageSlot, Piece, Special

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
_ADDED = re.compile(r'"added_tokens"\s*:\s*\[')
_GROUNDING = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}


class Tokenizer:
    """A checkpoint's tokenizer, with the two ways of reading text kept apart."""

    def __init__(self, definition: str, where: str = "tokenizer.json") -> None:
        """`definition` is the content of a `tokenizer.json`."""
        self._definition = definition
        self._where = where
        added, span = _added_tokens(definition, where)
        self.special_ids = frozenset(token["id"] for token in added if token["special"])
        neutral = [{**token, "special": token["content"] not in _GROUNDING} for token in added]
        self._plain = _parse(definition[: span.start] + json.dumps(neutral) + definition[span.stop :], where)
        self._plain.encode_special_tokens = True  # "encode them like other text"
        self.image_context_id = self.special_id(IMAGE_CONTEXT)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Load `tokenizer.json`; older checkpoints without one are converted by transformers (no remote code)."""
        path = folder / "tokenizer.json"
        if not path.exists():
            return cls(_convert(folder), str(folder))
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidCheckpoint(f"{path} cannot be read ({error}); fetch the file again.") from None

    @cached_property
    def _raw(self) -> FastTokenizer:
        return _parse(self._definition, self._where)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id in use; the embedding table of the model may have more rows."""
        return max(self._plain.get_vocab(with_added_tokens=True).values()) + 1

    def special_id(self, token: str) -> int:
        """The id of a token that has to exist. Raises InvalidCheckpoint."""
        found = self._plain.token_to_id(token)
        if found is None:
            raise InvalidCheckpoint(f"{self._where}: the tokenizer has no token {token}, which InternVL prompts need.")
        return found

    def find_id(self, token: str) -> int | None:
        return self._plain.token_to_id(token)

    def encode_text(self, text: str) -> list[int]:
        """Plain text: control tokens in it stay characters."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def token_ends(self, text: str) -> list[int]:
        """For each token of `encode_text`, the position in `text` (in characters) at which it ends."""
        return [end for _, end in self._plain.encode(text, add_special_tokens=False).offsets]

    def token_text(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it; None when there is none with this id."""
        return self._plain.id_to_token(token_id)

    def encode_raw(self, text: str) -> list[int]:
        """A ready-made prompt, in which special tokens are meant."""
        return self._raw.encode(text, add_special_tokens=False).ids

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int | ImageSlot]:
        """Pieces of a template to ids; image slots stay in place for `prepare` to fill."""
        ids: list[int | ImageSlot] = []
        for piece in pieces:
            if isinstance(piece, ImageSlot):
                ids.append(piece)
            elif isinstance(piece, Special):
                ids.append(self.special_id(piece.token))
            else:
                ids += self.encode_text(piece.text)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        kept = [i for i in ids if i not in self.special_ids] if skip_special_tokens else list(ids)
        return self._plain.decode(kept, skip_special_tokens=False)

    def stream(self) -> TextStream:
        return TextStream(self._plain)


class TextStream:
    """Text of a growing list of tokens; characters whose bytes are incomplete are held back."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""


def _added_tokens(definition: str, where: str) -> tuple[list[dict[str, Any]], slice]:
    """The added tokens, and the span of the text they stand in; the large vocabulary after it is not parsed here."""
    found = _ADDED.search(definition)
    try:
        if found is None:
            raise ValueError("it has no list 'added_tokens'")
        start = found.end() - 1
        tokens, stop = json.JSONDecoder().raw_decode(definition, start)
        if not all({"id", "content", "special"} <= token.keys() for token in tokens):
            raise ValueError("an added token lacks id, content or special")
    except (ValueError, AttributeError) as error:
        raise InvalidCheckpoint(f"{where} is not a tokenizer definition: {error}; fetch the file again.") from None
    return tokens, slice(start, stop)


def _parse(definition: str, where: str) -> FastTokenizer:
    try:
        return FastTokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing narrower
        raise InvalidCheckpoint(f"{where} cannot be read ({error}); fetch the file again.") from None


def _convert(folder: Path) -> str:
    """`vocab.json` + `merges.txt` (or sentencepiece) to one definition, by transformers' own converters."""
    if not any((folder / name).exists() for name in ("vocab.json", "tokenizer.model")):
        raise InvalidCheckpoint(f"{folder} has no tokenizer: neither tokenizer.json, vocab.json nor tokenizer.model.")
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return str(slow.backend_tokenizer.to_str())
    except (ValueError, OSError, AttributeError, ImportError) as error:
        raise InvalidCheckpoint(
            f"{folder}: its tokenizer files cannot be converted without the code they name ({error}); "
            "put a tokenizer.json beside them."
        ) from None
