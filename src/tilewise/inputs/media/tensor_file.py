"""A tensor of fractions in a file: safetensors, NumPy's .npy, or what torch.save writes.

Nothing of a file is run. Its header is read within a few kilobytes, and the shape that it names is shown to the reader
before an array of that size is made.

A file of torch.save is a ZIP archive: `data.pkl`, a pickle of a hundred bytes that names a storage, shape and strides,
and the storages beside it, stored as they are. The pickle is followed here opcode by opcode: those that torch writes
for a tensor are known, of functions the three that it names, and none of them is called. Everything else is refused.
Source of the format: torch/serialization.py and torch/_utils.py (`_rebuild_tensor_v2`).
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewise.errors import InvalidMedia
from tilewise.inputs.media.file_kind import kind_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


Shape = tuple[int, ...]
CheckShape = Callable[[Shape], None]
_MOST_HEADER = 4096
_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_SAFETENSORS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
_NUMPY_DTYPES = ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8")
_NUMPY_HEADER = re.compile(
    rb"\{'descr': '([\w<>|=]{1,16})', 'fortran_order': (True|False), "
    rb"'shape': \((\d{0,9}(?:, ?\d{1,9}){0,7},?)\), ?\}\s*"
)
_FORMS = "send a safetensors file of one tensor, an .npy file, or what torch.save(tensor, file) writes, in base64"
_MOST_PICKLE = 4096
_MOST_ENTRIES = 64
_ENTRY = b"PK\x01\x02"
_STORAGES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype("<u2"),
    "torch DoubleStorage": np.dtype("<f8"),
}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_HOOKS = "collections OrderedDict"
_FUNCTIONS = (_TENSOR, _PARAMETER, _HOOKS)
_PUSHES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "GLOBAL")
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ZIP_FAULTS = (
    *(zipfile.BadZipFile, struct.error, EOFError, KeyError, NotImplementedError),
    *(OSError, OverflowError, RuntimeError, ValueError),
)


def read_tensor(data: bytes, check: CheckShape) -> NDArray[Any]:
    """Return the tensor of a file, as float32, float64, float16 or uint16, which is how NumPy has the bits of bfloat16.

    `check` raises for a shape that is not wanted. Raises InvalidMedia for any other file.
    """
    if data.startswith(_NUMPY):
        return _read_numpy(data, check)
    if data.startswith(_ZIP):
        return _read_torch(data, check)
    if len(data) > 8 and data[8:9] == b"{":
        return _read_safetensors(data, check)
    kind = kind_of(data)
    if kind is not None and kind.family == "picture":
        raise InvalidMedia(f"image_embeds is {kind.name}: send it as image_url.")
    what = "a bare pickle, which is not read" if data[:1] == b"\x80" else "no file of a tensor"
    raise InvalidMedia(f"image_embeds is {what}: {_FORMS}.")


def write_safetensors(name: str, array: NDArray[Any]) -> bytes:
    """Return a file of one tensor, float32, float64, float16, or uint16 with the bits of bfloat16."""
    kind = next(kind for kind, dtype in _SAFETENSORS.items() if dtype == array.dtype)
    entry = {"dtype": kind, "shape": list(array.shape), "data_offsets": [0, array.nbytes]}
    header = json.dumps({name: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + array.tobytes()


def _read_safetensors(data: bytes, check: CheckShape) -> NDArray[Any]:
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_MOST_HEADER, len(data) - 8):
        raise _damaged("safetensors", f"its header says {length} bytes, at most {_MOST_HEADER} are read")
    try:
        header = json.loads(data[8 : 8 + length])
        (entry,) = (entry for name, entry in header.items() if name != "__metadata__")
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged("safetensors", "its header does not describe one tensor") from None
    if not isinstance(kind, str) or kind not in _SAFETENSORS:
        raise no_fractions(str(kind))
    return _view(data, 8 + length, shape, _SAFETENSORS[kind], check, (start, stop))


def _read_numpy(data: bytes, check: CheckShape) -> NDArray[Any]:
    """Read an .npy file. Its header is a dict as Python writes it, which is matched and not evaluated."""
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    found = _NUMPY_HEADER.fullmatch(data[start : start + min(length, _MOST_HEADER)])
    if found is None:
        raise _damaged(".npy", "its header does not describe one array")
    if found[1].decode() not in _NUMPY_DTYPES:
        raise no_fractions(found[1].decode())
    shape, columns_first = tuple(map(int, found[3].decode().replace(",", " ").split())), found[2] == b"True"
    check(shape)
    stored = shape[::-1] if columns_first else shape
    array = _view(data, start + length, stored, np.dtype(found[1].decode()), lambda shape: None)
    return array.T if columns_first else array


def _view(
    data: bytes, start: int, shape: Shape, dtype: np.dtype[Any], check: CheckShape, offsets: Any = None
) -> NDArray[Any]:
    """Return an array over the file's bytes, which have to be as many as its shape says."""
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
        raise _damaged("tensor", f"its shape is {list(shape)!r:.80}")
    check(shape)
    size, there = math.prod(shape) * dtype.itemsize, len(data) - start
    if size != there or offsets not in (None, (0, size)):
        raise _damaged("tensor", f"its shape {list(shape)} takes {size} bytes, the file has {there}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _damaged(what: str, fault: str) -> InvalidMedia:
    return InvalidMedia(f"image_embeds is a {what} file that cannot be read ({fault}): {_FORMS}.")


def no_fractions(kind: str) -> InvalidMedia:
    return InvalidMedia(f"image_embeds must be float32, float16 or bfloat16, got {kind:.40}: send the encoder's rows.")


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _NotATensor(Exception):
    """The pickle is not that of one dense tensor of fractions."""


def _read_torch(data: bytes, check: CheckShape) -> NDArray[Any]:
    """Return the tensor; bfloat16 comes as uint16. `check` raises for an unwanted shape, before anything is read.

    Raises InvalidMedia for any other file.
    """
    if data.count(_ENTRY) > _MOST_ENTRIES:
        raise _unreadable(f"it is an archive of more than {_MOST_ENTRIES} files")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickle = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")
            root = pickle.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and _stored(archive, f"{root}byteorder") != b"little":
                raise _unreadable("it was written on a big-endian machine")
            tensor = _described(_stored(archive, pickle, _MOST_PICKLE))
            check(tensor.shape)
            return _strided(tensor, _stored(archive, f"{root}data/{tensor.storage.key}"))
    except _NotATensor as error:
        raise _unreadable(str(error)) from None
    except InvalidMedia:
        raise
    except _ZIP_FAULTS:
        raise _unreadable("it is damaged or cut short") from None


def _stored(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytes:
    """Read a file of the archive. torch compresses none; one that is compressed may be far larger than it looks."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise _NotATensor("its parts are compressed, torch stores them as they are")
    if most is not None and entry.file_size > most:
        raise _NotATensor(f"its pickle has {entry.file_size} bytes, that of a tensor at most {most}")
    return archive.read(entry)


def _strided(tensor: _Tensor, stored: bytes) -> NDArray[Any]:
    storage = tensor.storage
    if len(stored) != storage.count * storage.dtype.itemsize:
        raise _NotATensor(f"its storage has {len(stored)} bytes, its header says {storage.count} numbers")
    # as_strided below believes shape and strides, so the last number has to lie within the storage.
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= storage.count:
        raise _NotATensor(f"its shape {list(tensor.shape)} reaches beyond its storage of {storage.count} numbers")
    flat = np.frombuffer(stored, storage.dtype)[tensor.offset :]
    strides = [step * storage.dtype.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def _described(pickle: bytes) -> _Tensor:
    """Return what the pickle says of its one tensor."""
    try:
        found = _PickleReader().run(pickle)
    except (IndexError, KeyError, TypeError, ValueError):
        raise _NotATensor("its pickle is damaged") from None
    if not isinstance(found, _Tensor):
        raise _NotATensor(f"it has {type(found).__name__.lower().strip('_')} in place of a tensor")
    return found


class _PickleReader:
    """A stack machine of plain values: functions are names, storages and tensors what the pickle said of them."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._do(opcode.name, argument)
        raise ValueError

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSHES:
            stack.append(argument if name != "GLOBAL" else _named(argument))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(self._taken(len(stack) - self._marks.pop()))
        elif name in _TUPLES:
            stack.append(self._taken(_TUPLES[name]))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments))
        elif name != "PROTO":
            raise _NotATensor(f"its pickle has {name}, which is not part of a dense tensor's")

    def _taken(self, count: int) -> tuple[Any, ...]:
        start = len(self._stack) - count
        if start < 0:
            raise IndexError
        taken = tuple(self._stack[start:])
        del self._stack[start:]
        return taken


