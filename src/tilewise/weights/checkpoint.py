"""Checkpoint: a model's small files at hand, its large ones a call away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.hub import find_model


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is wrong with a model, or does not fit, shows in its small files, before gigabytes are fetched."""

    folder: CheckpointFolder
    fetch_weights: Callable[[], Path]
    """Brings the weights into the folder."""

    @classmethod
    def find(cls, model: str, revision: str | None, hub: str | None, cache: str | None) -> Checkpoint:
        """The errors are those of `find_model`."""
        find = partial(find_model, model, revision, hub, cache)
        return cls(CheckpointFolder.open(find(weights=False)), find)
