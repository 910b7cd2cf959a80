"""Quantisations: the ways in which checkpoints keep matrices other than in floats. Each file of this folder that has a
`METHOD` is one.

The layout of each layer is found from the small files alone (`Method.layouts`), before any weight is fetched; a
`StoredLayout` then reads one layer's tensors as one of the forms of `platforms.forms`. What several methods need to
read their descriptions is here, too: `QuantizationConfig`, and the names of modules in it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder, Section
from tilewise.weights.quantization.stored import Layouts, StoredLayout

_OF_THE_DECODER = re.compile(r"(^|\.)language_model\.(.*\.)?layers\.\d+\.|^model\.layers\.\d+\.")
_ROUTER = re.compile(r"\.mlp\.gate$|\.router$|norm\d?$")


@dataclass(frozen=True)
class Method:
    """A method of quantisation. Files of this folder define one each, as `METHOD`."""

    names: tuple[str, ...]
    """Names in configs: `quantization_config.quant_method`, or "ascend" for ModelSlim's description."""
    layouts: Callable[[CheckpointFolder], Layouts]
    """Function that finds a checkpoint's layouts; it raises InvalidCheckpoint where one of them cannot be read."""


def method_of(folder: CheckpointFolder) -> str | None:
    """Return the method of a checkpoint, by what its small files say or by its tensors' names; None = in floats."""
    if folder.quantization is None and any(name.endswith("_blocks") for name in known_names(folder.path)):
        return "mxfp4"
    return folder.quantization


def layouts_of(folder: CheckpointFolder) -> Layouts | None:
    """Return the layouts of a checkpoint, None if it is in floats. Raises InvalidCheckpoint for an unknown method."""
    method = method_of(folder)
    if method is None:
        return None
    known: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        found: Method | None = getattr(importlib.import_module(f"{__name__}.{module.name}"), "METHOD", None)
        known |= dict.fromkeys(found.names, found) if found else {}
    if method not in known:
        raise InvalidCheckpoint(
            f"{folder.path} is a checkpoint quantised by {method}, and what can be read is {', '.join(sorted(known))}: "
            "take the same model in one of these or in bfloat16, with --quantization int8 to halve it."
        )
    return known[method].layouts(folder)


def check_method(folder: CheckpointFolder, wanted: str | None) -> None:
    """Raise InvalidConfig where a configuration names another quantisation than the files have."""
    if wanted in (None, "int8"):
        return
    found = method_of(folder)
    if wanted == "fp8" and found is None:
        return
    if found is None:
        raise InvalidConfig(
            f"quantization={wanted!r}, but {folder.path} is in floats: take int8 or fp8, which round them as they are "
            "loaded, `tilewise quantize`, which writes a quantised copy, or a checkpoint that is quantised."
        )
    if wanted.removesuffix("_marlin") != found:
        raise InvalidConfig(
            f"quantization={wanted!r}, but {folder.path} is quantised by {found}: leave it out, since that is found "
            "from the files."
        )


@dataclass(frozen=True)
class QuantizationConfig(Section):
    """The description of a quantised checkpoint, or a part of it."""

    @classmethod
    def of(cls, folder: CheckpointFolder) -> QuantizationConfig:
        """Return the description in config.json, or in a file of its own. Raises InvalidCheckpoint if it is missing."""
        found = folder.quantization_config
        for name in ("quantize_config.json", "quant_config.json"):
            if found is None and (folder.path / name).exists():
                found = folder.optional(name)
        if found is None:
            raise InvalidCheckpoint(f"{folder.config.where} has no quantization_config.")
        return cls(found.values, found.where)

    def refused(self, key: str, found: object, supported: str) -> InvalidCheckpoint:
        """Return the error for a value that cannot be read; `supported` are those that can."""
        return InvalidCheckpoint(
            f"{self.where}: {key} is {found!r:.80}, and what can be read is {supported}: take another quantisation of "
            "the model, or the model in bfloat16."
        )

    def settings_by_pattern(self, key: str) -> dict[str, dict[str, Any]]:
        """Return what single layers have of their own, by a pattern of their names. Raises InvalidCheckpoint."""
        found = self.get(key) or {}
        if not isinstance(found, dict):
            raise self.refused(key, found, "an object")
        for pattern, own in found.items():
            if not isinstance(own, dict | None):
                raise self.refused(f"{key}: {pattern}", own, "an object")
            try:
                re.compile(pattern.removeprefix("-:").removeprefix("+:"))  # the marks of GPTQModel
            except re.error as error:
                raise self.refused(f"{key}: {pattern}", str(error), "a regular expression") from None
        return {pattern: own or {} for pattern, own in found.items()}

    def group_size(self, key: str = "group_size") -> int | None:
        """Return how many inputs share a scale; None = all of an output (-1 or 0 in configs)."""
        if self.get(key) in (-1, 0):
            return None
        size = self.whole(key, 128)
        if size % 2:
            raise self.refused(key, size, "an even number")
        return size


def layouts_where(
    folder: CheckpointFolder,
    layout: StoredLayout,
    but: tuple[str, ...] = (),
    head: bool = False,
    mark: str | None = None,
) -> Layouts:
    """Return one layout for all modules that the files keep in it: those with a tensor whose name ends with `mark`.

    That is the layout's `suffix` where no matrix of floats has it. Whatever a description says, a module is in floats
    without such a tensor, and not with it. Before there are files, the decoder's layers have the layout, but for
    modules with one of `but` in their name; with `head`, the output head has it, too.

    Raises InvalidCheckpoint for files that have no such tensor, though their description asks for some.
    """
    names, mark = known_names(folder.path), mark or layout.suffix
    if names and not any(name.endswith(mark) for name in names):
        raise InvalidCheckpoint(
            f"{folder.config.where} says that the weights are quantised by {folder.quantization} ({layout}), and "
            f"{folder.path} has no tensor whose name ends with {mark}, as expected: take config and weights of one "
            "checkpoint, or leave out what describes them as quantised."
        )

    def find(module: str) -> StoredLayout | None:
        if names:
            return layout if f"{module}{mark}" in names else None
        if module.endswith("lm_head"):
            return layout if head else None
        inside = _OF_THE_DECODER.search(module) and not _ROUTER.search(module)
        return layout if inside and not any(part in module for part in but) else None

    return find


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
