"""BenchTokenizer: text to ids and back, by a tokenizer of this machine or by the server's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import httpx

from tilewise.bench.client import Target
from tilewise.errors import InvalidConfig
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.checkpoint import DEMO, find_model

_SAMPLE = (
    "The quick brown fox jumps over a lazy dog while seven wise owls watch from their old oak. Numbers such as 0 1 2 "
    "3 4 5 6 7 8 9 and signs like + - * / = stand beside names of towns, rivers, colours, tools, plants and people; "
    "some of them are long, others short, and none of them means anything. Red green blue white black stone water."
)
"""A text whose ids are ordinary ones, whatever the vocabulary."""


class BenchTokenizer(Protocol):
    """A tokenizer, as benchmarks need it."""

    @property
    def source(self) -> str:
        """The model whose tokenizer it is, or the address that tokenizes."""

    @property
    def ordinary(self) -> Sequence[int]:
        """Ids that are whole characters and no control tokens, ascending."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class LocalTokenizer:
    """A tokenizer of this machine. Special tokens in a text are read as such, as servers read a completion's prompt."""

    def __init__(self, tokenizer: Tokenizer, source: str = "") -> None:
        self._tokenizer, self.source = tokenizer, source

    @cached_property
    def ordinary(self) -> Sequence[int]:
        known, special = range(self._tokenizer.vocab_size), self._tokenizer.special_ids
        return [token for token in known if token not in special and self._is_whole(token)]

    def _is_whole(self, token: int) -> bool:
        """Return whether a token is whole characters. Half a one becomes other tokens when encoded again."""
        return self._tokenizer.token_text(token) is not None and "\ufffd" not in self._tokenizer.decode([token])

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode_raw(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class ServerTokenizer:
    """A server's tokenizer, by /tokenize and /detokenize, which Tilewise and vLLM have."""

    def __init__(self, url: str, model: str, client: httpx.Client) -> None:
        """Keep a client, which the caller closes."""
        self._url, self._model, self._client = url, model, client
        self.source = f"{url}/tokenize"

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
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise self._nothing(route, str(error) or type(error).__name__) from None
        if not answer.is_success:
            raise self._nothing(route, f"HTTP {answer.status_code}")
        return found

    def _nothing(self, route: str, why: str) -> InvalidConfig:
        return InvalidConfig(
            f"There is no tokenizer for {self._model}: it is no folder, and {self._url}/{route} does not serve "
            f"({why}). Name one with --tokenizer FOLDER, or do without: --skip-tokenizer-init."
        )


@contextmanager
def find_tokenizer(named: str | None, model: str, served: str, target: Target) -> Iterator[BenchTokenizer]:
    """Yield the tokenizer of `named`, else of the folder `model`, else the server's for the model `served`."""
    local = named if named is not None else model if model == DEMO or Path(model).is_dir() else None
    if local is not None:
        yield LocalTokenizer(Tokenizer.from_folder(find_model(local, weights=False)), local)
        return
    with target.client() as client:
        yield ServerTokenizer(target.url, served, client)
