"""A model's checkpoint: its small files are here, its weights are fetched when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tilewise.config import EngineConfig
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.hub import find_model


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose small files are here, and whose weights can be fetched.

    What is wrong with a model, or does not fit, shows in its small files, before gigabytes are fetched.
    """

    folder: CheckpointFolder
    fetch_weights: Callable[..., Path]
    """Function that brings the weights into the folder; with `language=False`, only files that hold some of vision."""
    tokenizer: Path
    """The folder of the tokenizer, which is the model's own unless another is asked for."""

    @classmethod
    def of(cls, config: EngineConfig) -> Checkpoint:
        """Return the model of a configuration, with its tokenizer. The errors are those of `find_model`."""
        found = cls.find(config.model, config.revision, config, config.mmproj)
        if config.tokenizer is None and config.tokenizer_revision is None:
            return found
        name, revision = config.tokenizer or config.model, config.tokenizer_revision
        if config.tokenizer in (None, config.model):
            revision = revision or config.revision
        folder = find_model(name, revision, config.hub, config.download_dir, config.hf_token, weights=False)
        return replace(found, tokenizer=folder)

    @classmethod
    def find(cls, model: str, revision: str | None, config: EngineConfig, mmproj: str | None = None) -> Checkpoint:
        """Return another model from where the configuration has models. The errors are those of `find_model`."""
        find = partial(find_model, model, revision, config.hub, config.download_dir, config.hf_token, mmproj=mmproj)
        folder = find(weights=False)
        return cls(CheckpointFolder.open(folder), find, folder)
