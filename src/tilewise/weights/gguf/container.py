"""The head of a GGUF file: metadata, and where each tensor lies. Standard library only.

Source: ggml-org/ggml `docs/gguf.md` for the container, `ggml/src/ggml-common.h` for the sizes of blocks. The package
`gguf` reads the same; it takes twenty seconds for the vocabulary of a Qwen, and trusts every length that a file states.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tilewise.errors import GET_AGAIN, InvalidCheckpoint

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FLOAT, _STRING, _ARRAY = 6, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEEPEST = 4  # arrays within arrays
_MOST_AXES = 4
_LARGEST = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]  # number of single precision


@dataclass(frozen=True, slots=True)
class TensorType:
    """A type of stored numbers, with the `numbers` of one block and its `bytes`."""

    name: str
    numbers: int
    bytes: int


TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    20: TensorType("IQ4_NL", 32, 18),
    23: TensorType("IQ4_XS", 256, 136),
    28: TensorType("F64", 1, 8),
    30: TensorType("BF16", 1, 2),
    39: TensorType("MXFP4", 32, 17),
}
"""Types that can be read, by their number in the files."""
TYPES_BY_NAME = {kind.name: kind for kind in TYPES.values()}
_OTHER_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}


@dataclass(frozen=True, slots=True)
class ContainerTensor:
    """One tensor of a file; `shape` as torch has it, the last axis the one that lies together."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.numbers * self.type.bytes


@dataclass(frozen=True)
class GgufHeader:
    """The head of one file: its metadata, and the places of its tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[ContainerTensor, ...]

    @classmethod
    def read(cls, path: Path) -> GgufHeader:
        """Read a file's head. Raises InvalidCheckpoint if it is no GGUF file, is cut off, or has an unknown type."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return cls(path, *_Head(path, data).parts())
        except (OSError, ValueError) as error:  # mmap of an empty file is a ValueError
            raise InvalidCheckpoint(f"{path} cannot be read as GGUF ({error}); {GET_AGAIN}.") from None

    @cached_property
    def by_name(self) -> dict[str, ContainerTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Return a value of the metadata, or the default. Raises InvalidCheckpoint for one of another kind."""
        value = self.metadata.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)):
            raise InvalidCheckpoint(f"{self.path}: {key} has the wrong type, found {value!r:.80}.")
        return value

    def listed(self, key: str, kind: type | tuple[type, ...], default: list[Any] | None = None) -> list[Any]:
        """Return a list of the metadata, or the default, all of one kind. Raises InvalidCheckpoint for any other."""
        found: list[Any] = self.need(key, list) if default is None else self.get(key, list, default)
        wrong = next((item for item in found if not isinstance(item, kind) or isinstance(item, bool)), None)
        if wrong is not None:
            raise InvalidCheckpoint(f"{self.path}: {key} has an item of the wrong type, found {wrong!r:.80}.")
        return found

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self.get(key, kind)
        if value is None:
            raise InvalidCheckpoint(f"{self.path} does not say {key}; convert the model again.")
        return value


class _Head:
    """A reader of a mapped file from its first byte on; it raises InvalidCheckpoint where the file is too short."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def parts(self) -> tuple[dict[str, Any], tuple[ContainerTensor, ...]]:
        magic, version = self._take(4), self._scalar("I")
        if magic != _MAGIC:
            raise InvalidCheckpoint(f"{self._path} is not a GGUF file, it begins with {magic!r}.")
        if version not in _VERSIONS:
            swapped = struct.unpack(">I", struct.pack("<I", version))[0] in _VERSIONS
            what = "written for big-endian machines" if swapped else f"of GGUF version {version}"
            raise InvalidCheckpoint(f"{self._path} is {what}, read are versions 2 and 3, little-endian.")
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        metadata = {self._string(): self._value(self._scalar("I")) for _ in self._many(pairs, 13)}
        infos = [self._info() for _ in self._many(tensors, 24)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise InvalidCheckpoint(f"{self._path}: general.alignment must be a multiple of 8, found {alignment!r}.")
        start = -(-self._at // alignment) * alignment
        return metadata, tuple(self._placed(start, *info) for info in infos)

    def _take(self, count: int) -> bytes:
        self._many(count, 1)
        self._at += count
        return self._data[self._at - count : self._at]

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _many(self, count: int, least: int) -> range:
        """Return a range of `count` items, checked first: with `least` bytes each, they have to fit into the file."""
        if count * least > len(self._data) - self._at:
            raise InvalidCheckpoint(f"{self._path} ends in the middle of its head; {GET_AGAIN}.")
        return range(count)

    def _string(self) -> str:
        return self._take(self._scalar("Q")).decode(errors="replace")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            value = self._scalar(_SCALARS[kind])
            return _shortest(value) if kind == _FLOAT else value
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth == _DEEPEST:
            raise InvalidCheckpoint(f"{self._path}: metadata has a value of type {kind}, which GGUF does not know.")
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            self._many(count, struct.calcsize(code))
            return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(f"<{code}"))))
        return [self._value(kind, depth + 1) for _ in self._many(count, 8)]

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._string(), self._scalar("I")
        if not 1 <= axes <= _MOST_AXES:
            raise InvalidCheckpoint(f"{self._path}: the tensor {name} has {axes} axes, expected 1 to {_MOST_AXES}.")
        sizes = [self._scalar("Q") for _ in range(axes)]
        return name, tuple(reversed(sizes)), self._scalar("I"), self._scalar("Q")

    def _placed(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> ContainerTensor:
        if kind not in TYPES:
            read = ", ".join(found.name for found in TYPES.values())
            raise InvalidCheckpoint(
                f"{self._path}: the tensor {name} has type {_OTHER_TYPES.get(kind, f'number {kind}')}, which is not "
                f"read; read are {read}. Take another quantisation of the same model."
            )
        tensor = ContainerTensor(name, TYPES[kind], shape, start + offset)
        if shape[-1] % tensor.type.numbers:
            raise InvalidCheckpoint(
                f"{self._path}: rows of {name} have {shape[-1]} numbers, {tensor.type.name} has blocks of "
                f"{tensor.type.numbers}."
            )
        if offset % 8 or tensor.offset + tensor.nbytes > len(self._data):
            raise InvalidCheckpoint(
                f"{self._path} has {len(self._data)} bytes, the tensor {name} ends at byte "
                f"{tensor.offset + tensor.nbytes}: it was cut off; {GET_AGAIN}."
            )
        return tensor


def _shortest(value: float) -> float:
    """Return a number in single precision as somebody wrote it: 1e-06, not 9.99999997e-07."""
    written = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    fits = (short for short in written if abs(short) <= _LARGEST)  # a short form of the largest is too large
    return next((short for short in fits if struct.pack("<f", short) == struct.pack("<f", value)), value)
