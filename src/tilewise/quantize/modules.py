"""Modules of the model, found by building and computing it over shapes alone: the matrices that are to be quantised,
and the readers of each norm's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.layers import ResidualStream
from tilewise.models.decoder import ForwardContext
from tilewise.models.load import IN_A_STAGE, Architecture
from tilewise.models.tile_encoder import Projector, VisionBlock
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.forms import Dense, Form
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use, Weight, as_it_came
from tilewise.weights.files import WeightFiles
from tilewise.weights.formats import Locate
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization.stored import FLOATS
from tilewise.weights.sources import dense
from tilewise.weights.view import StoredLinear, View

_OF_EXPERT = re.compile(r"\.experts\.\d+\.")
_CLOSES_MLP = re.compile(r"\.(down_proj|fc2)$")
Experts = Sequence[Weight | None]
Activation = Callable[[Tensor], Tensor]


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

    def read(self, files: WeightFiles) -> Tensor:
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
        return cls(architecture.folder.path, names, architecture.format(names, language))

    def find(self, name: str) -> TensorRef | None:
        """Return the first of a tensor's places that the files have, or None."""
        return next((source for source in self.locate(name).places() if source.name in self.names), None)

    def found(self, name: str) -> TensorRef:
        """Return the first of these places that the files have. Raises InvalidCheckpoint where there is none."""
        source = self.find(name)
        if source is None:
            usual = self.locate(name).name
            raise InvalidCheckpoint(f"{self.folder} has no tensor {usual}, which the model needs as {name}.")
        return source


@dataclass
class ShapeRecorder:
    """A source of shapes that notes the linear layers, and can name each tensor it gave.

    A tensor has a name as long as nothing was computed from it: a router that is converted to float32 stays the very
    tensor that was read, as it is float32.
    """

    places: Places
    dtype: torch.dtype = torch.float32
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Internal module -> its outputs and inputs."""
    _names: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    """`id` of a tensor -> its name, and the tensor itself: while it is kept, no other one gets its `id`."""

    def has(self, name: str) -> bool:
        return self.places.find(name) is not None

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.places.found(name)
        tensor = _empty(*shape)
        self._names[id(tensor)] = (name, tensor)
        return tensor

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        self.linears[module] = (outputs, inputs)
        return dense(self, module, outputs, inputs, bias)

    def name_of(self, tensor: Tensor) -> str | None:
        return self._names[id(tensor)][0] if id(tensor) in self._names else None


def find_matrices(architecture: Architecture, files: WeightFiles, vision: bool) -> list[Matrix]:
    """Return the matrices to be quantised, in the order in which a picture and its prompt meet them.

    Norms, embeddings, the head and routers are not among them, nor without `vision` the matrices of tower and
    projector. Raises InvalidCheckpoint for a checkpoint that is not whole or quantised already, InvalidConfig where
    matrices are kept in a way that no quantised format has.
    """
    places = Places.of(architecture, files.names)
    shapes = ShapeRecorder(places)
    architecture.build(shapes, Ops(), context=1, store=as_it_came)
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
    return source.module if apart else places.locate(f"{reader}.weight").module


def _matrix(places: Places, files: WeightFiles, reader: str, outputs: int, inputs: int, stage: str) -> Matrix:
    """Return the matrix of the files that an internal module is made of, or is a part of."""
    usual, source = places.locate(f"{reader}.weight"), places.found(f"{reader}.weight")
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


@dataclass
class NormReaders:
    """A norm and the readers of its output. All names are internal ones."""

    tensors: tuple[str, ...]
    """Names of its weight, and of its bias if it has one."""
    linears: list[str] = field(default_factory=list)
    """Names of the weights of the linear layers that multiply its output."""
    others: bool = False
    """True if something else reads its output, too: a residual stream, attention, another norm."""


@dataclass
class StageReaders:
    """All norms of a stage, and the linear layers that read something else."""

    stage: str
    norms: list[NormReaders]
    elsewhere: set[str]
    """Names of the weights that multiply something other than a norm's output."""

    def read_besides(self, norm: NormReaders) -> set[str]:
        """Return the names of all weights that multiply something other than the output of this norm."""
        return self.elsewhere.union(*(other.linears for other in self.norms if other is not norm))


def readers_of(architecture: Architecture, places: Places, stages: Iterable[str]) -> Iterator[StageReaders]:
    """Yield the readers in each stage; stages are named as in `Matrix.stage`, such as `language.model.layers.3`."""
    for stage in stages:
        source = ShapeRecorder(places)
        ops = _ShapeOps(source)
        ops.note_others(_compute(architecture, View(source, f"{stage}.", ops.store), stage, ops))
        yield StageReaders(stage, list(ops.norms.values()), ops.elsewhere)


