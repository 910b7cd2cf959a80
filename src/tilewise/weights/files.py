"""Files of a checkpoint's weights, and the tensors in them, which are read by slices through the page cache."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.weights.folder import index_among, listed_shards, missing_parts, shards_among, tensor_places
from tilewise.weights.gguf.folder import is_gguf_folder
from tilewise.weights.gguf.tensors import GgufFiles, indexed_tensors
from tilewise.weights.names import Stored
from tilewise.weights.page_cache import MappedPages


class WeightFiles(Protocol):
    """The tensors of a checkpoint by the names that its files have."""

    folder: Path
    names: frozenset[str]

    def tensor(self, name: str) -> Tensor:
        """Return the whole tensor."""
        ...

    def stored(self, name: str) -> Stored:
        """Return a tensor to be read in part."""
        ...

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors files spell it: BF16, F32, I8 ..."""
        ...

    def path(self, name: str) -> Path:
        """Return the file that a tensor is in; of one that no file has, the only file or the folder."""
        ...

    def give_back(self, name: str) -> None:
        """Give back the memory that a tensor takes since it was read; it can be read again."""
        ...


class SafetensorFiles:
    """The tensors in a folder's safetensors files. Opening checks each header; data is mapped, not read."""

    def __init__(self, folder: Path, language: bool = True) -> None:
        """Open the shards; without `language`, those of only the language model stay closed and need not be there."""
        self.folder = folder
        self._close = ExitStack()
        self._readers: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        paths = shard_files(folder, language)
        for path in paths:
            reader = self._open(path)
            self._readers |= dict.fromkeys(reader.keys(), reader)
            self._paths |= dict.fromkeys(reader.keys(), path)
        self._pages = MappedPages(paths)
        self._whole = paths[0] if len(paths) == 1 else folder
        self.names = frozenset(self._readers)

    def _open(self, path: Path) -> Any:
        try:
            return self._close.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InvalidCheckpoint(_why_damaged(path, str(error))) from None

    def tensor(self, name: str) -> Tensor:
        """Return the whole tensor, as a view of the mapped file: nothing is copied."""
        tensor: Tensor = self._readers[name].get_tensor(name)
        return tensor

    def stored(self, name: str) -> Stored:
        """Return a tensor to be read in part; what is read is copied."""
        stored: Stored = self._readers[name].get_slice(name)
        return stored

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the file spells it: BF16, F32, I8 ..."""
        return str(self._readers[name].get_slice(name).get_dtype())

    def path(self, name: str) -> Path:
        """Return the file that a tensor is in; of one that no file has, the only file or the folder."""
        return self._paths.get(name, self._whole)

    def give_back(self, name: str) -> None:
        """Give back the memory that a tensor takes since it was read; it can be read again."""
        self._pages.give_back(self.tensor(name))

    def close(self) -> None:
        self._close.close()


def open_files(folder: Path, language: bool = True) -> WeightFiles:
    """Open the files of a checkpoint's folder. Raises InvalidCheckpoint where one is missing or damaged."""
    return GgufFiles(folder) if is_gguf_folder(folder) else SafetensorFiles(folder, language)


def shard_files(folder: Path, language: bool = True) -> list[Path]:
    """Return the files of weights; without `language`, those that have anything beside the language model.

    Raises InvalidCheckpoint where one is missing.
    """
    if is_gguf_folder(folder):
        return sorted(folder.glob("*.gguf"))
    names = _names(folder)
    index = index_among(names)
    if index is None:
        found = shards_among(names)
        if not found:
            raise InvalidCheckpoint(f"{folder} has no weights, neither *.safetensors nor *.gguf.")
        if lacking := missing_parts(found):
            raise InvalidCheckpoint(f"{folder}: the shard {lacking[0]} is missing beside {found[0]}; {GET_AGAIN}.")
        return [folder / name for name in found]
    listed = listed_shards(folder / index, language)
    missing = next((name for name in listed if not (folder / name).exists()), None)
    if missing is not None:
        raise InvalidCheckpoint(f"{folder}: the shard {missing} is missing, {index} lists it; {GET_AGAIN}.")
    return [folder / name for name in listed]


def known_names(folder: Path) -> frozenset[str]:
    """Return the names of the tensors, as far as an index or shards tell them; before a download, an empty set."""
    if is_gguf_folder(folder):
        return frozenset(indexed_tensors(folder))
    names = _names(folder)
    index = index_among(names)
    if index is not None:
        return frozenset(tensor_places(folder / index))
    return SafetensorFiles(folder).names if shards_among(names) else frozenset()


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _why_damaged(path: Path, error: str) -> str:
    """Say what is wrong with a file of weights: downloads often leave something else in its place."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        start = b""
    if start.startswith(b"version https://git-lfs"):
        return (
            f"{path} is a pointer of Git LFS and no weights: run `git lfs pull` in its repository, or fetch the model."
        )
    if start.startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page and no weights: fetch the file itself, from its download link."
    return f"{path} is damaged ({error}); {GET_AGAIN}."
