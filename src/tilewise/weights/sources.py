"""Sources of weights: files of a checkpoint, noise, and shapes alone."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tilewise.platforms.forms import Dense, Form, Grouped, Int8
from tilewise.weights.file_tensors import FileTensors
from tilewise.weights.files import WeightFiles
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization import Layouts, StoredLayout
from tilewise.weights.quantization.blocks import wrong_tensor
from tilewise.weights.random_forms import drawn
from tilewise.weights.view import StoredLinear, TensorSource

_ROWS = 4096  # dequantised at once


def in_floats(module: str) -> StoredLayout | None:
    """Return None for every module: these are the `Layouts` of a checkpoint that is not quantised."""
    return None


@dataclass
class CheckpointSource:
    """A source of the tensors in files, which `locate` finds by internal names and `layouts` says how to read."""

    files: WeightFiles
    locate: Callable[[str], TensorRef]
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    on_read: Callable[[int], None] = lambda _: None
    """Callback with the bytes of each tensor as it is read."""
    layouts: Layouts = in_floats
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of matrices for each part of the model (vision, projector, language) and way in which they are kept."""
    floats_instead: list[str] = field(default_factory=list)
    """Modules in floats that a description counts among the quantised ones."""
    tensors: FileTensors = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = FileTensors(self.files, self.on_read, self.layouts is not in_floats)

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        source = self._found(name)
        # Norms and the like have no layout, whatever is said of all modules that their names are among.
        if len(shape) == 2 and (layout := self._layout(source)) is not None:
            tensor = _in_dtype(self._matrix(source, layout, shape[0], shape[1]), self.dtype)
        else:
            tensor = self.tensors.floats(source, shape)
        return tensor.reshape(*shape).to(self.device, self.dtype)

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        source = self._found(f"{module}.weight")
        layout = self._layout(source)
        if layout is None:
            matrix: Form = Dense(self.read(f"{module}.weight", (outputs, inputs)))
        else:
            matrix = on_device(self._matrix(source, layout, outputs, inputs), self.device, self.dtype)
        how = "floats" if layout is None or isinstance(matrix, Dense) else str(layout)
        if how == "floats" and self.layouts(source.module) is not None:
            self.floats_instead.append(source.module)
        self.kept[module.partition(".")[0], how] += 1
        if layout is None:
            return StoredLinear(matrix, self.read(f"{module}.bias", (outputs,)) if bias else None)
        own = self._find(f"{module}.bias")
        if layout.folds_bias(matrix):
            if own is not None:
                self.tensors.mark_read(own.name)
            return StoredLinear(matrix, None)
        return StoredLinear(matrix, self.read(f"{module}.bias", (outputs,)) if bias or own is not None else None)

    def pass_over(self, name: str, outputs: int | None = None, inputs: int = 0) -> None:
        """Count as read what the files have for a tensor, or for a matrix of this size: other ranks have it."""
        source = self._find(name)
        if source is None:
            return
        layout = None if outputs is None else self._layout(source)
        if layout is None:
            self.tensors.pass_over(source.name)
        else:
            shapes = TensorShapes(self.tensors.pass_over)
            layout.read(shapes, source.module, None if source.rows else outputs, inputs, source.item)

    def described(self) -> str:
        """Return one line about the matrices that were read."""
        parts: dict[str, list[str]] = {}
        for (part, how), count in self.kept.items():
            parts.setdefault(part, []).append(f"{count} in {how}")
        return "; ".join(f"{part}: {', '.join(found)}" for part, found in parts.items())

    def _matrix(self, source: TensorRef, layout: StoredLayout, outputs: int, inputs: int) -> Form:
        matrix = layout.read(self.tensors, source.module, None if source.rows else outputs, inputs, source.item)
        if source.rows is not None:
            matrix = matrix.rows(source.rows(matrix.shape[0]))
        if matrix.shape != (outputs, inputs):
            name, found = source.module + layout.suffix, f"has {list(matrix.shape)} outputs and inputs"
            raise wrong_tensor(self.tensors, name, found, f"{[outputs, inputs]} by the config")
        return matrix

    def _layout(self, source: TensorRef) -> StoredLayout | None:
        layout = self.layouts(source.module)
        if layout is None or f"{source.module}{layout.suffix}" in self.files.names:
            return layout
        return None  # where floats are instead, they are read; where nothing is, the error names the usual tensor

    def _find(self, name: str) -> TensorRef | None:
        """Return the first place of a tensor that the files have."""
        source: TensorRef | None = self.locate(name)
        while source is not None and source.name not in self.files.names:
            # The numbers of a quantised matrix may have another suffix than `.weight`, which its layout knows.
            if name.endswith(".weight") and self._layout(source) is not None:
                return source
            source = source.otherwise
        return source

    def _found(self, name: str) -> TensorRef:
        source = self._find(name)
        if source is not None:
            return source
        usual = self.locate(name)
        layout = self.layouts(usual.module)
        asked = usual.name if layout is None else usual.module + layout.suffix
        kept = "" if layout is None else f", kept as its description says ({layout})"
        raise self.tensors.lacks(asked, f"the model needs as {name}{kept}")


