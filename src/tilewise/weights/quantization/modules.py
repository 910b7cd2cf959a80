"""Modules as descriptions of quantised checkpoints name them, which is not always as the files do.

transformers has renamed InternVL's modules in memory and still saves them under their old names; a language model that
was quantised by itself is named without what surrounds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tilewise.errors import InvalidCheckpoint

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings)$")
_LANGUAGE = ("model.language_model.", "language_model.model.", "model.language_model.model.")
_HEAD = re.compile(r"^(model\.)?(language_model\.)?(lm_head|output)$")


def module_class(module: str) -> str:
    """The torch class of a module with a matrix, by its name in the files."""
    return "Embedding" if _EMBEDDING.search(module) else "Linear"


def spellings(module: str) -> Iterator[str]:
    """All names that a module of the files goes by, its own first."""
    yield module
    bare = module.removeprefix("model.")
    yield bare if bare != module else f"model.{module}"
    if head := _HEAD.match(module):
        yield from (head[3], f"language_model.{head[3]}")
    for prefix in _LANGUAGE:
        if module.startswith(prefix):
            inner = module.removeprefix(prefix)
            yield from (f"model.{inner}", *(other + inner for other in _LANGUAGE if other != prefix))


class Pattern:
    """Names of modules, and regular expressions that begin with `re:` and match from a name's first character."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        self._exact = frozenset(name for name in names if not name.startswith("re:"))
        self._matching = [_compiled(name, where) for name in names if name.startswith("re:")]

    def matches(self, module: str) -> bool:
        return any(name in self._exact or any(one.match(name) for one in self._matching) for name in spellings(module))


def _compiled(name: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(name.removeprefix("re:"))
    except re.error as error:
        raise InvalidCheckpoint(f"{where}: {name!r:.80} is no regular expression ({error}).") from None
