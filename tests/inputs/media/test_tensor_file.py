"""Files of a tensor: what torch, NumPy and safetensors write is read as it is, and whatever else is named."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tilewise.errors import InvalidMedia
from tilewise.inputs.media.tensor_file import read_tensor, write_safetensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def numpy_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def anything(shape: tuple[int, ...]) -> None:
    pass


def read(data: bytes) -> torch.Tensor:
    array = np.array(read_tensor(data, anything))
    tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (1, 1)])
def test_what_torch_and_safetensors_write_is_read(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    for data in (saved(tensor), safetensors.torch.save({"rows": tensor})):
        assert torch.equal(read(data), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(8, 9)[2:5, 3:],
        torch.randn(4, 6).T,
        torch.randn(6).expand(4, 6),
        torch.nn.Parameter(torch.randn(3, 2)),
        torch.randn(3, 2, requires_grad=True),
    ],
    ids=["part", "transposed", "expanded", "parameter", "with gradients"],
)
def test_views_are_read_as_they_are_seen(tensor):
    assert torch.equal(read(saved(tensor)), tensor)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(dtype, order):
    array = np.asarray(np.random.default_rng(0).standard_normal((4, 6)), dtype, order=order)
    assert np.array_equal(read_tensor(numpy_file(array), anything), array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_files_are_those_of_safetensors(dtype):
    tensor = torch.randn(3, 5).to(dtype)
    array = tensor.view(torch.uint16) if dtype == torch.bfloat16 else tensor
    found = safetensors.torch.load(write_safetensors("image_embeds", array.numpy()))
    assert torch.equal(found["image_embeds"], tensor)


class _Runs:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in files.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return file.getvalue()


@pytest.mark.parametrize("form", ["bare", "torch", "legacy", "zip"])
def test_no_code_of_a_pickle_runs(tmp_path, form):
    """CVE-2025-32434 and its kind: a tensor's file that is a program."""
    ran = tmp_path / "ran"
    data = {
        "bare": lambda: pickle.dumps(_Runs(ran)),
        "torch": lambda: saved([torch.ones(2, 2), _Runs(ran)]),
        "legacy": lambda: saved(_Runs(ran), _use_new_zipfile_serialization=False),
        "zip": lambda: zipped(pickle.dumps(_Runs(ran)), data__0=b"abcd"),
    }[form]()
    with pytest.raises(InvalidMedia):
        read_tensor(data, anything)
    assert not ran.exists()


def described(numel: object = 4, offset: object = 0, shape: object = (2, 2), strides: object = (2, 1)) -> bytes:
    """A pickle as torch writes it, of whatever numbers."""
    tensor = torch.ones(2, 2)
    data = zipfile.ZipFile(io.BytesIO(saved(tensor))).read("archive/data.pkl")
    number = {4: b"K\x04", 0: b"K\x00", -1: b"J\xff\xff\xff\xff", 2**31 - 1: b"J\xff\xff\xff\x7f"}
    of = {(2, 2): b"K\x02K\x02\x86", (2, 1): b"K\x02K\x01\x86"}

    def written(value: object) -> bytes:
        if value in of:
            return of[value]
        return b"".join(number.get(item) or b"J" + struct.pack("<i", item) for item in value) + b"\x86"

    data = data.replace(b"cpuq\x04K\x04", b"cpuq\x04" + number[numel])
    head, _, tail = data.partition(b"QK\x00")
    tail = tail.replace(of[(2, 2)], written(shape), 1).replace(of[(2, 1)], written(strides), 1)
    return head + b"Q" + number[offset] + tail


