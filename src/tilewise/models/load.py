"""The way from a checkpoint folder to a model: format and backbone are found, then the model pulls what it needs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones import Backbone, backbone_of
from tilewise.models.config import ModelConfig, flash_rule, model_config, vision_config
from tilewise.models.decoder import BlockFactory, InternVL
from tilewise.models.tile_encoder import TileEncoder
from tilewise.parallel.mesh import Mesh, Share
from tilewise.plan.floors import Matrices
from tilewise.platforms.forms import Dense, Form, Int8
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import DenseWeight, Store, Use, Weight, as_it_came, rounded_to_fp8
from tilewise.weights.checkpoint_source import CheckpointSource, SkippedSource
from tilewise.weights.files import known_names, open_files
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.formats import CheckpointFormat, Locate, format_of
from tilewise.weights.merged_files import merged
from tilewise.weights.quantization import layouts_of
from tilewise.weights.quantization.stored import Layouts, in_floats
from tilewise.weights.sources import RandomSource, ShapeSource, WatchedSource
from tilewise.weights.view import SourceOver, StoredLinear, TensorSource, View

logger = logging.getLogger("tilewise")

IN_A_STAGE = re.compile(r"^(vision\.layers\.\d+|projector|language\.model\.layers\.\d+)\.")
"""Internal names of modules that are quantised at all: not the head, nor what only some models have beside these."""

TOWER_PARTS = ("tower", "projector")
"""Parts that each vision worker has, and the engine beside them has not."""
PARTS = (*TOWER_PARTS, "embedding", "head", "attention", "mlp")
_BEGINNINGS = {
    "vision.": "tower",
    "projector.": "projector",
    "flash.": "projector",
    "language.model.embed_tokens.": "embedding",
    "language.model.layers.": "attention",
    "language.": "head",
}
_MLP = ".mlp."

Watch = Callable[[str, Tensor], None]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Architecture:
    """Everything that is known of a model before its weights."""

    folder: CheckpointFolder
    format: CheckpointFormat
    backbone: Backbone
    config: ModelConfig
    quantized: Layouts | None = None
    """Layouts in which the files keep matrices; None = all are in floats."""
    fp8: bool = False
    """True if matrices in floats are rounded to FP8 as they are read."""

    @classmethod
    def of(cls, folder: CheckpointFolder, flash_router: bool = True, quantization: str | None = None) -> Architecture:
        """Find out all that is known of a model before its weights.

        Without `flash_router` a Flash model is an ordinary one: every tile has all its tokens. `quantization="fp8"`
        rounds a checkpoint in floats; of one that is quantised, nothing more is rounded.
        """
        found, backbone = format_of(folder), backbone_of(folder)
        layouts = layouts_of(folder)
        config = _read_config(folder, backbone, flash_router)
        return cls(folder, found, backbone, config, layouts, fp8=quantization == "fp8" and layouts is None)

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
        encodes: bool = True,
    ) -> InternVL:
        """Build the model over any source of tensors, with its tower or without.

        `watch` is shown each tensor as it is read, under its internal name; `store` keeps matrices (default: as the
        ops do).
        """
        view = View(self._watched(source, watch), store=store or ops.store)
        return InternVL(view, self.config, self.backbone.block, mesh, ops, context, encodes)

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
        encodes: bool = True,
    ) -> InternVL:
        """Load the model with the checkpoint's weights. Raises InvalidCheckpoint for a tensor too many or too few."""
        files = merged(open_files(self.folder.path), self.folder.adapter)
        source = CheckpointSource(files, self._locate(files.names), dtype, device, on_read, self._layouts)
        model = self.build(source, ops, context, mesh, watch, source.tensors.giving_back(store or ops.store), encodes)
        # A rank that has not all of the model builds all of it once more, of shapes: what it left out counts as read.
        if mesh.layout.pipeline > 1 or mesh.layout.experts or not encodes:
            self.build(SkippedSource(source), ops, context=1, store=as_it_came)
        source.tensors.check_all_read()
        if self.fp8:
            logger.info("Matrices of tower, projector and decoder were rounded to FP8; the head stays as it is.")
        if self.quantized:
            self._check_described(source)
            logger.info("Matrices as they are kept: %s", source.described())
        return model

    def load_encoder(
        self, dtype: torch.dtype, ops: Ops, device: torch.device, watch: Watch | None, store: Store, dummy: bool = False
    ) -> TileEncoder:
        """Load the encoder of tiles alone: nothing of the decoder is read. `dummy` = random weights."""
        if dummy:
            return TileEncoder(View(self._watched(self.noise(dtype, device), watch), store=store), self.config, ops)
        files = merged(open_files(self.folder.path, language=False), self.folder.adapter, whole=False)
        known = known_names(self.folder.path)  # how tensors are spelled, those of other shards tell
        source = CheckpointSource(files, self._locate(known), dtype, device, layouts=self._layouts)
        view = View(self._watched(source, watch), store=source.tensors.giving_back(store))
        return TileEncoder(view, self.config, ops)

    def _watched(self, source: TensorSource, watch: Watch | None) -> TensorSource:
        source = self.read_as(source)
        return source if watch is None else WatchedSource(source, watch)

    def _check_described(self, source: CheckpointSource) -> None:
        """Warn of matrices that the config says are quantised and that are in floats.

        Raises InvalidCheckpoint if all matrices are: then the config is another checkpoint's.
        """
        found = list(dict.fromkeys(source.floats_instead))
        said = f"{self.folder.config.where} ({self.folder.quantization})"
        if not found:
            return
        if all(how == "floats" for _, how in source.kept):
            file = source.tensors.place(f"{found[0]}.weight")
            raise InvalidCheckpoint(
                f"{file}: {found[0]} is in floats, and so are all matrices, expected {self._layouts(found[0])} by "
                f"{said}: take config and weights of one checkpoint, or leave out quantization_config."
            )
        some = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
        logger.warning(
            "%s has %d matrices as quantised that stay floats, as the files have them: %s", said, len(found), some
        )

    def count_parameters(self, ops: Ops, tied: bool = False) -> int:
        """Count the parameters of a model of this config; no weights are needed."""
        absent = frozenset({"language.lm_head.weight"} if tied else ())
        shapes = ShapeSource(torch.bfloat16, absent=absent)
        self.build(shapes, ops, context=1, store=as_it_came)
        return shapes.parameters

    def count_bytes(self, ops: Ops, dtype: torch.dtype, store: Store | None = None, mesh: Mesh = Mesh()) -> int:
        """Count the bytes of the weights as a rank keeps them."""
        return sum(part.bytes for part in self.weigh(ops, dtype, store, mesh).values())

    def weigh(
        self,
        ops: Ops,
        dtype: torch.dtype,
        store: Store | None = None,
        mesh: Mesh = Mesh(),
        rounds: bool = False,
        block: BlockFactory | None = None,
        shapes: ShapeSource | None = None,
    ) -> dict[str, Matrices]:
        """Return what a rank keeps of each of `PARTS`, by building its model over shapes; no weight is read.

        `rounds` is True if matrices in floats become int8 as they are stored. `block` builds layers in place of the
        backbone's own; `shapes` are those of `self.shapes`, where they are there already.
        """
        sums = PartSums(store or ops.store, rounds)
        view = PartsView(self.read_as(shapes or self.shapes(dtype)), store=sums.store, sums=sums)
        InternVL(view, self.config, block or self.backbone.block, mesh, ops, context=1)
        return sums.parts

    def shapes(self, dtype: torch.dtype) -> ShapeSource:
        """Return the tensors that the files have, or will have, without their numbers."""
        return ShapeSource(dtype, locate=self._locate(known_names(self.folder.path)), layouts=self._layouts)

    def noise(self, dtype: torch.dtype, device: torch.device) -> RandomSource:
        """Return random numbers in the place of those of the files, kept as the files keep them."""
        return RandomSource(dtype, device, locate=self._locate(known_names(self.folder.path)), layouts=self._layouts)

    def read_as(self, source: TensorSource) -> TensorSource:
        """Return the source, its matrices rounded to FP8 as they are read if `fp8` says so."""
        return Fp8Source(source) if self.fp8 else source

    @property
    def _layouts(self) -> Layouts:
        return self.quantized or in_floats

    def _locate(self, names: Set[str]) -> Locate:
        return self.format(names, self.backbone.names(self.config.decoder))


