"""Files of weights that are written tensor by tensor, and are there only once they are whole.

What a file will hold is known before its first number: offsets and header follow from names, types and shapes. So a
tensor is written as soon as it is made, in any order, and a file of an earlier run is recognised by its header.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewise.errors import Unfinished
from tilewise.weights.sources import TORCH_TYPES

_SPELLING = {dtype: name for name, dtype in TORCH_TYPES.items()}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_A_TIME = 2**28
"""Most bytes of one call that writes."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """The dtype and shape of a tensor that a file will hold."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> TensorShape:
        return cls(tensor.dtype, tuple(tensor.shape))


@dataclass(frozen=True)
class Shard:
    """A safetensors file that holds certain tensors."""

    path: Path
    tensors: Mapping[str, TensorShape]

    @property
    def header(self) -> bytes:
        """First bytes of the file: length and JSON. Wide types come first, so that every tensor is aligned."""
        fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, (start, stop) in self._places().items():
            tensor = self.tensors[name]
            fields[name] = {
                "dtype": _SPELLING[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, stop],
            }
        text = json.dumps(fields, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors.values())

    def is_whole(self) -> bool:
        """True if an earlier run has written the file, with the same tensors."""
        header = self.header
        try:
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_size == self.nbytes and file.read(len(header)) == header
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def writing(self) -> Iterator[ShardWriter]:
        """Give a writer of the tensors; the file gets its name only once all of them are on the disk."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            with partial.open("wb") as file:
                header = self.header
                writer = ShardWriter(file.fileno(), self, {k: len(header) + v[0] for k, v in self._places().items()})
                writer.put(header, 0)
                yield writer
                writer.check_complete()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError:  # a full disk needs the room more than half a file is worth
            partial.unlink(missing_ok=True)
            raise

    def _places(self) -> dict[str, tuple[int, int]]:
        """Return the first byte of each tensor and the one behind its last, counted from the end of the header."""
        places, at = {}, 0
        for name, tensor in sorted(self.tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            places[name] = (at, at + tensor.nbytes)
            at += tensor.nbytes
        return places


@dataclass
class ShardWriter:
    """A writer that puts tensors where the header says that they are."""

    file: int
    shard: Shard
    missing: dict[str, int]
    """First byte in the file of each tensor that has not come yet."""

    def write(self, name: str, tensor: Tensor) -> None:
        wanted = self.shard.tensors[name]
        assert TensorShape.of(tensor) == wanted, f"{name} came as {TensorShape.of(tensor)}, planned was {wanted}"
        data: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        self.put(memoryview(data), self.missing.pop(name))

    def put(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.file, view[:_AT_A_TIME], at)
            view, at = view[written:], at + written

    def check_complete(self) -> None:
        assert not self.missing, f"nothing came for {', '.join(self.missing)}"


def split_into_shards(
    folder: Path, name: str, layers: Sequence[Mapping[str, TensorShape]], most: int
) -> tuple[list[Shard], list[list[int]]]:
    """Return files that hold the tensors of each layer together, and the numbers of the layers in each.

    A file has at most `most` bytes of tensors, unless one layer alone has more.
    """
    groups: list[list[int]] = [[]]
    size = 0
    for number, layer in enumerate(layers):
        more = sum(tensor.nbytes for tensor in layer.values())
        if groups[-1] and size + more > most:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += more
    shards = []
    for place, group in enumerate(groups, 1):
        file = f"{name}.safetensors" if len(groups) == 1 else f"{name}-{place:05d}-of-{len(groups):05d}.safetensors"
        tensors = {key: tensor for number in group for key, tensor in layers[number].items()}
        shards.append(Shard(folder / file, tensors))
    return shards, groups


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, as `write_text` does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either whole or as it was before, whatever goes wrong."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(folder: Path, done: Callable[[], str]) -> Iterator[None]:
    """Turn an OSError into Unfinished, which says what is wrong with the folder and, in words, what is `done`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            why = f"{folder}: no more can be written ({error.strerror})."
            raise Unfinished(f"{why} {done()}; make room, and the same command goes on.") from None
        raise Unfinished(
            f"{folder} cannot be written ({error}). {done()}; once it can, the same command goes on."
        ) from None