FOUR = np.ones(4, np.float32).tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no file of a tensor"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "is a PNG picture: send it as image_url"),
        (b"\x80\x02K\x01.", "a bare pickle"),
        (b"PK\x03\x04" + bytes(60), "damaged or cut short"),
        (saved(torch.ones(2, 2))[:-40], "damaged or cut short"),
        (saved(torch.ones(2, 2)).replace(FOUR, FOUR[:-1] + b"\x01"), "damaged or cut short"),
        (saved({"a": torch.ones(2, 2)}), "has EMPTY_DICT"),
        (saved([torch.ones(2, 2)]), "has EMPTY_LIST"),
        (saved(5), "it has int in place of a tensor"),
        (saved(torch.ones(2, 2, dtype=torch.int32)), "names 'torch IntStorage'"),
        (saved(torch.ones(2, 2, dtype=torch.complex64)), "names 'torch ComplexFloatStorage'"),
        (saved(torch.eye(2).to_sparse()), "names 'torch._utils _rebuild_sparse_tensor'"),
        (zipped(described(), zipfile.ZIP_DEFLATED, data__0=FOUR), "its parts are compressed"),
        (zipped(described(), data__0=FOUR[:-4]), "its storage has 12 bytes, its header says 4 numbers"),
        (zipped(described(), data__1=FOUR), "damaged or cut short"),
        (zipped(described(shape=(2**31 - 1, 2)), data__0=FOUR), "reaches beyond its storage"),
        (zipped(described(shape=(-1, 2)), data__0=FOUR), "its pickle is damaged"),
        (zipped(described(strides=(-1, 1)), data__0=FOUR), "its pickle is damaged"),
        (zipped(described(offset=4), data__0=FOUR), "reaches beyond its storage"),
        (zipped(described(offset=-1), data__0=FOUR), "its pickle is damaged"),
        (zipped(described(numel=2**31 - 1), data__0=FOUR), "its storage has 16 bytes"),
        (zipped(described(), data__0=FOUR, byteorder=b"big"), "big-endian"),
        (zipped(b"\x80\x02" + b"(" * 5000 + b"."), "its pickle has 5003 bytes"),
        (zipped(b"\x80\x02K\x01\x85" + b"2\x86" * 100 + b"."), "has DUP"),
        (zipped(b"\x80\x02r\xff\xff\xff\xffN."), "its pickle is damaged"),
        (zipped(b"\x80\x02N"), "its pickle is damaged"),
        (zipped(b"\x80\x02."), "its pickle is damaged"),
        (zipped(pickle.dumps(OrderedDict(), 2)), "NoneType|none"),
        (zipped(b"", **{f"f{number}": b"" for number in range(70)}), "an archive of more than 64 files"),
        (numpy_file(np.ones((2, 2), np.int32)), "got <i4"),
        (numpy_file(np.ones((2, 2), np.complex64)), "got <c8"),
        (numpy_file(np.ones((2, 2)))[:-1], "takes 32 bytes, the file has 31"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "does not describe one array"),
        (b"\x93NUMPY\x01\x00\x4a\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999999), }\n",
         "the file has 0"),
        (struct.pack("<Q", 2**60) + b"{}", "its header says"),
        (struct.pack("<Q", 2) + b"{}", "does not describe one tensor"),
        (struct.pack("<Q", 4000) + b"{" + b'"a":{' * 799 + b"    ", "does not describe one tensor"),
        (safetensors.torch.save({"a": torch.ones(1), "b": torch.ones(1)}), "does not describe one tensor"),
        (safetensors.torch.save({"a": torch.ones(1, dtype=torch.int8)}), "got I8"),
        (safetensors.torch.save({"a": torch.ones(2, 2)}) + b"x", "takes 16 bytes, the file has 17"),
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_named(data, says):
    with pytest.raises(InvalidMedia, match=says) as caught:
        read_tensor(data, anything)
    assert len(str(caught.value)) < 500


def header(**changes: object) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    text = json.dumps({"rows": entry}).encode()
    return struct.pack("<Q", len(text)) + text + FOUR


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [4, 4]},
        {"shape": [-2, -2]},
        {"shape": [2.0, 2]},
        {"shape": [True, 4]},
        {"shape": "22"},
        {"shape": 4},
        {"shape": [1] * 9},
        {"dtype": ["F32"]},
        {"data_offsets": [0, 8]},
        {"data_offsets": [8, 16]},
        {"data_offsets": None},
    ],
)
def test_headers_that_say_something_else_than_is_there(changes):
    assert read_tensor(header(), anything).shape == (2, 2)
    with pytest.raises(InvalidMedia):
        read_tensor(header(**changes), anything)


def test_the_shape_is_shown_before_anything_is_made():
    """An expanded tensor's file is small, and the tensor as large as it says."""
    shapes = []

    def refuse(shape: tuple[int, ...]) -> None:
        shapes.append(shape)
        raise InvalidMedia("too large")

    for data in (saved(torch.ones(1).expand(10**6, 10**6)), numpy_file(np.ones((2, 2))), header()):
        with pytest.raises(InvalidMedia, match="too large"):
            read_tensor(data, refuse)
    assert shapes == [(10**6, 10**6), (2, 2), (2, 2)]


def test_damage_of_any_byte_is_an_error_or_a_tensor():
    """Each byte of each form, changed: no other exception comes of it."""
    tensor = torch.ones(1, 2)
    files = (saved(tensor), numpy_file(tensor.numpy()), safetensors.torch.save({"a": tensor}))
    for data in files:
        for place in range(min(len(data), 700)):
            for value in (0, 0x7F, 0xFF, data[place] ^ 1):
                changed = data[:place] + bytes([value]) + data[place + 1 :]
                with suppress(InvalidMedia):
                    read_tensor(changed, anything)
