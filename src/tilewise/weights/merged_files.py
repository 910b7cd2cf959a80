"""Weights with a low-rank adapter merged into them as they are read: W + scale * (B A), of what PEFT calls LoRA.

The names are those of the files, before a format turns them into ours, so an adapter may be for any format, and for
layers that are fused there. Sums are made in float32, and rounded once to the dtype of the base.

Sources: huggingface/peft `tuners/lora/layer.py` and `dora.py`; of the wrapped checkpoints: OpenGVLab/InternVL
`internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.adapter import LOW_RANK, Adapter, is_wrapped, without_wrappers
from tilewise.weights.files import SafetensorFiles, WeightFiles
from tilewise.weights.names import Stored

Scale = Callable[[str, int], float]
"""Function (module, rank) -> factor of the product."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_FLOATS_FIRST = "It is merged before a model is quantised: tilewise quantize MODEL OUT --adapter ADAPTER."
_ROWS = 4096  # merged at once: embeddings are large in float32


@dataclass
class LowRank:
    """The parts of one module's adapter, by where they are stored."""

    module: str
    scale: Scale
    parts: dict[str, Stored] = field(default_factory=dict)

    def problem(self, base: Stored) -> str | None:
        """Return what is wrong with the shapes of the parts; None = nothing is."""
        shape, (down, up) = base.get_shape(), [part.get_shape() for part in self._factors]
        fits = len(shape) == 2 and len(down) == len(up) == 2 and [up[0], down[1]] == shape and up[1] == down[0] > 0
        magnitude = self.parts.get("magnitude_vector")
        if fits and magnitude is not None and ("A" not in self.parts or math.prod(magnitude.get_shape()) != shape[0]):
            return f"{self.module} has magnitudes of the shape {magnitude.get_shape()}, expected {shape[0]} of a layer."
        if fits:
            return None
        return (
            f"{self.module} has the shape {shape}, and its adapter's matrices have {up} and {down}: take the model "
            "that the adapter was trained on."
        )

    @property
    def whole(self) -> bool:
        return {"A", "B"} <= self.parts.keys() or {"embedding_A", "embedding_B"} <= self.parts.keys()

    @property
    def _factors(self) -> tuple[Stored, Stored]:
        """The two matrices, as [rank, in] and [out, rank]. An embedding's rows are what a layer's columns are."""
        if "A" in self.parts:
            return self.parts["A"], self.parts["B"]
        return Transposed(self.parts["embedding_B"]), Transposed(self.parts["embedding_A"])

    def added_to(self, base: Tensor, rows: slice) -> Tensor:
        """Return these rows of the base with the product added; each row is then scaled, if a magnitude says so."""
        down, up = self._factors
        matrix, factors = down[:].float(), up[rows].float()
        scale = self.scale(self.module, len(matrix))
        magnitude = self.parts.get("magnitude_vector")
        lengths = None if magnitude is None else magnitude[:].float().flatten()[rows]
        found = torch.empty_like(base)
        for start in range(0, len(base), _ROWS):
            some = slice(start, start + _ROWS)
            total = base[some].float().addmm_(factors[some], matrix, alpha=scale)
            if lengths is not None:
                total *= (lengths[some] / total.norm(dim=1)).unsqueeze(1)
            found[some] = total
        return found


@dataclass(frozen=True)
class Transposed:
    stored: Stored

    def get_shape(self) -> list[int]:
        return self.stored.get_shape()[::-1]

    def __getitem__(self, index: int | slice) -> Tensor:
        return self.stored[:].T[index]


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the base with its adapter, merged where it is indexed (`Stored`)."""

    base: Stored
    update: LowRank

    def get_shape(self) -> list[int]:
        return self.base.get_shape()

    def __getitem__(self, index: int | slice) -> Tensor:
        rows = slice(index, index + 1) if isinstance(index, int) else index
        found = self.update.added_to(self.base[rows].clone(), rows)
        return found[0] if isinstance(index, int) else found


@dataclass
class Adaptation:
    """The changes of a base's tensors, by the names that these have without what wraps them."""

    updates: dict[str, LowRank] = field(default_factory=dict)
    replaced: dict[str, tuple[WeightFiles, str]] = field(default_factory=dict)
    """Tensors that stand in place of the base's: biases, and layers that were trained whole."""

    @classmethod
    def of(cls, files: WeightFiles, names: Iterable[str], scale: Scale) -> Adaptation:
        found = cls()
        for name in names:
            plain = without_wrappers(name)
            if part := LOW_RANK.fullmatch(plain):
                module = part["module"]
                update = found.updates.setdefault(f"{module}.weight", LowRank(module, scale))
                update.parts[part["part"]] = files.stored(name)
            else:
                found.replaced[plain] = files, name
        return found

    def renamed(self, names: Mapping[str, str]) -> Adaptation:
        """Return the same of tensors by other names: those of the base that are spelled alike."""
        return Adaptation(
            {names.get(_spelling(name), name): update for name, update in self.updates.items()},
            {names.get(_spelling(name), name): place for name, place in self.replaced.items()},
        )


