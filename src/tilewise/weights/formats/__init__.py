"""Checkpoint formats: how a kind of checkpoint names and packs its tensors. One file each; the folder registers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Set
from dataclasses import dataclass

from tilewise.weights.architectures import format_name
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import NameTable, Source

Locate = Callable[[str], Source]


@dataclass(frozen=True)
class CheckpointFormat:
    """Each file of this folder defines one, as `FORMAT`."""

    locate: Callable[[Set[str], NameTable], Locate]
    """(tensor names in the files, the backbone's names) -> where each of our tensors is."""


def format_of(folder: CheckpointFolder) -> CheckpointFormat:
    """The format of a checkpoint's architecture. Raises InvalidCheckpoint as `format_name` does."""
    found: CheckpointFormat = importlib.import_module(f"{__name__}.{format_name(folder)}").FORMAT
    return found
