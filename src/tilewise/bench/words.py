"""Words: text to ids and back, by a tokenizer of this machine or by the server's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import httpx

from tilewise.bench.client import Target
from tilewise.errors import InvalidConfig
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.hub import DEMO, find_model

_SAMPLE = (
    "The quick brown fox jumps over a lazy dog while seven wise owls watch from their old oak. Numbers such as 0 1 2 "
    "3 4 5 6 7 8 9 and signs like + - * / = stand beside names of towns, rivers, colours, tools, plants and people; "
    "some of them are long, others short, and none of them means anything. Red green blue white black stone water."
)
"""Whose ids are ordinary ones, whatever the vocabulary."""


class Words(Protocol):
    @property
    def ordinary(self) -> Sequence[int]:
        """Ids that are no control tokens, ascending."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class LocalWords:
    """A tokenizer's files; special tokens in a text are meant, as servers read the prompt of a completion."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def ordinary(self) -> Sequence[int]:
        known = range(self._tokenizer.vocab_size)
        special = self._tokenizer.special_ids
        return [token for token in known if token not in special and self._tokenizer.token_text(token) is not None]

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode_raw(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class ServerWords:
    """/tokenize and /detokenize, which Tilewise and vLLM have."""

    def __init__(self, target: Target, model: str) -> None:
        self._url, self._model = target.url, model
        self._client = httpx.Client(headers=target.headers, verify=target.verify, timeout=60.0)

    @cached_property
    def ordinary(self) -> Sequence[int]:
        return sorted(set(self.encode(_SAMPLE)))

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._ask("tokenize", prompt=text, add_special_tokens=False)["tokens"]]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._ask("detokenize", tokens=list(ids))["prompt"])

    def _ask(self, route: str, **fields: Any) -> dict[str, Any]:
        try:
            answer = self._client.post(f"{self._url}/{route}", json={"model": self._model, **fields})
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise InvalidConfig(
                f"There is no tokenizer for {self._model}: it is no folder, and {self._url}/{route} does not serve "
                f"({error}). Name one with --tokenizer FOLDER, or do without: --skip-tokenizer-init."
            ) from None
        return found


def find_words(tokenizer: str | None, model: str, target: Target) -> tuple[Words, str]:
    """The words of a model, and where they are from."""
    if tokenizer is not None:
        return LocalWords(Tokenizer.from_folder(find_model(tokenizer, weights=False))), tokenizer
    if model == DEMO or Path(model).is_dir():
        return LocalWords(Tokenizer.from_folder(find_model(model))), model
    return ServerWords(target, model), f"{target.url}/tokenize"