class MergedFiles(WeightFiles):
    """The files of a base, whose tensors are merged with an adapter's as they are read."""

    def __init__(self, base: WeightFiles, own: Mapping[str, str], changes: Adaptation) -> None:
        """`own` are the names of the base's tensors without wrappers -> those that they have in its files."""
        self.folder, self.names = base.folder, frozenset(own)
        self._base, self._own, self._changes = base, own, changes

    @classmethod
    def of_adapter(cls, base: WeightFiles, adapter: Adapter, whole: bool) -> MergedFiles:
        """Merge an adapter into its base, of which not all files may be open (`whole`)."""
        files = SafetensorFiles(adapter.folder)
        changes = Adaptation.of(files, files.names, adapter.scale)
        found = cls(base, {name: name for name in base.names}, changes.renamed({_spelling(n): n for n in base.names}))
        found._check(str(adapter.folder), whole)
        return found

    @classmethod
    def of_wrapped(cls, base: WeightFiles, whole: bool) -> MergedFiles:
        """Merge a checkpoint that was saved with its adapters unmerged; in training all of these have the scale 2."""
        low_rank = {name for name in base.names if LOW_RANK.fullmatch(name)}
        own = {without_wrappers(name): name for name in base.names - low_rank}
        found = cls(base, own, Adaptation.of(base, low_rank, lambda module, rank: 2.0))
        found._check(str(base.folder), whole)
        return found

    def tensor(self, name: str) -> Tensor:
        if name in self._changes.updates:
            return self.stored(name)[:]
        files, name = self._place(name)
        return files.tensor(name)

    def stored(self, name: str) -> Stored:
        files, there = self._place(name)
        found, update = files.stored(there), self._changes.updates.get(name)
        return found if update is None else MergedTensor(found, update)

    def dtype(self, name: str) -> str:
        files, name = self._place(name)
        return files.dtype(name)

    def path(self, name: str) -> Path:
        files, name = self._place(name)
        return files.path(name)

    def give_back(self, name: str) -> None:
        files, name = self._place(name)
        files.give_back(name)

    def _place(self, name: str) -> tuple[WeightFiles, str]:
        return self._changes.replaced.get(name) or (self._base, self._own.get(name, name))

    def _check(self, where: str, whole: bool) -> None:
        """Raise InvalidCheckpoint for changes that do not belong to the base."""
        changes = self._changes
        strange = sorted((changes.updates.keys() | changes.replaced.keys()) - self.names)
        if strange and whole:
            raise InvalidCheckpoint(
                f"{where}: {self.folder} has nothing for {len(strange)} of the adapter's tensors, such as "
                f"{strange[0]}: expected is an adapter of this model. {_FLOATS_FIRST}"
            )
        for name in changes.updates.keys() & self.names:
            update = changes.updates[name]
            # Of a file that is open for something else, the other matrix may lie in one that is not.
            if (whole or update.whole) and (problem := self._problem(name, update)):
                raise InvalidCheckpoint(f"{where}: {problem}")

    def _problem(self, name: str, update: LowRank) -> str | None:
        if not update.whole:
            return (
                f"{update.module} has {', '.join(update.parts)} alone, expected two matrices; save the adapter again."
            )
        if self.dtype(name) not in _FLOATS:
            return f"{self.path(name)} has {name} in {self.dtype(name)}, expected floats. {_FLOATS_FIRST}"
        files, there = self._place(name)
        return update.problem(files.stored(there))


def merged(files: WeightFiles, adapter: Adapter | None, whole: bool = True) -> WeightFiles:
    """Return files as they are to be read: with what they hold of adapters merged, and with an adapter of its own.

    `whole` = all files of the checkpoint are open. Raises InvalidCheckpoint for what does not belong together.
    """
    if is_wrapped(files.names):
        files = MergedFiles.of_wrapped(files, whole)
    return files if adapter is None else MergedFiles.of_adapter(files, adapter, whole)


def _spelling(name: str) -> str:
    """Return one spelling for the two that transformers' InternVL has had: with `model.` in front, and without."""
    inner = re.sub(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)", "", name)
    head = inner.removeprefix("language_model.")
    return head if head.startswith("lm_head.") else inner.replace("language_model.model.", "language_model.", 1)
