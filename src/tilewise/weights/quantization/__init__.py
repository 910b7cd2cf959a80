"""Quantisations: the ways in which checkpoints keep matrices other than in floats. Each file of this folder that has a
`METHOD` is one.

The layout of each layer is found from the small files alone (`Method.layouts`), before any weight is fetched; a
`StoredLayout` then reads one layer's tensors as one of the forms of `platforms.forms`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.platforms.forms import Form
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder

FLOATS = ("BF16", "F16", "F32", "F64")
"""Types of floats as safetensors files spell them."""


class StoredTensors(Protocol):
    """The tensors of a checkpoint, by the names that its files have for them."""

    def has(self, name: str) -> bool: ...

    def place(self, name: str) -> str:
        """Return the file of a tensor, for messages; the folder where no file has it."""
        ...

    def tensor(
        self,
        name: str,
        shape: Sequence[int | None],
        dtypes: Collection[str],
        item: int | None = None,
        other_shapes: Sequence[Sequence[int | None]] = (),
    ) -> Tensor:
        """Return the tensor as it is stored, or one item of its first axis.

        `shape` is that of the item, with None for a size that is not known, and `other_shapes` are allowed as well;
        `dtypes` are those allowed, as safetensors files spell them, the usual one first. Raises InvalidCheckpoint for
        any other tensor, or none. Without weights at hand, the tensor is meta.
        """
        ...


class StoredLayout(Protocol):
    """The way in which a linear layer's matrix lies in the files. As a text (`str`), it is what the log says of it."""

    @property
    def suffix(self) -> str:
        """End of the name of the tensor with the numbers, behind the module's."""
        ...

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        """Read the matrix of a module, by the name that its tensors begin with.

        `outputs` is None where a file keeps several layers as one: all that are there are read. `item` is the index of
        one of several that are stacked along a first axis. Raises InvalidCheckpoint naming tensor, what was found, and
        what was expected.
        """
        ...

    def folds_bias(self, matrix: Form) -> bool:
        """True if the form that was read has the bias in it already."""
        ...


Layouts = Callable[[str], StoredLayout | None]
"""Function from a module, by the name that its tensors begin with in the files, to its layout; None = in floats."""


@dataclass(frozen=True)
class Method:
    """A method of quantisation. Files of this folder define one each, as `METHOD`."""

    names: tuple[str, ...]
    """Names in configs: `quantization_config.quant_method`, or "ascend" for ModelSlim's description."""
    layouts: Callable[[CheckpointFolder], Layouts]
    """Function that finds a checkpoint's layouts; it raises InvalidCheckpoint where one of them cannot be read."""


def method_of(folder: CheckpointFolder) -> str | None:
    """Return the method of a checkpoint, by what its small files say or by its tensors' names; None = in floats."""
    if folder.quantization is None and any(name.endswith("_blocks") for name in known_names(folder.path)):
        return "mxfp4"
    return folder.quantization


def layouts_of(folder: CheckpointFolder) -> Layouts | None:
    """Return the layouts of a checkpoint, None if it is in floats. Raises InvalidCheckpoint for an unknown method."""
    method = method_of(folder)
    if method is None:
        return None
    known: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        found: Method | None = getattr(importlib.import_module(f"{__name__}.{module.name}"), "METHOD", None)
        known |= dict.fromkeys(found.names, found) if found else {}
    if method not in known:
        raise InvalidCheckpoint(
            f"{folder.path} is a checkpoint quantised by {method}, and what can be read is {', '.join(sorted(known))}: "
            "take the same model in one of these or in bfloat16, with --quantization int8 to halve it."
        )
    return known[method].layouts(folder)


def check_method(folder: CheckpointFolder, wanted: str | None) -> None:
    """Raise InvalidConfig where a configuration names another quantisation than the files have."""
    if wanted in (None, "int8"):
        return
    found = method_of(folder)
    if wanted == "fp8" and found is None:
        return
    if found is None:
        raise InvalidConfig(
            f"quantization={wanted!r}, but {folder.path} is in floats: take int8 or fp8, which round them as they are "
            "loaded, `tilewise quantize`, which writes a quantised copy, or a checkpoint that is quantised."
        )
    if wanted.removesuffix("_marlin") != found:
        raise InvalidConfig(
            f"quantization={wanted!r}, but {folder.path} is quantised by {found}: leave it out, since that is found "
            "from the files."
        )
