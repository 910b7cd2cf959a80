"""Text to token ids and back. The tokenizer itself is Hugging Face's; this file decides what may be special.

A caller's text can never become a control token: `<|im_end|>`, `<img>` or `<IMG_CONTEXT>` typed by a user are
encoded as the characters they are. Grounding marks (`<ref>`, `<box>`, `<quad>`) are part of the language that
InternVL speaks with its users and stay tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.templates import ImageSlot, Piece, Special

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
_GROUNDING = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}


class Tokenizer:
    """A checkpoint's tokenizer, with the two ways of reading text kept apart."""

    def __init__(self, definition: dict[str, Any], where: str = "tokenizer.json") -> None:
        self._definition = definition
        self._where = where
        self.special_ids = frozenset(token["id"] for token in definition["added_tokens"] if token["special"])
        self._plain = FastTokenizer.from_str(json.dumps(_all_special_but_grounding(definition)))
        self._plain.encode_special_tokens = True  # "encode them like other text"
        self.image_context_id = self.special_id(IMAGE_CONTEXT)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Load `tokenizer.json`; older checkpoints without one are converted by transformers (no remote code)."""
        path = folder / "tokenizer.json"
        if path.exists():
            return cls(_read_json(path), str(path))
        return cls(_convert(folder), str(folder))

    @cached_property
    def _raw(self) -> FastTokenizer:
        return FastTokenizer.from_str(json.dumps(self._definition))

    @property
    def vocab_size(self) -> int:
        """Number of ids in use; the embedding table of the model may have more rows."""
        return self._plain.get_vocab_size(with_added_tokens=True)

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


def _all_special_but_grounding(definition: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer with every added token marked special (hence neutralised) except the grounding marks."""
    added = [{**token, "special": token["content"] not in _GROUNDING} for token in definition["added_tokens"]]
    return {**definition, "added_tokens": added}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        definition = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidCheckpoint(f"{path} cannot be read ({error}); fetch the file again.") from None
    if not isinstance(definition, dict) or "added_tokens" not in definition:
        raise InvalidCheckpoint(f"{path} is not a tokenizer definition: it has no 'added_tokens'.")
    return definition


def _convert(folder: Path) -> dict[str, Any]:
    """`vocab.json` + `merges.txt` (or sentencepiece) to one definition, by transformers' own converters."""
    if not any((folder / name).exists() for name in ("vocab.json", "tokenizer.model")):
        raise InvalidCheckpoint(f"{folder} has no tokenizer: neither tokenizer.json, vocab.json nor tokenizer.model.")
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return dict(json.loads(slow.backend_tokenizer.to_str()))
    except (ValueError, OSError, AttributeError, ImportError) as error:
        raise InvalidCheckpoint(
            f"{folder}: its tokenizer files cannot be converted without the code they name ({error}); "
            "put a tokenizer.json beside them."
        ) from None