@dataclass(frozen=True)
class Fp8Source(SourceOver):
    """A source over another, whose matrices are rounded to FP8 as they are read: those that `tilewise quantize --scheme
    fp8 --vision` rounds, in the blocks of tower and decoder and in the projector."""

    source: TensorSource

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        found = super().linear(module, outputs, inputs, bias)
        return replace(found, matrix=rounded_to_fp8(found.matrix)) if IN_A_STAGE.match(module) else found


def part_of(name: str) -> str:
    """Return the part of the model that a tensor or a module belongs to, by its internal name."""
    part = next(part for beginning, part in _BEGINNINGS.items() if name.startswith(beginning))
    return "mlp" if part == "attention" and _MLP in name else part


@dataclass
class PartSums:
    """The matrices that were kept so far, by part of the model."""

    store: Store
    rounds: bool
    """True if matrices in floats become int8 as they are stored."""
    parts: dict[str, Matrices] = field(default_factory=lambda: dict.fromkeys(PARTS, Matrices()))

    def add(self, part: str, found: Matrices) -> None:
        self.parts[part] += found

    def keep(self, prefix: str, parts: Sequence[Form], bias: Tensor | None, use: Use) -> Weight:
        weight = self.store(parts, bias, use)
        # A shared matrix that is kept as it came is a tensor that was counted when it was read.
        taken = 0 if use is Use.SHARED and isinstance(weight, DenseWeight) else weight.nbytes
        numbers = [(form.shape[0] * form.shape[1], self._is_int8(form)) for form in parts]
        floats, int8 = (sum(count for count, found in numbers if found is wanted) for wanted in (False, True))
        self.add(part_of(prefix), Matrices(taken, floats, int8))
        return weight

    def _is_int8(self, form: Form) -> bool:
        return isinstance(form, Int8) or (self.rounds and isinstance(form, Dense))


