"""Checkpoint formats: how a kind of checkpoint names and packs its tensors. Each has a file in this folder, which is
found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Set
from dataclasses import dataclass

from tilewise.weights.architectures import format_name
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import NameTable, TensorRef

Locate = Callable[[str], TensorRef]


@dataclass(frozen=True)
class CheckpointFormat:
    """A way to name and pack tensors. Each file of this folder defines one, as `FORMAT`."""

    locate: Callable[[Set[str], NameTable], Locate]
    """Function (tensor names in the files, the backbone's table) -> (internal name -> place in the files)."""


def format_of(folder: CheckpointFolder) -> CheckpointFormat:
    """Return the format of a checkpoint's architecture. Raises InvalidCheckpoint as `format_name` does."""
    found: CheckpointFormat = importlib.import_module(f"{__name__}.{format_name(folder)}").FORMAT
    return found
