"""Tokenizers of older checkpoints, which bring no tokenizer.json: their files become the same definition.

Sentencepiece models are converted here, to what the classes InternLM2Tokenizer, InternLM3Tokenizer and LlamaTokenizer
(Yi, Phi-3) do with them: special tokens are cut out of the text first, each text between them is normalised and
segmented by the model alone. `vocab.json` and `merges.txt` are Qwen's, whose parts of words are known. No code of a
checkpoint runs.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.inputs.tokenizer_files import (
    SPACE,
    AddedToken,
    PieceType,
    SentencePieceModel,
    VocabularyPiece,
    added_tokens,
)
from tilewise.weights.folder import optional_json

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The parts of a text that Qwen2's and Qwen3's tokenizers merge within. Source: tokenizer.json of Qwen/Qwen2.5-0.5B."""
_MARK = re.compile(r"[<\[].*[>\]]")
_BYTE_MARK = "<(?=0x[0-9A-F]{2}>)"

Part = dict[str, Any]
"""One component of a definition, as the `tokenizers` library writes it."""


def definition_of(folder: Path) -> str:
    """Return the content of the tokenizer.json that the folder lacks. Raises InvalidCheckpoint."""
    if (folder / "tokenizer.model").exists():
        return _Conversion.of(folder).definition()
    if (folder / "tokenizer_SMILES.model").exists() and (folder / "vocab.json").exists():
        return definition_of_intern_s1(folder)
    if (folder / "vocab.json").exists():
        return definition_of_byte_level(folder)
    for path in folder.glob("*.tiktoken"):
        raise InvalidCheckpoint(f"{path} has no pattern to cut text by: put the model's tokenizer.json beside it.")
    raise InvalidCheckpoint(f"{folder} has no tokenizer: neither tokenizer.json, vocab.json nor tokenizer.model.")


def definition_of_byte_level(folder: Path) -> str:
    """Return a definition made of vocab.json and merges.txt, as Qwen2 and Qwen3 have them. Raises InvalidCheckpoint."""
    name = optional_json(folder / "tokenizer_config.json").get("tokenizer_class", "Qwen2Tokenizer")
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise InvalidCheckpoint(
            f"{folder}: how tokenizer_class={name!r} cuts text is not known; put the model's tokenizer.json beside it."
        )
    vocabulary, merges = _byte_level_files(folder)
    added = added_tokens(folder, sorted(vocabulary, key=vocabulary.__getitem__), {})
    return json.dumps(_byte_level(vocabulary, merges, added), ensure_ascii=False)


def _byte_level_files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return ids by piece, and merges in the order of their rank."""
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{folder}: vocab.json or merges.txt cannot be read ({error}); {GET_AGAIN}.") from None
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise InvalidCheckpoint(f"{folder / 'vocab.json'} must be an object of ids by piece; {GET_AGAIN}.")
    return vocabulary, [line for line in merges if line and not line.startswith("#version")]


def _byte_level(vocabulary: dict[str, int], merges: list[str], added: dict[int, AddedToken]) -> Part:
    """Return BPE over bytes that are written as letters; added tokens are in the vocabulary, so that they keep ids."""
    byte_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocabulary = vocabulary | {token.content: number for number, token in added.items()}
    return _parts(
        added,
        normalizer={"type": "NFC"},
        pre_tokenizer=_sequence("pretokenizers", [_split(_QWEN_WORDS, "Isolated"), byte_letters]),
        decoder=byte_letters,
        model={"type": "BPE", "vocab": vocabulary, "merges": merges},
    )


def _parts(added: dict[int, AddedToken], **parts: Part | None) -> Part:
    """Return a definition of these parts, its added tokens in the order of their ids."""
    tokens = [token.as_json(number) for number, token in sorted(added.items())]
    unused = dict.fromkeys(("truncation", "padding", "post_processor"))
    return {"version": "1.0", "added_tokens": tokens, **unused, **parts}


@dataclass(frozen=True)
class _Conversion:
    """A sentencepiece model and what the JSON files beside it say."""

    model: SentencePieceModel
    added: dict[int, AddedToken]
    prefix: str
    """Texts that get a space in front: `each` between special tokens, the `first` of a prompt, or `none`."""
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
        parts = _parts(
            self.added,
            normalizer=_sequence("normalizers", self._normalizers()),
            pre_tokenizer=_sequence("pretokenizers", self._splits()),
            decoder=_sequence("decoders", self._decoders()),
            model=self._unigram() if self.model.unigram else self._bpe(),
        )
        return json.dumps(parts, ensure_ascii=False)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Ids by name. An added token takes over the piece whose id it has: InternLM2 names spare pieces."""
        names = {piece.text: number for number, piece in enumerate(self.model.pieces) if number not in self.added}
        return names | {token.content: number for number, token in self.added.items()}

    def _text_pieces(self, kind: PieceType) -> list[VocabularyPiece]:
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
        count = max(len(self.model.pieces), max(self.added, default=0) + 1)
        scores = itertools.chain((piece.score for piece in self.model.pieces), itertools.repeat(0.0))
        return {
            "type": "Unigram",
            "vocab": [[self._name(number), score] for number, score in zip(range(count), scores, strict=False)],
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


def _is_control(piece: VocabularyPiece) -> bool:
    """True for special tokens, which are no user's text.

    These are control pieces, the unknown piece, and user-defined ones that look like marks.
    """
    if piece.type is PieceType.USER_DEFINED:
        return _MARK.fullmatch(piece.text) is not None
    return piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)


