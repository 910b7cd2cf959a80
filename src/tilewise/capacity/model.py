"""The model of a plan: where its small files come from, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import torch

from tilewise.capacity.platform import StatedPlatform
from tilewise.capacity.published import AT_LOAD, as_quantised, near_names, published, scheme_named
from tilewise.capacity.weights import Weigher
from tilewise.config import EngineConfig, Quantization
from tilewise.errors import DownloadFailed, InvalidConfig, UnknownModel
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.spec import tiling_of
from tilewise.models.config import ModelConfig
from tilewise.models.load import Architecture
from tilewise.platforms.base import Platform
from tilewise.quantize import FP8
from tilewise.runner.build import check_kv_dtype, chosen_dtype, draft_architecture
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import check_method


@dataclass(frozen=True, slots=True)
class Files:
    """The small files of a model, and where they come from."""

    folder: CheckpointFolder
    model: str
    """Name of the model as a server takes it: a folder or an id."""
    said: str
    """Origin of the files, in words."""
    scheme: str | None = None
    """Scheme by which the checkpoint has to be quantised first; None = it is used as it is."""
    to_be: bool = False
    """True if the files were made for this plan."""
    stored: str | None = None
    """The scheme that the name of a published checkpoint says."""


@dataclass(frozen=True)
class PlannedModel:
    """A model as it would be loaded: its options, its number format and what counts its weights."""

    files: Files
    config: EngineConfig
    """The options that were asked for, with `quantization` as the engine knows it."""
    tiling: Tiling
    dtype: torch.dtype
    weigher: Weigher
    draft: Weigher | None = None

    @property
    def sizes(self) -> ModelConfig:
        return self.weigher.architecture.config


def find_model(config: EngineConfig, quantization: str | None, work: Path) -> Files:
    """Return the small files of a model, or those that a published one of this name has; nothing is fetched for these.

    `quantization` is as on the command line; `work` is a folder for files that are made. Raises UnknownModel and
    InvalidConfig.
    """
    name = config.model
    local = name == "demo" or Path(name).expanduser().exists() or ".gguf" in name.lower()
    known = None if local else published(name)
    if known is not None:
        files = Files(known.write(_new(work)), known.id, known.said, to_be=True, stored=known.stored)
    else:
        files = Files(_found(config, name), name, "the checkpoint's own files")
    if quantization is None or files.folder.quantization is not None or quantization in AT_LOAD:
        return files
    scheme = scheme_named(quantization)
    return Files(as_quantised(files.folder, scheme, _new(work)), files.model, files.said, scheme, to_be=True)


def _found(config: EngineConfig, name: str) -> CheckpointFolder:
    try:
        return Checkpoint.find(name, config.revision, config, config.mmproj).folder
    except (UnknownModel, DownloadFailed) as error:
        raise type(error)(f"{error}{near_names(name)}") from None


def _new(work: Path) -> Path:
    return Path(mkdtemp(dir=work))


def planned_model(config: EngineConfig, quantization: str | None, platform: Platform, work: Path) -> PlannedModel:
    """Plan a model from its small files. Raises InvalidConfig, InvalidCheckpoint and UnknownModel, as a start would."""
    files = find_model(config, quantization, work)
    config = replace(config, quantization=_at_load(files, quantization))
    if isinstance(platform, StatedPlatform) and config.gpu_memory_utilization is None:
        # Said outright, so that no variable for the processor of this machine counts.
        config = replace(config, gpu_memory_utilization=platform.utilization)
    architecture = Architecture.of(files.folder, config.flash_router, config.quantization)
    if config.dtype == "auto" and isinstance(platform, StatedPlatform):
        dtype = architecture.dtype
    else:
        dtype = chosen_dtype(config, architecture, platform)
    check_kv_dtype(config, dtype)
    weigher = Weigher(architecture, platform.ops(), dtype, config.quantization, files.to_be)
    tiling = tiling_of(files.folder).override(config.mm_processor_kwargs)
    return PlannedModel(files, config, tiling, dtype, weigher, _draft(config, architecture, weigher, work))


def _at_load(files: Files, wanted: str | None) -> Quantization | None:
    """Return `EngineConfig.quantization`. Raises InvalidConfig where the files are quantised in another way."""
    if wanted == "int8":
        return "int8"
    if wanted == FP8 and files.folder.quantization is None:
        return "fp8"
    if wanted is None or files.scheme is not None:
        return None
    if not files.to_be:
        check_method(files.folder, wanted)
    elif files.stored not in (wanted, scheme_named(wanted)):
        raise InvalidConfig(
            f"--quantization {wanted}, but {files.folder.quantization} is what the model's name says: leave it out."
        )
    return None


def _draft(config: EngineConfig, target: Architecture, weigher: Weigher, work: Path) -> Weigher | None:
    wanted = config.speculation
    if wanted is None or wanted.model is None:
        return None
    files = find_model(replace(config, model=wanted.model, revision=None, mmproj=None), None, work)
    architecture = draft_architecture(files.folder, target, config)
    return Weigher(architecture, weigher.ops, weigher.dtype, config.quantization, files.to_be)
