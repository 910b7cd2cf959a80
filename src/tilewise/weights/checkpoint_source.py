"""A checkpoint's files as a source of weights, in which every tensor has to be read by somebody."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.platforms.forms import Dense, Form
from tilewise.platforms.weights import Store, Use, Weight
from tilewise.weights.files import WeightFiles
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization.stored import (
    FLOATS,
    ExpectedTensor,
    Layouts,
    StoredLayout,
    StoredModule,
    in_floats,
    wrong_tensor,
)
from tilewise.weights.sources import TensorShapes
from tilewise.weights.view import SourceOver, StoredLinear

_ROWS = 4096  # dequantised at once

# Tensors that may be left unread: what old training code saved though it follows from the config, the router of a Flash
# model, which can be switched off and of whose four pooling stages two are never used, and scales of a KV cache, which
# is kept as the engine's own option says.
_DISPENSABLE = re.compile(
    r"\.rotary_emb\.inv_freq$|\.position_ids$|^(mlp2|gating|pooling_before_gating)\.|\.kv_cache_(scale|offset)$"
    r"|\.(q|k|v|kv)_(scale|zero_point)$|\.[kv]_proj\.output_(scale|zero_point)$"
)


class FileTensors:
    """The `StoredTensors` of a checkpoint's files, each checked against what a layout expects.

    Every tensor that was read is noted, so that none is left over in the end, and none stays in memory for nothing.
    """

    def __init__(self, files: WeightFiles, on_read: Callable[[int], None], described: bool) -> None:
        """`on_read` is called with the bytes of each tensor; `described` = the checkpoint says how it is quantised."""
        self.files = files
        self._on_read = on_read
        self._described = described
        self._unread = set(files.names)
        self._in_memory: list[str] = []
        self._stored = False  # whether something was stored since those were read

    def has(self, name: str) -> bool:
        return name in self.files.names

    def tensor(self, expected: ExpectedTensor) -> Tensor:
        name, item = expected.name, expected.item
        if name not in self.files.names:
            raise self.lacks(name, f"its quantisation asks for with the shape {expected.shapes_in_words()}")
        self._check_type(name, expected.dtypes)
        self._check_item(name, item)
        stored = self.files.stored(name)
        found = stored.get_shape() if item is None else stored.get_shape()[1:]
        if not expected.fits(found):
            raise wrong_tensor(self, name, f"has shape {found}", expected.shapes_in_words())
        self.mark_read(name)
        tensor = self.files.tensor(name) if item is None else stored[item]
        self._on_read(tensor.nbytes)
        return tensor

    def floats(self, source: TensorRef, shape: Sequence[int]) -> Tensor:
        """Return a tensor of floats, which may be a part of one in the files.

        Raises InvalidCheckpoint for another type, another number of elements, or another last axis than expected.
        """
        self._check_type(source.name, FLOATS)
        self._check_item(source.name, source.item)
        tensor = self.files.tensor(source.name) if source.is_whole else source.read(self.files.stored(source.name))
        self.mark_read(source.name)
        if math.prod(tensor.shape) != math.prod(shape) or list(tensor.shape)[-1:] != list(shape)[-1:]:
            raise wrong_tensor(self, source.name, f"has shape {list(tensor.shape)}", f"{list(shape)} by the config")
        self._on_read(tensor.nbytes)
        return tensor

    def place(self, name: str) -> str:
        """Return the file of a tensor, for messages; the folder where no file has it."""
        return str(self.files.path(name))

    def lacks(self, name: str, why: str) -> InvalidCheckpoint:
        """Return the error for a tensor that is not there; `why` says who asks for it."""
        module = name.rpartition(".")[0]
        beside = [other for other in sorted(self.files.names) if other.startswith(f"{module}.")]
        remedy = f"{GET_AGAIN}, with the config that belongs to it."
        if beside:
            remedy += f" Of this layer there are {', '.join(beside[:6])}."
        return InvalidCheckpoint(f"{self.place(name)} has no tensor {name}, which {why}; {remedy}")

    def mark_read(self, name: str) -> None:
        """Note that a tensor is read, and takes memory until something is stored."""
        self._unread.discard(name)
        if self._stored:
            self._in_memory.clear()
        self._in_memory.append(name)
        self._stored = False

    def pass_over(self, name: str) -> None:
        """Note that a tensor is for another rank to read."""
        self._unread.discard(name)

    def _check_item(self, name: str, item: int | None) -> None:
        if item is not None and item >= (count := self.files.stored(name).get_shape()[0]):
            raise wrong_tensor(self, name, f"has {count} items", f"at least {item + 1} by the config")

    def _check_type(self, name: str, dtypes: Collection[str]) -> None:
        found = self.files.dtype(name)
        if found not in dtypes:
            says = "otherwise than its description says: take config and weights of one checkpoint"
            if not self._described:
                says = "and no quantization_config or quant_model_description.json says how: fetch what belongs to it"
            raise InvalidCheckpoint(
                f"{self.place(name)}: the tensor {name} is of type {found}, expected {' or '.join(sorted(dtypes))}; "
                f"it is quantised {says}."
            )

    def check_all_read(self) -> None:
        """Raise InvalidCheckpoint when the files hold tensors that no module asked for."""
        left = sorted(name for name in self._unread if not _DISPENSABLE.search(name))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise InvalidCheckpoint(
                f"{self.place(left[0])}: the model has no place for these tensors of the checkpoint: {shown}. Expected "
                "are those that config.json describes; take config and weights of one checkpoint."
            )

    def giving_back(self, store: Store) -> Store:
        """Return a store that does the same, and then gives back the memory of the tensors that were read for it.

        Where the mapped tensor itself is kept, its pages come back as they are touched.
        """

        def stored(parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
            weight = store(parts, bias, use)
            # The names stay listed until the next tensor is read: experts are read together and stored one by one, and
            # storing one brings pages of its tensor back.
            for name in self._in_memory:
                self.files.give_back(name)
            self._stored = True
            return weight

        return stored


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
        if layout is not None:
            own = self._find(f"{module}.bias")
            if own is not None and layout.folds_bias:
                self.tensors.mark_read(own.name)
            bias = not layout.folds_bias and (bias or own is not None)
        return StoredLinear(matrix, self.read(f"{module}.bias", (outputs,)) if bias else None)

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
            layout.read(StoredModule(shapes, source.module, source.item), None if source.rows else outputs, inputs)

    def described(self) -> str:
        """Return one line about the matrices that were read."""
        parts: dict[str, list[str]] = {}
        for (part, how), count in self.kept.items():
            parts.setdefault(part, []).append(f"{count} in {how}")
        return "; ".join(f"{part}: {', '.join(found)}" for part, found in parts.items())

    def _matrix(self, source: TensorRef, layout: StoredLayout, outputs: int, inputs: int) -> Form:
        stored = StoredModule(self.tensors, source.module, source.item)
        matrix = layout.read(stored, None if source.rows else outputs, inputs)
        if source.rows is not None:
            matrix = matrix.rows(source.rows(matrix.shape[0]))
        if matrix.shape != (outputs, inputs):
            found = f"has {list(matrix.shape)} outputs and inputs"
            raise stored.wrong(layout.suffix, found, f"{[outputs, inputs]} by the config")
        return matrix

    def _layout(self, source: TensorRef) -> StoredLayout | None:
        layout = self.layouts(source.module)
        if layout is None or f"{source.module}{layout.suffix}" in self.files.names:
            return layout
        return None  # where floats are instead, they are read; where nothing is, the error names the usual tensor

    def _find(self, name: str) -> TensorRef | None:
        """Return the first place of a tensor that the files have."""
        for source in self.locate(name).places():
            # The numbers of a quantised matrix may have another suffix than `.weight`, which its layout knows.
            if source.name in self.files.names or (name.endswith(".weight") and self._layout(source) is not None):
                return source
        return None

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
    if isinstance(form, Dense):
        return Dense(form.matrix.to(device, dtype))
    values = {one.name: getattr(form, one.name) for one in fields(form)}
    moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(form, **moved)


@dataclass(frozen=True)
class SkippedSource(SourceOver):
    """A source of shapes in place of another source, in which all that is asked for counts as read, and is not read."""

    source: CheckpointSource

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.source.pass_over(name, *(shape if len(shape) == 2 else ()))
        return torch.empty(*shape, dtype=self.dtype, device="meta")

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        self.source.pass_over(f"{module}.bias")
        return StoredLinear(Dense(self.read(f"{module}.weight", (outputs, inputs))), None)
