"""Backbones: the decoder families. The folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from tilewise.errors import InvalidCheckpoint, did_you_mean
from tilewise.models.config import DecoderConfig
from tilewise.models.decoder import BlockFactory, plain_block
from tilewise.weights.folder import CheckpointFolder, Section
from tilewise.weights.names import NameTable


@dataclass(frozen=True)
class Backbone:
    """The properties that set one decoder family apart. Each file of this folder has some, as `BACKBONES`."""

    architecture: str
    """`llm_config.architectures[0]` of the original format."""
    model_type: str
    """`text_config.model_type` of the -hf format."""
    decoder_config: Callable[[Section], DecoderConfig]
    names: Callable[[DecoderConfig], NameTable] = lambda _: NameTable()
    """Rows of the name table for the tensors that the family's files spell or pack otherwise than Llama's."""
    block: BlockFactory = plain_block


def all_backbones() -> list[Backbone]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return sorted(chain.from_iterable(module.BACKBONES for module in modules), key=lambda one: one.model_type)


def backbone_of(folder: CheckpointFolder) -> Backbone:
    """Return the backbone that a checkpoint's config names. Raises InvalidCheckpoint when there is none."""
    text = folder.text
    architecture, model_type = text.first("architectures"), text.get("model_type")
    known = all_backbones()
    for backbone in known:
        if architecture == backbone.architecture or (architecture is None and model_type == backbone.model_type):
            return backbone
    names = [backbone.architecture for backbone in known]
    raise InvalidCheckpoint(
        f"{text.where}: the language model is {architecture or model_type!r}, supported are {', '.join(names)}."
        f"{did_you_mean(architecture or '', names)}"
    )