def _compute(architecture: Architecture, view: View, stage: str, ops: Ops) -> Tensor:
    """Compute one stage on two rows of a meta tensor, and return its output."""
    config = architecture.config
    if stage == "projector":
        width = config.vision.hidden_size * config.shuffle_block**2
        return Projector(view, config)(_empty(1, 2, width), ops)
    if stage.startswith("vision"):
        rows = ResidualStream(_empty(1, 2, config.vision.hidden_size))
        VisionBlock(view, config.vision)(rows, ops)
        return rows.sum(ops)
    block = architecture.backbone.block(view, config.decoder, int(stage.rpartition(".")[2]), Mesh())
    numbers = torch.arange(2)
    layout = PagedLayout(torch.tensor([0, 2]), torch.tensor([2]), torch.tensor([[0]]), numbers)
    half = config.decoder.head_dim // 2
    at = ForwardContext(_empty(2, half), _empty(2, half), layout, ops)
    rows = ResidualStream(_empty(2, config.decoder.hidden_size))
    block(rows, _empty(0), at)
    return rows.sum(ops)


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


class _NormOutput(Tensor):
    """The output of a norm, which notices when something other than a linear layer makes use of it."""

    giver: NormReaders

    @classmethod
    def of(cls, norm: NormReaders, shape: Sequence[int]) -> _NormOutput:
        output = _empty(*shape).as_subclass(cls)
        output.giver = norm
        return output

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch calls this for every function of a norm's output. One that gives no tensor reads no numbers, and one
        # that gives the same rows in another shape or dtype gives the norm's output again. Every other function is a
        # reader other than a linear layer: linear layers are noted in `_ShapeOps`, which computes nothing of their x.
        given = [value for value in _flat([*args, *(kwargs or {}).values()]) if isinstance(value, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            width = given[0].shape[-1] if len(given) == 1 else None
        if not any(isinstance(value, Tensor) for value in _flat([result])):
            return result  # its shape, type or device
        if func in _SAME_ROWS and result.shape[-1] == width:
            return cls.of(given[0].giver, result.shape)
        for value in given:
            value.giver.others = True
        return result


_SAME_ROWS = {Tensor.float, Tensor.to, Tensor.contiguous, Tensor.view, Tensor.reshape, Tensor.flatten}
"""Functions whose result is still made of the same rows, if it is as wide."""


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


@dataclass(frozen=True, slots=True)
class _NamedWeight:
    """A weight without numbers that notes what it is multiplied with; `names` are those of its parts."""

    names: Sequence[str | None]
    outputs: int
    note: Callable[[Tensor, Sequence[str | None]], None]
    nbytes: int = 0

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        self.note(x, self.names)
        return _empty(*x.shape[:-1], self.outputs)


class _ShapeOps(Ops):
    """Ops over shapes, which note what reads the outputs of norms."""

    def __init__(self, source: ShapeRecorder) -> None:
        self._source = source
        self.norms: dict[str, NormReaders] = {}
        self.elsewhere: set[str] = set()

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        names = [self._source.name_of(part.matrix) if isinstance(part, Dense) else None for part in parts]
        return _NamedWeight(names, sum(part.shape[0] for part in parts), self._note)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._note(x, [self._source.name_of(weight)])
        return _empty(*x.shape[:-1], len(weight))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._normed(x, [weight])

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self._normed(x, [weight, bias])

    def rope_into_cache(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        self.note_others(query, key, value)
        return _empty(*query.shape)

    def paged_attention(self, query: Tensor, *_: Any, **__: Any) -> Tensor:
        self.note_others(query)
        return _empty(*query.shape)

    def moe_experts(
        self, x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Experts, down: Experts, activation: Activation
    ) -> Tensor:
        self.note_others(chosen, weights)
        for first, second in zip(gate_up, down, strict=True):
            if first is not None and second is not None:
                second.apply(activation(first.apply(x, self)), self)
        return _empty(*x.shape)

    def note_others(self, *tensors: Tensor) -> None:
        """Note that something other than a linear layer reads these tensors."""
        for tensor in tensors:
            if isinstance(tensor, _NormOutput):
                tensor.giver.others = True

    def _note(self, x: Tensor, readers: Sequence[str | None]) -> None:
        """Note that linear layers with these weights read x; None, an unknown weight, counts as another reader."""
        known = [name for name in readers if name is not None]
        if not isinstance(x, _NormOutput):
            self.elsewhere.update(known)
            return
        x.giver.linears += [name for name in known if name not in x.giver.linears]
        x.giver.others |= None in readers

    def _normed(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        self.note_others(x)
        names = [name for tensor in tensors if (name := self._source.name_of(tensor)) is not None]
        if len(names) != len(tensors):  # its weights were computed from others: nothing can be folded into them
            return _empty(*x.shape)
        norm = self.norms.setdefault(names[0], NormReaders(tuple(names)))
        return _NormOutput.of(norm, x.shape)
