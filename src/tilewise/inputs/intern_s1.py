"""Intern-S1's tokenizer: Qwen3's vocabulary, and behind it three of molecules and proteins.

Its own class (`tokenization_interns1.py`) cuts text between `<SMILES>`, `<SELFIES>` and `<IUPAC>` tags, and what it
takes for a molecule or a protein elsewhere, by the sentencepiece models beside it. Text is never cut by those here: it
has the tokens that Qwen3 gives it. What the model writes in them is read back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.inputs.added_tokens import AddedToken, added_tokens
from tilewise.inputs.sentencepiece import SPACE, SentencePieceModel

_TAGS = {"SMILES": ("SMILES", "SELFIES"), "IUPAC": ("IUPAC",), "FASTA": ()}
"""By the name of a model, in the order of their ids: the tags that stand behind its pieces."""
_OTHERS = 26  # special tokens between Qwen3's pieces and the first model's
_APART = dict(zip(_TAGS, "\ue000\ue001\ue002", strict=True))
"""Before pieces that no text becomes: a letter is a token of Qwen3's, and of each model."""


def is_intern_s1(folder: Path) -> bool:
    return (folder / "tokenizer_SMILES.model").exists() and (folder / "vocab.json").exists()


def definition_of_intern_s1(folder: Path) -> str:
    """The content of the tokenizer.json that the folder lacks. Raises InvalidCheckpoint."""
    from transformers import Qwen2Tokenizer

    try:
        vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{folder}: vocab.json or merges.txt cannot be read ({error}); {GET_AGAIN}.") from None
    parts: dict[str, Any] = json.loads(Qwen2Tokenizer().backend_tokenizer.to_str())
    added = added_tokens(folder, list(vocabulary), {})
    for model, start in _starts(folder, len(vocabulary)).items():
        pieces = SentencePieceModel.read(folder / f"tokenizer_{model}.model").pieces
        vocabulary |= {_APART[model] + piece.text.replace(SPACE, " "): start + i for i, piece in enumerate(pieces)}
        marks = [mark for tag in _TAGS[model] for mark in (f"<{tag}>", f"</{tag}>")]
        listed = {token.content for token in added.values()}
        behind = start + len(pieces)
        added |= {behind + i: AddedToken(mark) for i, mark in enumerate(marks) if mark not in listed}
    vocabulary |= {token.content: number for number, token in added.items()}
    parts["added_tokens"] = [token.as_json(number) for number, token in sorted(added.items())]
    parts["model"] |= {
        "vocab": vocabulary,
        "merges": [line for line in merges if line and not line.startswith("#version")],
    }
    apart = {"type": "Replace", "pattern": {"Regex": f"[{''.join(_APART.values())}]"}, "content": ""}
    parts["decoder"] = {"type": "Sequence", "decoders": [parts["decoder"], apart]}
    return json.dumps(parts, ensure_ascii=False)


def _starts(folder: Path, count: int) -> dict[str, int]:
    """The first id of each model, behind `count` pieces of Qwen3's."""
    found, start = {}, count + _OTHERS
    for model, tags in _TAGS.items():
        path = folder / f"tokenizer_{model}.model"
        if not path.exists():
            raise InvalidCheckpoint(f"{folder} has no {path.name}, one of Intern-S1's three further vocabularies.")
        found[model] = start
        start += len(SentencePieceModel.read(path).pieces) + 2 * len(tags)
    return found
