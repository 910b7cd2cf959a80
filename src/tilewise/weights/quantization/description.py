"""What `quantization_config` says, and which modules it is about."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder, Section
from tilewise.weights.quantization import Layout, Layouts

_OF_THE_DECODER = re.compile(r"(^|\.)language_model\.(.*\.)?layers\.\d+\.|^model\.layers\.\d+\.")
_ROUTER = re.compile(r"\.mlp\.gate$|\.router$|norm\d?$")


def quantization_section(folder: CheckpointFolder) -> Section:
    """The description of a quantised checkpoint: in config.json, at its top or with the language model's, or in a file
    of its own."""
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


def group_size(config: Section, key: str) -> int | None:
    """Inputs that share a scale, None for all of an output (-1 in configs)."""
    if config.get(key) in (-1, 0):
        return None
    size = config.whole(key, 128)
    if size % 2:
        raise refused(config, key, size, "an even number")
    return size


def listed_modules(config: Section, key: str) -> tuple[str, ...]:
    """Names, or parts of names, of modules that stay in floats."""
    config.first(key)  # which checks that it is a list of names
    return tuple(config.get(key, ()))


def layouts_where(folder: CheckpointFolder, layout: Layout, but: tuple[str, ...] = (), head: bool = False) -> Layouts:
    """One layout for all modules whose matrix the files have in it; before there are files, for the decoder's layers.

    `but`: parts of names of modules that stay in floats; `head`: whether the output head is quantised, too.
    """
    names = known_names(folder.path)
    expect_some(folder, layout, names, layout.suffix)

    def find(module: str) -> Layout | None:
        if names:
            return layout if f"{module}{layout.suffix}" in names else None
        if module.endswith("lm_head"):
            return layout if head else None
        inside = _OF_THE_DECODER.search(module) and not _ROUTER.search(module)
        return layout if inside and not any(part in module for part in but) else None

    return find


def expect_some(folder: CheckpointFolder, layout: Layout, names: Collection[str], ending: str) -> None:
    """Raise InvalidCheckpoint for files that have no tensor with this ending, though their description asks for some.

    Before there are files, nothing is known."""
    if names and not any(name.endswith(ending) for name in names):
        raise InvalidCheckpoint(
            f"{folder.config.where} says that the weights are quantised by {folder.quantization} ({layout}), and "
            f"{folder.path} has no tensor whose name ends with {ending}, as expected: take config and weights of one "
            "checkpoint, or leave out what describes them as quantised."
        )
