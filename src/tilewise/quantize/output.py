"""The output folder of a quantisation: files of weights, and the journal by which an ended run goes on.

What a file will hold is known before its first number: offsets and header follow from names, types and shapes. So a
tensor is written as soon as it is made, in any order, a file gets its name only once it is whole, and one of an earlier
run is recognised by its header.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint, InvalidRequest, Unfinished
from tilewise.quantize import LayerError, NormFactors
from tilewise.weights.files import TORCH_TYPES, shard_files
from tilewise.weights.folder import CheckpointFolder, read_json

JOURNAL = "quantize.json"
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
        for name, place in self._places().items():
            dtype, shape = _SPELLING[self.tensors[name].dtype], list(self.tensors[name].shape)
            fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": list(place)}
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
                assert not writer.missing, f"nothing came for {', '.join(writer.missing)}"
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


@dataclass
class Journal:
    """The record of a quantisation, kept in its output folder so that a run goes on where another one was ended."""

    folder: Path
    asked: dict[str, Any]
    """Options and digests that have to be the same for a run to go on."""
    layers: dict[str, LayerError] = field(default_factory=dict)
    norms: dict[str, NormFactors] = field(default_factory=dict)
    finished: bool = False

    @classmethod
    def open(cls, folder: Path, asked: dict[str, Any]) -> Journal:
        """Open the journal of a folder, or begin one.

        Raises InvalidRequest where it was begun with something else `asked`, is damaged, or other files are there.
        """
        check_folder(folder)
        path = folder / JOURNAL
        if not path.exists():
            return cls(folder, asked)
        try:
            found = read_json(path)
            layers = {name: LayerError(*values) for name, values in found.get("layers", {}).items()}
            norms = {name: NormFactors(*values) for name, values in found.get("norms", {}).items()}
            before = dict(found.get("asked", {}))
        except (InvalidCheckpoint, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(
                f"{path} is damaged ({error}), and no run goes on without it: empty {folder}, or name another folder."
            ) from None
        _check_same(folder, before, asked)
        return cls(folder, asked, layers, norms, found.get("finished") is True)

    def save(self) -> None:
        layers = {name: [error.weights, error.outputs] for name, error in self.layers.items()}
        norms = {name: [factors.mean, factors.largest] for name, factors in self.norms.items()}
        found = {"asked": self.asked, "finished": self.finished, "layers": layers, "norms": norms}
        write_json(self.folder / JOURNAL, found)


def check_folder(folder: Path) -> None:
    """Raise InvalidRequest for a path that is no folder, or a folder with files that no quantisation wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file: name a folder that is new or empty.")
    # A run that was ended while it wrote its first journal leaves a part of that alone.
    others = [path for path in folder.iterdir() if path.name != f"{JOURNAL}.partial"]
    if others and not (folder / JOURNAL).exists():
        raise InvalidRequest(
            f"{folder} is not an empty folder, and has no {JOURNAL}, by which an ended run goes on: empty it, or name "
            "another folder."
        )


def make_folder(folder: Path) -> None:
    """Make the output folder. Raises InvalidRequest where that fails; the OSError of a full disk is passed on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InvalidRequest(f"{folder} cannot be made ({error.strerror}): name a folder that can.") from None


def source_digest(folder: CheckpointFolder) -> str:
    """Return a digest that tells a checkpoint's files from others: of their names, sizes and times, and the config.

    Those of an adapter count among them.
    """
    found = hashlib.sha256((folder.path / "config.json").read_bytes())
    paths = [*shard_files(folder.path), *([] if folder.adapter is None else sorted(folder.adapter.folder.iterdir()))]
    for path in paths:
        status = path.stat()
        found.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _check_same(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    other = [name for name in asked if found.get(name) != asked[name]]
    if other:
        differences = ", ".join(f"{name} ({found.get(name)!r:.40}, now {asked[name]!r:.40})" for name in other)
        raise InvalidRequest(
            f"{folder} holds a quantisation that was begun with another {differences}: give the same again to go on "
            "with it, or another folder."
        )


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
