"""Files of a checkpoint's weights: the tensors in them, and the memory that they take while they are mapped."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilewise.config import LoadStrategy
from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.weights.adapter import plain_names
from tilewise.weights.file_names import index_among, listed_shards, missing_parts, shards_among, tensor_places
from tilewise.weights.gguf import indexed_tensors, is_gguf_folder
from tilewise.weights.gguf.container import TYPES_BY_NAME
from tilewise.weights.names import Stored

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
_MAPS = Path("/proc/self/maps")
_PIECE = 16 * 2**20  # bytes


class WeightFiles(ABC):
    """The tensors of a checkpoint by the names that its files have. Files are mapped, not read."""

    folder: Path
    names: frozenset[str]
    _pages: MappedPages

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return the whole tensor, as a view of the mapped file: nothing is copied."""

    @abstractmethod
    def stored(self, name: str) -> Stored:
        """Return a tensor to be read in part."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors files spell it: BF16, F32, I8 ..."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Return the file that a tensor is in; of one that no file has, the only file or the folder."""

    def give_back(self, name: str) -> None:
        """Give back the memory that a tensor takes since it was read; it can be read again."""
        self._pages.give_back(self.tensor(name))


class SafetensorFiles(WeightFiles):
    """The tensors in a folder's safetensors files. Opening checks each header."""

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
        tensor: Tensor = self._readers[name].get_tensor(name)
        return tensor

    def stored(self, name: str) -> Stored:
        stored: Stored = self._readers[name].get_slice(name)
        return stored

    def dtype(self, name: str) -> str:
        return str(self._readers[name].get_slice(name).get_dtype())

    def path(self, name: str) -> Path:
        return self._paths.get(name, self._whole)

    def close(self) -> None:
        self._close.close()


class GgufFiles(WeightFiles):
    """The tensors of a folder that `gguf_folder` made. Quantised ones are bytes (U8), each row its blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors = indexed_tensors(folder)
        self.names = frozenset(self._tensors)
        self._maps = {name: _mapped(folder / name) for name in {found.file for found in self._tensors.values()}}
        self._pages = MappedPages([folder / name for name in self._maps])

    def tensor(self, name: str) -> Tensor:
        found = self._tensors[name]
        kind = TYPES_BY_NAME[found.type]
        shape = (*found.shape[:-1], found.shape[-1] // kind.numbers * kind.bytes)
        stored = self._maps[found.file]
        stop = found.offset + math.prod(shape)
        if stop > len(stored):
            raise InvalidCheckpoint(f"{self.path(name)} became shorter since it was first read; {GET_AGAIN}.")
        piece = stored[found.offset : stop]
        return piece.view(shape) if found.quantised else piece.view(TORCH_TYPES[found.type]).view(found.shape)

    def stored(self, name: str) -> StoredView:
        return StoredView(self.tensor(name))

    def dtype(self, name: str) -> str:
        found = self._tensors[name]
        return "U8" if found.quantised else found.type

    def path(self, name: str) -> Path:
        return (self.folder / self._tensors[name].file).resolve() if name in self._tensors else self.folder


@dataclass(frozen=True)
class StoredView:
    """A mapped tensor to be read in part (`Stored`)."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, index: int | slice) -> Tensor:
        return self.tensor[index]


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
    """Return the names of the tensors, as far as an index or shards tell them; before a download, an empty set.

    Where a checkpoint holds adapters, the names are those after merging.
    """
    if is_gguf_folder(folder):
        return frozenset(indexed_tensors(folder))
    names = _names(folder)
    index = index_among(names)
    if index is not None:
        return plain_names(frozenset(tensor_places(folder / index)))
    return plain_names(SafetensorFiles(folder).names) if shards_among(names) else frozenset()


def read_ahead(files: Sequence[Path], strategy: LoadStrategy | None) -> Thread | None:
    """Read files that will be mapped, so that the system has them in memory.

    With "eager", all is read when this returns; with "prefetch", a thread, which is returned, reads while the model is
    built.
    """
    if strategy == "eager":
        read_through(files)
    if strategy != "prefetch":
        return None
    thread = Thread(target=read_through, args=(files,), name="prefetch", daemon=True)
    thread.start()
    return thread


def read_through(files: Sequence[Path]) -> int:
    """Read files for the system to keep in memory, and return the number of bytes."""
    piece, total = memoryview(bytearray(_PIECE)), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                total += count
    return total


class MappedPages:
    """The places in memory where some files are mapped, for giving back what is no longer needed.

    A weight that was packed or moved to a device would otherwise be there twice until the system runs short. Only on
    Linux is anything known and given back.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        linux = sys.platform == "linux"
        self._ranges = sorted(_ranges({str(file.resolve()) for file in files})) if linux else []
        self._madvise = ctypes.CDLL(None).madvise if linux else None

    def give_back(self, tensor: Tensor) -> None:
        """Give back the pages that a tensor fills. They come from the file again, so nobody may have changed them.

        A tensor that lies in none of the files, as a copy would, is left alone: its numbers would be lost.
        """
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._ranges, (first, sys.maxsize)) - 1
        if at < 0 or last > self._ranges[at][1]:
            return
        # Only whole pages: the first and the last may also hold other tensors.
        start, stop = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise is not None and stop > start:
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _ranges(files: set[str]) -> Iterable[tuple[int, int]]:
    """Yield first address and end of each mapping of the files, as proc(5) lists them."""
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in files:
            first, last = addresses.split("-")
            yield int(first, 16), int(last, 16)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _mapped(path: Path) -> Tensor:
    """Map a file as uint8, privately, so that nothing that is done to the tensor reaches the file."""
    try:
        return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise InvalidCheckpoint(f"{path.resolve()} cannot be read ({error}); was it moved?") from None


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
