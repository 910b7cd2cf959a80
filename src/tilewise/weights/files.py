"""Safetensors shards of a checkpoint: which tensor is in which file, read by slices through the page cache."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.names import Stored
from tilewise.weights.pages import MappedPages
from tilewise.weights.shards import INDEX, listed_shards, tensor_places


class WeightFiles(Protocol):
    """Tensors of a checkpoint by the names that its files have."""

    folder: Path
    names: frozenset[str]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor."""
        ...

    def stored(self, name: str) -> Stored:
        """A tensor to read in part."""
        ...

    def dtype(self, name: str) -> str:
        """As safetensors files spell it: BF16, F32, I8 ..."""
        ...

    def give_back(self, name: str) -> None:
        """The memory that a tensor takes since it was read; it can be read again."""
        ...


class SafetensorFiles:
    """Every tensor of a folder by name. Opening checks each header; data is mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._close = ExitStack()
        self._readers: dict[str, Any] = {}
        paths = shard_files(folder)
        for path in paths:
            reader = self._open(path)
            self._readers |= dict.fromkeys(reader.keys(), reader)
        self._pages = MappedPages(paths)
        self.names = frozenset(self._readers)

    def _open(self, path: Path) -> Any:
        try:
            return self._close.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InvalidCheckpoint(f"{path} is damaged ({error}); fetch the file again.") from None

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, as a view of the mapped file: nothing is copied."""
        tensor: Tensor = self._readers[name].get_tensor(name)
        return tensor

    def stored(self, name: str) -> Stored:
        """A tensor to read in part; what is read is copied."""
        stored: Stored = self._readers[name].get_slice(name)
        return stored

    def dtype(self, name: str) -> str:
        """As the file spells it: BF16, F32, I8 ..."""
        return str(self._readers[name].get_slice(name).get_dtype())

    def give_back(self, name: str) -> None:
        """The memory that a tensor takes since it was read; it can be read again."""
        self._pages.give_back(self.tensor(name))

    def close(self) -> None:
        self._close.close()


def shard_files(folder: Path) -> list[Path]:
    """The files of weights. Raises InvalidCheckpoint where one is missing."""
    index = folder / INDEX
    if not index.exists():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise InvalidCheckpoint(f"{folder} has no *.safetensors file; Tilewise reads weights in no other form.")
        return found
    return [_existing(folder / name) for name in listed_shards(index)]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InvalidCheckpoint(f"{path.parent}: the shard {path.name} is missing, {INDEX} lists it; fetch it again.")
    return path


def known_names(folder: Path) -> frozenset[str]:
    """Names of the tensors, as far as files that are there tell: an index, or shards. None before a download."""
    index = folder / INDEX
    if index.exists():
        return frozenset(tensor_places(index))
    return SafetensorFiles(folder).names if any(folder.glob("*.safetensors")) else frozenset()
