"""Tokenizers of older checkpoints, which bring no tokenizer.json: their files become the same definition.

Sentencepiece models are converted here, to what the classes InternLM2Tokenizer, InternLM3Tokenizer and LlamaTokenizer
(Yi, Phi-3) do with them: special tokens are cut out of the text first, each text between them is normalised and
segmented by the model alone. `vocab.json` and `merges.txt` are left to transformers. No code of a checkpoint runs.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.added_tokens import AddedToken, added_tokens
from tilewise.inputs.intern_s1 import definition_of_intern_s1, is_intern_s1
from tilewise.inputs.sentencepiece import SPACE, Piece, PieceType, SentencePieceModel
from tilewise.weights.folder import optional_json

_MARK = re.compile(r"[<\[].*[>\]]")
_BYTE_MARK = "<(?=0x[0-9A-F]{2}>)"

Part = dict[str, Any]
"""One component of a definition, as the `tokenizers` library writes it."""


def definition_of(folder: Path) -> str:
    """The content of the tokenizer.json that the folder lacks. Raises InvalidCheckpoint."""
    if (folder / "tokenizer.model").exists():
        return _Conversion.of(folder).definition()
    if is_intern_s1(folder):
        return definition_of_intern_s1(folder)
    if (folder / "vocab.json").exists():
        return _by_transformers(folder)
    for path in folder.glob("*.tiktoken"):
        raise InvalidCheckpoint(f"{path} has no pattern to cut text by: put the model's tokenizer.json beside it.")
    raise InvalidCheckpoint(f"{folder} has no tokenizer: neither tokenizer.json, vocab.json nor tokenizer.model.")


def _by_transformers(folder: Path) -> str:
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return str(slow.backend_tokenizer.to_str())
    except (ValueError, OSError, AttributeError, ImportError) as error:
        raise InvalidCheckpoint(
            f"{folder}: its tokenizer files cannot be converted without the code they name ({error}); "
            "put a tokenizer.json beside them."
        ) from None


@dataclass(frozen=True)
class _Conversion:
    """A sentencepiece model and what the JSON files beside it say."""

    model: SentencePieceModel
    added: dict[int, AddedToken]
    prefix: str
    """Which texts get a space in front: `each` between special tokens, the `first` of a prompt, or `none`."""
    where: str

    @classmethod
    def of(cls, folder: Path) -> _Conversion:
        path = folder / "tokenizer.model"
        model = SentencePieceModel.read(path)
        inner = {
            number: AddedToken(piece.text, special=piece.type is not PieceType.USER_DEFINED)
            for number, piece in enumerate(model.pieces)
            if _is_control(piece)
        }
        added = added_tokens(folder, [piece.text for piece in model.pieces], inner)
        return cls(model, added, _prefix(optional_json(folder / "tokenizer_config.json"), model), str(path))

    def definition(self) -> str:
        parts = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [token.as_json(number) for number, token in sorted(self.added.items())],
            "normalizer": _sequence("normalizers", self._normalizers()),
            "pre_tokenizer": _sequence("pretokenizers", self._splits()),
            "post_processor": None,
            "decoder": _sequence("decoders", self._decoders()),
            "model": self._unigram() if self.model.unigram else self._bpe(),
        }
        return json.dumps(parts, ensure_ascii=False)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Every name with its id. An added token takes over the piece whose id it has: InternLM2 names spare pieces."""
        names = {piece.text: number for number, piece in enumerate(self.model.pieces) if number not in self.added}
        return names | {token.content: number for number, token in self.added.items()}

    def _text_pieces(self, kind: PieceType) -> list[Piece]:
        """Pieces of this type that text may become."""
        return [
            piece
            for number, piece in enumerate(self.model.pieces)
            if piece.type is kind and number not in self.added and self._ids[piece.text] == number
        ]

    def _bpe(self) -> Part:
        return {
            "type": "BPE",
            "vocab": self._ids,
            "merges": list(_merges(self._text_pieces(PieceType.NORMAL))),
            "unk_token": self._name(self.model.unknown_id),
            "fuse_unk": True,
            "byte_fallback": self.model.byte_fallback,
            "ignore_merges": bool(self._words),  # they are whole already
        }

    def _unigram(self) -> Part:
        missing = max(self.added, default=0) + 1 - len(self.model.pieces)
        scores = [piece.score for piece in self.model.pieces] + [0.0] * missing
        return {
            "type": "Unigram",
            "vocab": [[self._name(number), score] for number, score in enumerate(scores)],
            "unk_id": self.model.unknown_id,
            "byte_fallback": self.model.byte_fallback,
        }

    def _name(self, number: int) -> str:
        if number in self.added:
            return self.added[number].content
        if number < len(self.model.pieces):
            return self.model.pieces[number].text
        raise InvalidCheckpoint(
            f"{self.where}: no token has id {number}, between its pieces and the added tokens of the JSON files beside "
            "it; put the tokenizer.json of the same model beside them."
        )

    def _normalizers(self) -> Iterator[Part]:
        if self.model.charsmap:
            yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.model.charsmap).decode()}
        if self.model.remove_extra_whitespaces:
            yield _replace({"Regex": rf"\A +|[ {SPACE}]+\z"}, "")
            yield _replace({"Regex": " +"}, " ")
        if self.prefix == "each":
            yield {"type": "Prepend", "prepend": SPACE}
        yield _replace({"String": " "}, SPACE)

    def _splits(self) -> Iterator[Part]:
        if self.prefix == "first":
            yield {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
        if self._words and not self.model.unigram:
            yield _split("|".join(map(re.escape, self._words)), "Isolated")
        if self.model.byte_fallback and (self._words or self.model.unigram):
            yield _split(_BYTE_MARK, "MergedWithPrevious")  # a typed <0x0A> is six characters

    @cached_property
    def _words(self) -> list[str]:
        """User-defined pieces that are text, the longest first: never cut, nor merged with what is around."""
        return sorted((piece.text for piece in self._text_pieces(PieceType.USER_DEFINED)), key=len, reverse=True)

    def _decoders(self) -> Iterator[Part]:
        yield _replace({"String": SPACE}, " ")
        if self.model.byte_fallback:
            yield {"type": "ByteFallback"}
        yield {"type": "Fuse"}
        if self.prefix != "none":
            yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _is_control(piece: Piece) -> bool:
    """Control pieces, and user-defined ones that look like marks: both are special tokens, no user's text."""
    if piece.type is PieceType.USER_DEFINED:
        return _MARK.fullmatch(piece.text) is not None
    return piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)


def _prefix(config: Part, model: SentencePieceModel) -> str:
    """Llama's class overrules the model file unless it is `legacy`, as it is when the config does not say."""
    if str(config.get("tokenizer_class")).startswith("Llama") and config.get("legacy") is False:
        return "none" if config.get("add_prefix_space") is False else "first"
    return "each" if model.add_dummy_prefix else "none"


def _merges(pieces: list[Piece]) -> Iterator[tuple[str, str]]:
    """Every cut of a piece into two pieces is a merge, in the order of the scores of what it makes."""
    known = {piece.text for piece in pieces}
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        text = piece.text
        yield from (
            (text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in known and text[cut:] in known
        )


def _sequence(key: str, parts: Iterable[Part]) -> Part | None:
    """Several components as one; a single one stands alone, none is null."""
    found = list(parts)
    return {"type": "Sequence", key: found} if len(found) > 1 else found[0] if found else None


def _replace(pattern: dict[str, str], content: str) -> Part:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _split(pattern: str, behavior: str) -> Part:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
