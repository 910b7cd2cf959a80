"""Tensors of a checkpoint's files by the names that the files have for them, with a note of which have been read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.platforms.forms import Form
from tilewise.platforms.weights import Store, Use, Weight
from tilewise.weights.files import WeightFiles
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization import FLOATS
from tilewise.weights.quantization.blocks import wrong_tensor

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

    def tensor(
        self,
        name: str,
        shape: Sequence[int | None],
        dtypes: Collection[str],
        item: int | None = None,
        other_shapes: Sequence[Sequence[int | None]] = (),
    ) -> Tensor:
        """Return a tensor for a layout, by its name in the files, as `StoredTensors.tensor` does."""
        if name not in self.files.names:
            raise self.lacks(name, f"its quantisation asks for with the shape {_any_of(shape, *other_shapes)}")
        self._check_type(name, dtypes)
        self._check_item(name, item)
        stored = self.files.stored(name)
        found = stored.get_shape() if item is None else stored.get_shape()[1:]
        if not any(_has_shape(found, one) for one in (shape, *other_shapes)):
            raise wrong_tensor(self, name, f"has shape {found}", _any_of(shape, *other_shapes))
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


def _has_shape(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w in (None, f) for w, f in zip(wanted, found, strict=True))


def _any_of(*shapes: Sequence[int | None]) -> str:
    """Return shapes as messages say them; None = any size."""
    return " or ".join("[" + ", ".join("any" if size is None else str(size) for size in one) + "]" for one in shapes)
