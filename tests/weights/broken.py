"""Making checkpoints wrong in one place, and trying to load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tilewise.errors import InvalidCheckpoint, TilewiseError
from tilewise.models.decoder import InternVL
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import CheckpointFolder

REMEDIES = (
    "fetch the file again, or write it again if it is your own",
    "take config and weights of one checkpoint",
    "fetch what belongs to it",
)


def load(folder: Path) -> InternVL:
    return Architecture.of(CheckpointFolder.open(folder)).load(torch.float32, Ops(), context=64)


def refused(kind: type[TilewiseError], action: Callable[[], Any], *names: str) -> str:
    """The message of the error that `action` raises, which has to contain all `names`."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    message = str(caught.value)
    for name in names:
        assert name in message
    return message


def damaged(folder: Path, *names: str) -> str:
    """The message for a checkpoint with a damaged layer: file, what was expected, and what to do are always in it."""
    message = refused(InvalidCheckpoint, lambda: load(folder), *names)
    assert any(str(path) in message for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    assert any(word in message for word in ("expected", "Expected", "the model needs as", "its quantisation asks for"))
    assert any(remedy in message for remedy in REMEDIES)
    return message


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite model.safetensors of a folder in one shard."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def change_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json; `llm_config={...}` and other objects are merged into what is there."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in values.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