@dataclass(frozen=True)
class PartsView(View):
    """A view that counts what is read and kept below it."""

    sums: PartSums = field(default_factory=lambda: PartSums(as_it_came, False))

    def at(self, module: str | int) -> PartsView:
        prefix = f"{self.prefix}{module}."

        def keep(parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
            return self.sums.keep(prefix, parts, bias, use)

        return replace(self, prefix=prefix, store=keep)

    def tensor(self, name: str, *shape: int, share: Share | None = None) -> Tensor:
        found = super().tensor(name, *shape, share=share)
        self.sums.add(part_of(self.prefix + name), Matrices(found.nbytes))
        return found


def _read_config(folder: CheckpointFolder, backbone: Backbone, flash_router: bool) -> ModelConfig:
    config = folder.config
    layer = config.get("select_layer", config.get("vision_feature_layer", -1))
    if layer != -1:
        raise InvalidCheckpoint(f"{config.where}: select_layer is {layer}, expected -1, the last layer.")
    vision = vision_config(folder.vision)
    original = "llm_config" in config.values
    tile_size = config.whole("force_image_size", vision.image_size)
    version = str(config.get("ps_version", "v1")) if original else "v2"
    found = model_config(folder, vision, backbone.decoder_config(folder.text), tile_size, version)
    flash = flash_rule(config, found) if flash_router and config.get("flash_mode") else None
    return replace(found, flash=flash)
