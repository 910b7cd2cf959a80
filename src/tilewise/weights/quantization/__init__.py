"""Quantisations: how checkpoints keep matrices otherwise than in floats. One file each; the folder registers.

Which layers are kept how is found from the small files alone (`Method.layouts`), before any weight is fetched; a
`Layout` then reads one layer's tensors as one of the forms of `platforms.forms`.
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
    """Tensors by the names that the files have for them."""

    def has(self, name: str) -> bool: ...

    def place(self, name: str) -> str:
        """The file of a tensor, for messages; the folder where no file has it."""
        ...

    def tensor(
        self,
        name: str,
        shape: Sequence[int | None],
        dtypes: Collection[str],
        item: int | None = None,
        other_shapes: Sequence[Sequence[int | None]] = (),
    ) -> Tensor:
        """The tensor as it is stored, or one item of its first axis.

        `shape` is that of the item, None for a size that is not known, and `other_shapes` are what it may be as well;
        `dtypes` are what it may be, as safetensors files spell them, the usual one first. Raises InvalidCheckpoint.
        Without weights at hand, the tensor is meta.
        """
        ...


class Layout(Protocol):
    """How the matrix of one linear layer lies in the files; as a text, what a user reads of it in the log."""

    @property
    def suffix(self) -> str:
        """What the name of the tensor with the numbers has behind the module's."""
        ...

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        """The matrix of a module, by the name that its tensors begin with.

        `outputs` is None where a file keeps several layers as one: whatever is there. `item`: one of several that are
        stacked along a first axis. Raises InvalidCheckpoint naming tensor, what was found, and what was expected.
        """
        ...

    def folds_bias(self, matrix: Form) -> bool:
        """Whether the form that was read has the bias in it already."""
        ...


Layouts = Callable[[str], Layout | None]
"""A module, by the name that its tensors begin with in the files -> how its matrix is kept; None = in floats."""


@dataclass(frozen=True)
class Method:
    """Each file of this folder defines one, as `METHOD`."""

    names: tuple[str, ...]
    """What configs call it: `quantization_config.quant_method`, "ascend" for ModelSlim's description."""
    layouts: Callable[[CheckpointFolder], Layouts]
    """Raises InvalidCheckpoint where the files ask for what cannot be read."""


def method_of(folder: CheckpointFolder) -> str | None:
    """How a checkpoint is quantised, by what its small files say or by the names of its tensors; None = in floats."""
    if folder.quantization is None and any(name.endswith("_blocks") for name in known_names(folder.path)):
        return "mxfp4"
    return folder.quantization


def layouts_of(folder: CheckpointFolder) -> Layouts | None:
    """The layouts of a quantised checkpoint, None of one in floats. Raises InvalidCheckpoint for an unknown method."""
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
