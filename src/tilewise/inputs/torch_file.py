"""Files that torch.save writes of one tensor, read without torch and without running a pickle.

The file is a ZIP archive: `data.pkl`, a pickle of a hundred bytes that names a storage, shape and strides, and the
storages beside it, stored as they are. The pickle is followed here opcode by opcode: those that torch writes for a
tensor are known, of functions the three that it names, and none of them is called. Everything else is refused.

Source of the format: torch/serialization.py and torch/_utils.py (`_rebuild_tensor_v2`).
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewise.errors import InvalidMedia

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def read_torch(data: bytes, check: Callable[[tuple[int, ...]], None]) -> NDArray[Any]:
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
            return _view(tensor, _stored(archive, f"{root}data/{tensor.storage.key}"))
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


def _view(tensor: _Tensor, stored: bytes) -> NDArray[Any]:
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
