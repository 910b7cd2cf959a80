"""A tensor of fractions in a file: safetensors, NumPy's .npy, or what torch.save writes.

Nothing of a file is run. Its header is read within a few kilobytes, and the shape that it names is shown to the reader
before an array of that size is made.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewise.errors import InvalidMedia
from tilewise.inputs.file_kind import kind_of
from tilewise.inputs.torch_file import read_torch

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


def read_tensor(data: bytes, check: CheckShape) -> NDArray[Any]:
    """Return the tensor of a file, as float32, float64, float16 or uint16, which is how NumPy has the bits of bfloat16.

    `check` raises for a shape that is not wanted. Raises InvalidMedia for any other file.
    """
    if data.startswith(_NUMPY):
        return _read_numpy(data, check)
    if data.startswith(_ZIP):
        return read_torch(data, check)
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