def _prefix(config: Part, model: SentencePieceModel) -> str:
    """Return `_Conversion.prefix`.

    Llama's class overrules the model file unless it is `legacy`, as it is when the config does not say.
    """
    if str(config.get("tokenizer_class")).startswith("Llama") and config.get("legacy") is False:
        return "none" if config.get("add_prefix_space") is False else "first"
    return "each" if model.add_dummy_prefix else "none"


def _merges(pieces: list[VocabularyPiece]) -> Iterator[tuple[str, str]]:
    """Yield every cut of a piece into two pieces, in the order of the scores of what they make.

    Sentencepiece has scores in place of merges: of all neighbours that make a piece, it joins those whose piece scores
    highest.
    """
    known = {piece.text for piece in pieces}
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        text = piece.text
        yield from (
            (text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in known and text[cut:] in known
        )


def _sequence(key: str, parts: Iterable[Part]) -> Part | None:
    """Return several components as one; a single one stands alone, none is None."""
    found = list(parts)
    return {"type": "Sequence", key: found} if len(found) > 1 else found[0] if found else None


def _replace(pattern: dict[str, str], content: str) -> Part:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _split(pattern: str, behavior: str) -> Part:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


_TAGS = {"SMILES": ("SMILES", "SELFIES"), "IUPAC": ("IUPAC",), "FASTA": ()}
"""Tags whose ids follow those of a model's pieces, in the order of their ids, by the name of the model."""
_OTHERS = 26  # special tokens between Qwen3's pieces and the first model's
_APART = dict(zip(_TAGS, "\ue000\ue001\ue002", strict=True))
"""Private characters before each model's pieces, so that no text becomes them: a letter is a token of Qwen3's too."""


def definition_of_intern_s1(folder: Path) -> str:
    """Return the content of the tokenizer.json that a folder of Intern-S1 lacks. Raises InvalidCheckpoint.

    The checkpoint's own class (`tokenization_interns1.py`) cuts text between `<SMILES>`, `<SELFIES>` and `<IUPAC>`
    tags, and what it takes for a molecule or a protein elsewhere, by the sentencepiece models beside it. Here text is
    never cut by those: it has the tokens that Qwen3 gives it. What the model writes in their tokens is read back.
    """
    vocabulary, merges = _byte_level_files(folder)
    added = added_tokens(folder, list(vocabulary), {})
    listed = {token.content for token in added.values()}
    next_id = len(vocabulary) + _OTHERS
    for model, tags in _TAGS.items():
        path = folder / f"tokenizer_{model}.model"
        if not path.exists():
            raise InvalidCheckpoint(f"{folder} has no {path.name}, one of Intern-S1's three further vocabularies.")
        pieces = [_APART[model] + piece.text.replace(SPACE, " ") for piece in SentencePieceModel.read(path).pieces]
        marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
        vocabulary |= dict(zip(pieces, itertools.count(next_id), strict=False))
        next_id += len(pieces)
        added |= {next_id + i: AddedToken(mark) for i, mark in enumerate(marks) if mark not in listed}
        next_id += len(marks)
    parts = _byte_level(vocabulary, merges, added)
    apart = {"type": "Replace", "pattern": {"Regex": f"[{''.join(_APART.values())}]"}, "content": ""}
    parts["decoder"] = {"type": "Sequence", "decoders": [parts["decoder"], apart]}
    return json.dumps(parts, ensure_ascii=False)
