"""From a checkpoint folder to a model: format and backbone are found, then the model pulls what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones import Backbone, backbone_of
from tilewise.models.config import ModelConfig, model_config, vision_config
from tilewise.models.flash import flash_rule
from tilewise.models.internvl import InternVL
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Ops, Store, Weight
from tilewise.platforms.weights import DenseWeight, as_it_came
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.formats import CheckpointFormat, format_of
from tilewise.weights.view import CheckpointSource, ShapeSource, TensorSource, View, WatchedSource

Watch = Callable[[str, Tensor], None]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Architecture:
    """Everything that is known of a model before its weights."""

    folder: CheckpointFolder
    format: CheckpointFormat
    backbone: Backbone
    config: ModelConfig

    @classmethod
    def of(cls, folder: CheckpointFolder, flash_router: bool = True) -> Architecture:
        """Without its router a Flash model is an ordinary one: every tile has all its tokens."""
        layout, backbone = format_of(folder), backbone_of(folder)
        _check_quantization(folder)
        return cls(folder, layout, backbone, _read_config(folder, layout, backbone, flash_router))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the checkpoint was saved in, by its config."""
        name = self.folder.config.get("torch_dtype") or self.folder.config.get("dtype", "bfloat16")
        if not isinstance(name, str) or name not in _DTYPES:
            raise InvalidCheckpoint(
                f"{self.folder.config.where}: torch_dtype is {name!r}, expected {', '.join(_DTYPES)}."
            )
        return _DTYPES[name]

    def build(
        self,
        source: TensorSource,
        ops: Ops,
        context: int,
        mesh: Mesh = Mesh(),
        watch: Watch | None = None,
        store: Store | None = None,
    ) -> InternVL:
        """The model over any source of tensors.

        `watch` is shown each tensor as it is read, under its internal name; `store` keeps matrices (default: as the
        ops do).
        """
        if watch is not None:
            source = WatchedSource(source, watch)
        view = View(source, store=store or ops.store)
        return InternVL(view, self.config, self.backbone.block, mesh, ops, context)

    def load(
        self,
        dtype: torch.dtype,
        ops: Ops,
        context: int,
        device: torch.device = torch.device("cpu"),
        on_read: Callable[[int], None] = lambda _: None,
        mesh: Mesh = Mesh(),
        watch: Watch | None = None,
        store: Store | None = None,
    ) -> InternVL:
        """The model with the weights of the checkpoint. Raises InvalidCheckpoint for a tensor too many or too few."""
        files = SafetensorFiles(self.folder.path)
        locate = self.format.locate(files.names, self.backbone.names(self.config.decoder))
        source = CheckpointSource(files, locate, dtype, device, on_read)
        model = self.build(source, ops, context, mesh, watch, source.giving_back(store or ops.store))
        source.finish()
        return model

    def count_parameters(self, ops: Ops, tied: bool = False) -> int:
        """Parameters of a model of this config; no weights needed."""
        absent = frozenset({"language.lm_head.weight"} if tied else ())
        shapes = ShapeSource(torch.bfloat16, absent=absent)
        self.build(shapes, ops, context=1, store=as_it_came)
        return shapes.parameters

    def count_bytes(self, ops: Ops, dtype: torch.dtype, store: Store | None = None) -> int:
        """Bytes of the weights as they are kept."""
        shapes = ShapeSource(dtype)
        kept = Kept(store or ops.store)
        self.build(shapes, ops, context=1, store=kept)
        return shapes.parameters * dtype.itemsize + kept.change


@dataclass
class Kept:
    """A store that counts how many bytes more, or fewer, are kept than were read."""

    store: Store
    change: int = 0

    def __call__(self, parts: Sequence[Tensor], bias: Tensor | None, shared: bool = False) -> Weight:
        weight = self.store(parts, bias, shared)
        if not isinstance(weight, DenseWeight):
            freed = 0 if shared else sum(part.nbytes for part in parts)
            self.change += weight.nbytes - freed - (0 if bias is None else bias.nbytes)
        return weight


_READ_QUANTIZED = ("mxfp4",)
"""Methods whose files are read: GPT-OSS's experts come in MXFP4, and are kept in bfloat16."""


def _check_quantization(folder: CheckpointFolder) -> None:
    """Raise InvalidCheckpoint for weights in a quantised form, before any of them is fetched or read."""
    method = folder.quantization
    if method is not None and method not in _READ_QUANTIZED:
        raise InvalidCheckpoint(
            f"{folder.path} is a checkpoint quantised by {method}, and no such form can be read yet (only "
            f"{', '.join(_READ_QUANTIZED)}): take the same model in bfloat16, with --quantization int8 to halve it."
        )


def _read_config(
    folder: CheckpointFolder, layout: CheckpointFormat, backbone: Backbone, flash_router: bool
) -> ModelConfig:
    config = folder.config
    layer = config.get("select_layer", config.get("vision_feature_layer", -1))
    if layer != -1:
        raise InvalidCheckpoint(f"{config.where}: select_layer is {layer}, expected -1, the last layer.")
    vision = vision_config(folder.vision, *layout.vision_keys)
    original = "llm_config" in config.values
    tile_size = config.whole("force_image_size", vision.image_size) if original else vision.image_size
    version = str(config.get("ps_version", "v1")) if original else "v2"
    found = model_config(folder, vision, backbone.decoder_config(folder.text), tile_size, version)
    flash = flash_rule(config, found) if flash_router and config.get("flash_mode") else None
    return replace(found, flash=flash)
