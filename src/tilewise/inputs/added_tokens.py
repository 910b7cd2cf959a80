"""Added tokens of checkpoints without a tokenizer.json: which there are, their ids, and what they do to spaces.

The JSON files overlap. In order of weight: `added_tokens_decoder` of tokenizer_config.json (id to token), or where
that is missing added_tokens.json (text to id); then the names in tokenizer_config.json and special_tokens_map.json,
which make a token special and say nothing of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.folder import optional_json

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens")


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
    """Yield the tokens that the files list with their ids."""
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
    if not str(value).isdecimal():
        raise InvalidCheckpoint(f"{where} must give each token a whole number as id, found {value!r:.80}.")
    return int(value)