@dataclass(frozen=True, slots=True)
class _Function:
    name: str


def _named(name: str) -> _Function | np.dtype[Any]:
    if (dtype := _STORAGES.get(name)) is not None:
        return dtype
    if name not in _FUNCTIONS:
        raise _NotATensor(f"its pickle names {name[:80]!r}, which is not part of a dense tensor of float32, float16 or "
                          "bfloat16")  # fmt: skip
    return _Function(name)


def _storage(said: Any) -> _Storage:
    """Return a storage; torch writes ("storage", type, key, device, numbers)."""
    kind, dtype, key, device, count = said
    if kind != "storage" or not isinstance(dtype, np.dtype) or type(key) is not str or type(device) is not str:
        raise TypeError
    return _Storage(key, dtype, _whole(count))


def _made(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Function) or type(arguments) is not tuple:
        raise TypeError
    if function.name == _HOOKS and not arguments:
        return None
    if function.name == _PARAMETER and isinstance(arguments[0], _Tensor):
        return arguments[0]
    storage, offset, shape, strides = arguments[:4]
    if function.name != _TENSOR or not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 8:
        raise TypeError
    return _Tensor(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, strides)))


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise TypeError
    return value


def _unreadable(fault: str) -> InvalidMedia:
    return InvalidMedia(
        f"image_embeds is a file of torch.save that cannot be read: {fault}. Save one dense tensor of float32, float16 "
        "or bfloat16, as torch.save(tensor.cpu(), file)."
    )
