"""Readers of each norm's output, found by computing a part of the model over shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tilewise.models.decoder import ForwardContext
from tilewise.models.load import Architecture
from tilewise.models.tile_encoder import Projector, VisionBlock
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.forms import Dense, Form
from tilewise.platforms.kv_cache import LayerCache, PagedLayout
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use, Weight
from tilewise.quantize.modules import Places
from tilewise.weights.sources import dense
from tilewise.weights.view import StoredLinear, View


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
        source = _NamedTensors(places)
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
        return VisionBlock(view, config.vision)(_empty(1, 2, config.vision.hidden_size), ops)
    block = architecture.backbone.block(view, config.decoder, int(stage.rpartition(".")[2]), Mesh())
    numbers = torch.arange(2)
    layout = PagedLayout(torch.tensor([0, 2]), torch.tensor([2]), torch.tensor([[0]]), numbers)
    half = config.decoder.head_dim // 2
    at = ForwardContext(_empty(2, half), _empty(2, half), layout, ops)
    return block(_empty(2, config.decoder.hidden_size), _empty(0), at)


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


@dataclass
class _NamedTensors:
    """A source of shapes that can name each tensor it gave, as long as nothing was computed from it."""

    places: Places
    dtype: torch.dtype = torch.float32
    """float32, so that a router that is converted to float32 stays the very tensor that was read."""
    _names: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    """`id` of a tensor -> its name, and the tensor itself: while it is kept, no other one gets its `id`."""

    def has(self, name: str) -> bool:
        return self.places.find(name) is not None

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = _empty(*shape)
        self._names[id(tensor)] = (name, tensor)
        return tensor

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        return dense(self, module, outputs, inputs, bias)

    def name_of(self, tensor: Tensor) -> str | None:
        return self._names[id(tensor)][0] if id(tensor) in self._names else None


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

    def __init__(self, source: _NamedTensors) -> None:
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

    def rope_into_cache(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
    ) -> Tensor:
        self.note_others(query, key, value)
        return _empty(*query.shape)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        self.note_others(query)
        return _empty(*query.shape)

    def moe_experts(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
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