def _in_dtype(matrix: Form, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a matrix. Some rows are converted at a time: embeddings are large in float32."""
    whole = torch.empty(matrix.shape, dtype=dtype)
    for start in range(0, len(whole), _ROWS):
        whole[start : start + _ROWS] = matrix.rows(slice(start, start + _ROWS)).dequantised()
    return whole


def on_device(form: Form, device: torch.device, dtype: torch.dtype) -> Form:
    """Return a form on a device; plain matrices are also brought into the dtype of the model."""
    match form:
        case Dense(matrix):
            return Dense(matrix.to(device, dtype))
        case Int8(matrix, scales, static, addend):
            return Int8(matrix.to(device), scales.to(device), static, None if addend is None else addend.to(device))
        case Grouped(kind, codes, scales, shifts, group, order):
            moved = [None if x is None else x.to(device) for x in (shifts, order)]
            return Grouped(kind, codes.to(device), scales.to(device), moved[0], group, moved[1])


@dataclass(frozen=True)
class SkippedSource:
    """A source of shapes in place of another source, in which all that is asked for counts as read, and is not read."""

    source: CheckpointSource

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def has(self, name: str) -> bool:
        return self.source.has(name)

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.source.pass_over(name, *(shape if len(shape) == 2 else ()))
        return torch.empty(*shape, dtype=self.dtype, device="meta")

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        self.source.pass_over(f"{module}.bias")
        return StoredLinear(Dense(self.read(f"{module}.weight", (outputs, inputs))), None)


@dataclass(frozen=True)
class WatchedSource:
    """A source that reads from another one, and calls `watch` with each tensor's internal name and the tensor."""

    source: TensorSource
    watch: Callable[[str, Tensor], None]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def has(self, name: str) -> bool:
        return self.source.has(name)

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = self.source.read(name, shape)
        self.watch(name, tensor)
        return tensor

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        """Read a layer and show it to `watch`, where parts of a quantised matrix are told apart by number."""
        found = self.source.linear(module, outputs, inputs, bias)
        for number, tensor in enumerate(found.matrix.tensors):
            self.watch(f"{module}.weight" + (f".{number}" if number else ""), tensor)
        if found.bias is not None:
            self.watch(f"{module}.bias", found.bias)
        return found


@dataclass
class RandomSource:
    """A source of reproducible noise: each tensor depends on seed and name alone, so two builds agree.

    It is drawn on the device; numbers of one kind of device are not those of another. Matrices have the forms of the
    layouts that the files would have, found by the names that `locate` gives.
    """

    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    seed: int = 0
    scale: float = 0.02
    absent: frozenset[str] = frozenset()
    locate: Callable[[str], TensorRef] = TensorRef
    layouts: Layouts = in_floats

    def has(self, name: str) -> bool:
        return name not in self.absent

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        noise = torch.randn(*shape, generator=self._generator(name), device=self.device).mul_(self.scale)
        return (noise.add_(1) if "norm" in name and name.endswith("weight") else noise).to(self.dtype)

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        theirs = self.locate(f"{module}.weight").module
        layout = self.layouts(theirs)
        if layout is None:
            return dense(self, module, outputs, inputs, bias)
        form = layout.read(TensorShapes(), theirs, outputs, inputs, None)
        matrix = drawn(form, self._generator(f"{module}.weight"), self.dtype, self.scale)
        apart = bias and not layout.folds_bias(form)
        return StoredLinear(matrix, self.read(f"{module}.bias", (outputs,)) if apart else None)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed + zlib.crc32(name.encode()))


@dataclass
class ShapeSource:
    """A source of shapes without data; `parameters` counts those of a model of this config.

    Matrices have the forms of the layouts that the files will have, found by the names that `locate` gives.
    """

    dtype: torch.dtype
    parameters: int = 0
    absent: frozenset[str] = frozenset()
    locate: Callable[[str], TensorRef] = TensorRef
    layouts: Layouts = in_floats

    def has(self, name: str) -> bool:
        return name not in self.absent

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.parameters += math.prod(shape)
        return torch.empty(*shape, dtype=self.dtype, device="meta")

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        theirs = self.locate(f"{module}.weight").module
        layout = self.layouts(theirs)
        if layout is None:
            return dense(self, module, outputs, inputs, bias)
        self.parameters += outputs * inputs
        matrix = layout.read(TensorShapes(), theirs, outputs, inputs, None)
        apart = bias and not layout.folds_bias(matrix)
        return StoredLinear(matrix, self.read(f"{module}.bias", (outputs,)) if apart else None)


@dataclass(frozen=True)
class TensorShapes:
    """The `StoredTensors` where there are no files: meta tensors, one for whatever a layout asks for."""

    on_read: Callable[[str], None] = lambda _: None
    """Callback with the name of each tensor."""

    def has(self, name: str) -> bool:
        return True

    def place(self, name: str) -> str:
        return "The checkpoint"

    def tensor(
        self,
        name: str,
        shape: Sequence[int | None],
        dtypes: Collection[str],
        item: int | None = None,
        other_shapes: Sequence[Sequence[int | None]] = (),
    ) -> Tensor:
        """Return a tensor of the first of the dtypes and shapes that a file may have."""
        self.on_read(name)
        sizes = [1 if size is None else size for size in shape]
        return torch.empty(*sizes, dtype=TORCH_TYPES[next(iter(dtypes))], device="meta")


TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""Dtypes of torch by the names that safetensors files have for them."""


def dense(source: TensorSource, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
    """Read a layer of floats from its weight and its bias."""
    matrix = Dense(source.read(f"{module}.weight", (outputs, inputs)))
    return StoredLinear(matrix, source.read(f"{module}.bias", (outputs,)) if bias else None)
