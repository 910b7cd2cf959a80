"""Matrices of a checkpoint that are to be quantised, found by building the model over shapes alone."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.models.load import IN_A_STAGE, Architecture
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import as_it_came
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.formats import Locate
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization import FLOATS
from tilewise.weights.sources import dense
from tilewise.weights.view import StoredLinear, TensorSource

_OF_EXPERT = re.compile(r"\.experts\.\d+\.")
_CLOSES_MLP = re.compile(r"\.(down_proj|fc2)$")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer of the quantised checkpoint, and where the floats of its matrix are."""

    module: str
    """Beginning of the names of its tensors in the quantised files."""
    source: TensorRef
    outputs: int
    inputs: int
    stage: str
    """The part of the model that it belongs to, by its internal name: `language.model.layers.3`, `projector`."""
    reader: str
    """One of the internal modules that are made of it; all of them read the same activations."""

    @property
    def of_expert(self) -> bool:
        """True if it is a layer of an expert, which only some tokens reach."""
        return _OF_EXPERT.search(self.reader) is not None

    @property
    def closes_mlp(self) -> bool:
        """True if it is the last layer of an MLP, which reads the MLP's inner activations."""
        return _CLOSES_MLP.search(self.reader) is not None

    def read(self, files: SafetensorFiles) -> Tensor:
        """Return the matrix [outputs, inputs] in the dtype of the files."""
        if self.source.is_whole:
            return files.tensor(self.source.name)
        return self.source.read(files.stored(self.source.name))


@dataclass(frozen=True)
class Places:
    """The places that a model's tensors have in the files, by internal names."""

    folder: Path
    names: Set[str]
    locate: Locate

    @classmethod
    def of(cls, architecture: Architecture, names: Set[str]) -> Places:
        language = architecture.backbone.names(architecture.config.decoder)
        return cls(architecture.folder.path, names, architecture.format.locate(names, language))

    def all(self, name: str) -> list[TensorRef]:
        """Return every place that a tensor may have, the usual one first."""
        source: TensorRef | None = self.locate(name)
        places = []
        while source is not None:
            places.append(source)
            source = source.otherwise
        return places

    def find(self, name: str) -> TensorRef | None:
        """Return the first of these places that the files have, or None."""
        return next((source for source in self.all(name) if source.name in self.names), None)

    def found(self, name: str) -> TensorRef:
        """Return the first of these places that the files have. Raises InvalidCheckpoint where there is none."""
        source = self.find(name)
        if source is None:
            usual = self.all(name)[0].name
            raise InvalidCheckpoint(f"{self.folder} has no tensor {usual}, which the model needs as {name}.")
        return source


@dataclass
class LinearRecorder:
    """A source of shapes for a model under construction, which notes the modules that are linear layers."""

    dtype: torch.dtype
    places: Places
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Internal module -> its outputs and inputs."""

    def has(self, name: str) -> bool:
        return self.places.find(name) is not None

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.places.found(name)
        return torch.empty(*shape, dtype=self.dtype, device="meta")

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        self.linears[module] = (outputs, inputs)
        return dense(self, module, outputs, inputs, bias)


def find_matrices(architecture: Architecture, files: SafetensorFiles, vision: bool) -> list[Matrix]:
    """Return the matrices to be quantised, in the order in which a picture and its prompt meet them.

    Norms, embeddings, the head and routers are not among them, nor without `vision` the matrices of tower and
    projector. Raises InvalidCheckpoint for a checkpoint that is not whole or quantised already, InvalidConfig where
    matrices are kept in a way that no quantised format has.
    """
    places = Places.of(architecture, files.names)
    shapes = LinearRecorder(torch.bfloat16, places)
    source: TensorSource = shapes
    architecture.build(source, Ops(), context=1, store=as_it_came)
    found: dict[str, Matrix] = {}
    for reader, (outputs, inputs) in shapes.linears.items():
        stage = IN_A_STAGE.match(reader)
        if stage is None or not (vision or stage[1].startswith("language")):
            continue
        matrix = _matrix(places, files, reader, outputs, inputs, stage[1])
        found.setdefault(matrix.module, matrix)
    return list(found.values())


def module_of(places: Places, reader: str) -> str:
    """Return the name that the quantised files have for the layer of an internal module."""
    source = places.found(f"{reader}.weight")
    apart = source.item is None and not source.transposed
    return source.module if apart else places.all(f"{reader}.weight")[0].module


def _matrix(places: Places, files: SafetensorFiles, reader: str, outputs: int, inputs: int, stage: str) -> Matrix:
    """Return the matrix of the files that an internal module is made of, or is a part of."""
    usual, source = places.all(f"{reader}.weight")[0], places.found(f"{reader}.weight")
    stored = files.stored(source.name).get_shape()
    if files.dtype(source.name) not in FLOATS:
        raise InvalidCheckpoint(
            f"The tensor {source.name} is of type {files.dtype(source.name)}, expected {' or '.join(FLOATS)}: the "
            "checkpoint is quantised already; take the one in floats."
        )
    if source.item is None and not source.transposed:
        shape, kept = stored, TensorRef(source.name)
    elif usual.item is None:  # experts that were stacked later, which come apart again
        shape, kept = [outputs, inputs] if len(stored) == 3 else stored, source
    else:
        raise InvalidConfig(
            f"{source.name} keeps all experts of a layer in one tensor, for which no quantised format has names: take "
            "the checkpoint in MXFP4 that was published of this model."
        )
    if len(shape) != 2 or shape[1] != inputs or (source.rows is None and shape[0] != outputs):
        raise InvalidCheckpoint(
            f"The tensor {source.name} has shape {stored}, the config asks for {[outputs, inputs]} as {reader}."
        )
    return Matrix(module_of(places, reader), kept, shape[0], shape[1], stage, reader)
