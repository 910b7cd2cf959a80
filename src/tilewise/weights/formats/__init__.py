"""Checkpoint formats: how a kind of checkpoint spells config and tensor names. One file each; the folder registers."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Set
from dataclasses import dataclass

from tilewise.errors import InvalidCheckpoint, did_you_mean
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import NameTable, Source

Locate = Callable[[str], Source]


@dataclass(frozen=True)
class CheckpointFormat:
    """Each file of this folder defines one, as `FORMAT`."""

    architecture: str
    vision_keys: tuple[str, str]
    """How its vision_config spells (bias on q, k, v; norm on q, k)."""
    locate: Callable[[Set[str], NameTable], Locate]
    """(tensor names in the files, the backbone's names) -> where each of our tensors is."""


def format_of(folder: CheckpointFolder) -> CheckpointFormat:
    known: dict[str, CheckpointFormat] = {}
    for module in pkgutil.iter_modules(__path__):
        found: CheckpointFormat = importlib.import_module(f"{__name__}.{module.name}").FORMAT
        known[found.architecture] = found
    if folder.architecture not in known:
        raise InvalidCheckpoint(
            f"{folder.config.where}: the architecture is {folder.architecture!r}, supported are "
            f"{', '.join(known)}.{did_you_mean(folder.architecture, known)}"
        )
    return known[folder.architecture]
