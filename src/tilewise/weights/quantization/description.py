"""Reading of `quantization_config`, and of the names of modules in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder, Section
from tilewise.weights.quantization import Layouts, StoredLayout

_OF_THE_DECODER = re.compile(r"(^|\.)language_model\.(.*\.)?layers\.\d+\.|^model\.layers\.\d+\.")
_ROUTER = re.compile(r"\.mlp\.gate$|\.router$|norm\d?$")


def quantization_section(folder: CheckpointFolder) -> Section:
    """Return the description of a quantised checkpoint.

    It is in config.json, at its top or with the language model's, or in a file of its own. Raises InvalidCheckpoint
    where it is missing.
    """
    for where in (folder.config, *(Section(found, folder.config.where) for found in _inner(folder.config))):
        if isinstance(where.get("quantization_config"), dict):
            return where.section("quantization_config")
    for name in ("quantize_config.json", "quant_config.json"):
        if (folder.path / name).exists():
            return folder.optional(name)
    raise InvalidCheckpoint(f"{folder.config.where} has no quantization_config.")


def _inner(config: Section) -> list[dict[str, Any]]:
    found = [config.get(key) for key in ("llm_config", "text_config")]
    return [section for section in found if isinstance(section, dict)]


def refused(config: Section, key: str, found: object, supported: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{config.where}: {key} is {found!r:.80}, and what can be read is {supported}: take another quantisation of "
        "the model, or the model in bfloat16."
    )


def settings_by_pattern(config: Section, key: str) -> dict[str, dict[str, Any]]:
    """Return what single layers have of their own, by a pattern of their names. Raises InvalidCheckpoint."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise refused(config, key, found, "an object")
    for pattern, own in found.items():
        if not isinstance(own, dict | None):
            raise refused(config, f"{key}: {pattern}", own, "an object")
        try:
            re.compile(pattern.removeprefix("-:").removeprefix("+:"))  # the marks of GPTQModel
        except re.error as error:
            raise refused(config, f"{key}: {pattern}", str(error), "a regular expression") from None
    return {pattern: own or {} for pattern, own in found.items()}


def group_size(config: Section, key: str) -> int | None:
    """Return how many inputs share a scale; None = all of an output (-1 or 0 in configs)."""
    if config.get(key) in (-1, 0):
        return None
    size = config.whole(key, 128)
    if size % 2:
        raise refused(config, key, size, "an even number")
    return size


def listed_modules(config: Section, key: str) -> tuple[str, ...]:
    """Return a list of names of modules, or of parts of names. Raises InvalidCheckpoint where it is no such list."""
    config.first(key)  # which checks that it is a list of names
    return tuple(config.get(key, ()))


def layouts_where(
    folder: CheckpointFolder, layout: StoredLayout, but: tuple[str, ...] = (), head: bool = False
) -> Layouts:
    """Return one layout for all modules whose matrix the files have in it.

    Before there are files, the decoder's layers have it, but for modules with one of `but` in their name; with `head`,
    the output head has it, too.
    """
    names = known_names(folder.path)
    expect_some(folder, layout, names, layout.suffix)

    def find(module: str) -> StoredLayout | None:
        if names:
            return layout if f"{module}{layout.suffix}" in names else None
        if module.endswith("lm_head"):
            return layout if head else None
        inside = _OF_THE_DECODER.search(module) and not _ROUTER.search(module)
        return layout if inside and not any(part in module for part in but) else None

    return find


def expect_some(folder: CheckpointFolder, layout: StoredLayout, names: Collection[str], ending: str) -> None:
    """Raise InvalidCheckpoint for files that have no tensor with this ending, though their description asks for some.

    Before there are files, nothing is known.
    """
    if names and not any(name.endswith(ending) for name in names):
        raise InvalidCheckpoint(
            f"{folder.config.where} says that the weights are quantised by {folder.quantization} ({layout}), and "
            f"{folder.path} has no tensor whose name ends with {ending}, as expected: take config and weights of one "
            "checkpoint, or leave out what describes them as quantised."
        )


_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings)$")
_LANGUAGE = ("model.language_model.", "language_model.model.", "model.language_model.model.")
_HEAD = re.compile(r"^(model\.)?(language_model\.)?(lm_head|output)$")


def module_class(module: str) -> str:
    """Return the torch class of a module with a matrix, by its name in the files."""
    return "Embedding" if _EMBEDDING.search(module) else "Linear"


def spellings(module: str) -> Iterator[str]:
    """Yield all names that a module of the files goes by, its own first.

    transformers has renamed InternVL's modules in memory and still saves them under their old names; a language model
    that was quantised by itself is named without what surrounds it.
    """
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
    """A set of modules, by names and by regular expressions `re:...`, which match from a name's first character."""

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
