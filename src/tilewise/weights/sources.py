"""Sources of weights without a checkpoint's files: noise, shapes alone, and another source that is watched."""

from __future__ import annotations

import hashlib
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8
from tilewise.weights.files import TORCH_TYPES
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization.stored import ExpectedTensor, Layouts, StoredModule, in_floats
from tilewise.weights.view import SourceOver, StoredLinear, TensorSource

_SPREADS = {Codes.UINT4: 4.61, Codes.INT4: 4.61, Codes.FP4: 2.93, Codes.UINT8: 73.9, Codes.INT8: 73.9, Codes.FP8: 1.0}
"""Standard deviation of what random codes stand for; codes of E4M3 are those of normal numbers, as some are NaN."""
_MIDDLES = {Codes.UINT4: 8.0, Codes.UINT8: 128.0}


@dataclass
class _SourceWithoutFiles(ABC):
    """A source whose matrices have the forms that those of the files have, or will have.

    Layouts are found by the names that `locate` gives.
    """

    dtype: torch.dtype
    absent: frozenset[str] = field(default=frozenset(), kw_only=True)
    locate: Callable[[str], TensorRef] = field(default=TensorRef, kw_only=True)
    layouts: Layouts = field(default=in_floats, kw_only=True)

    def has(self, name: str) -> bool:
        return name not in self.absent

    @abstractmethod
    def read(self, name: str, shape: Sequence[int]) -> Tensor: ...

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        theirs = self.locate(f"{module}.weight").module
        layout = self.layouts(theirs)
        if layout is None:
            return dense(self, module, outputs, inputs, bias)
        matrix = self._filled(module, layout.read(StoredModule(TensorShapes(), theirs), outputs, inputs))
        apart = bias and not layout.folds_bias
        return StoredLinear(matrix, self.read(f"{module}.bias", (outputs,)) if apart else None)

    @abstractmethod
    def _filled(self, module: str, form: Form) -> Form:
        """Return the matrix of a module in a form, whose tensors are meta."""


@dataclass
class RandomSource(_SourceWithoutFiles):
    """A source of reproducible noise: each tensor depends on seed and name alone, so two builds agree.

    It is drawn on the device; numbers of one kind of device are not those of another.
    """

    device: torch.device = torch.device("cpu")
    seed: int = 0
    scale: float = 0.02

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        noise = torch.randn(*shape, generator=self._generator(name), device=self.device).mul_(self.scale)
        return (noise.add_(1) if "norm" in name and name.endswith("weight") else noise).to(self.dtype)

    def _filled(self, module: str, form: Form) -> Form:
        return drawn(form, self._generator(f"{module}.weight"), self.dtype, self.scale)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed + zlib.crc32(name.encode()))


@dataclass
class ShapeSource(_SourceWithoutFiles):
    """A source of shapes without data; `parameters` counts those of a model of this config."""

    parameters: int = 0

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.parameters += math.prod(shape)
        return torch.empty(*shape, dtype=self.dtype, device="meta")

    def _filled(self, module: str, form: Form) -> Form:
        self.parameters += math.prod(form.shape)
        return form


@dataclass(frozen=True)
class TensorShapes:
    """The `StoredTensors` where there are no files: meta tensors, one for whatever a layout asks for."""

    on_read: Callable[[str], None] = lambda _: None
    """Callback with the name of each tensor."""

    def has(self, name: str) -> bool:
        return True

    def place(self, name: str) -> str:
        return "The checkpoint"

    def tensor(self, expected: ExpectedTensor) -> Tensor:
        """Return a tensor of the first of the dtypes and shapes that a file may have."""
        self.on_read(expected.name)
        sizes = [1 if size is None else size for size in expected.shapes[0]]
        return torch.empty(*sizes, dtype=TORCH_TYPES[next(iter(expected.dtypes))], device="meta")


@dataclass(frozen=True)
class WatchedSource(SourceOver):
    """A source that reads from another one, and calls `watch` with each tensor's internal name and the tensor."""

    source: TensorSource
    watch: Callable[[str, Tensor], None]

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = super().read(name, shape)
        self.watch(name, tensor)
        return tensor

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        """Read a layer and show it to `watch`, where parts of a quantised matrix are told apart by number."""
        found = super().linear(module, outputs, inputs, bias)
        for number, tensor in enumerate(found.matrix.tensors):
            self.watch(f"{module}.weight" + (f".{number}" if number else ""), tensor)
        if found.bias is not None:
            self.watch(f"{module}.bias", found.bias)
        return found


class Fingerprint:
    """A hash over the tensors that it is called with, as far as their internal names begin with one of `prefixes`.

    Names, dtypes, shapes and bytes count, as the modules get them: where a checkpoint lies, how its files are cut and
    which of the formats it has make no difference.
    """

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self._prefixes = prefixes
        self._hashes: dict[str, Future[bytes]] = {}
        # SHA-256 because most processors have instructions for it: with them it is twice as fast as BLAKE2b.
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), "fingerprint")

    def __call__(self, name: str, tensor: Tensor) -> None:
        if name.startswith(self._prefixes):
            self._hashes[name] = self._threads.submit(_tensor_hash, tensor)

    def digest(self) -> bytes:
        """Return the SHA-256 of all tensors seen, whatever their order; no tensor may come after it."""
        whole = hashlib.sha256()
        for name, found in sorted(self._hashes.items()):
            whole.update(f"{name} ".encode() + found.result())
        self._threads.shutdown()
        return whole.digest()


def _tensor_hash(tensor: Tensor) -> bytes:
    """Return 32 bytes over dtype, shape and content."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    found.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return found.digest()


def dense(source: TensorSource, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
    """Read a layer of floats from its weight and its bias."""
    matrix = Dense(source.read(f"{module}.weight", (outputs, inputs)))
    return StoredLinear(matrix, source.read(f"{module}.bias", (outputs,)) if bias else None)


def drawn(form: Form, generator: torch.Generator, dtype: torch.dtype, scale: float = 0.02) -> Form:
    """Return noise in the form and shape of `form`, whose tensors may be meta, on the generator's device.

    Plain matrices are in `dtype`. `scale` is about the standard deviation of the numbers.
    """
    device = generator.device
    match form:
        case Dense(matrix):
            noise = torch.randn(matrix.shape, generator=generator, device=device)
            return Dense(noise.mul_(scale).to(dtype))
        case Int8(matrix, scales, _, addend):
            levels = torch.randint(-127, 128, matrix.shape, generator=generator, device=device, dtype=torch.int8)
            return replace(
                form,
                matrix=levels,
                scales=torch.full(scales.shape, scale / 73.3, device=device),
                addend=None if addend is None else torch.zeros(addend.shape, dtype=torch.int32, device=device),
            )
        case Grouped(kind, codes, scales, shifts, _, order):
            step = scale / _SPREADS[kind]
            middle = -_MIDDLES.get(kind, 0.0) * torch.tensor(step)  # exactly what a whole zero point gives
            return replace(
                form,
                codes=_codes(kind, codes, generator),
                scales=torch.full(scales.shape, step, device=device),
                shifts=None if shifts is None else torch.full(shifts.shape, float(middle), device=device),
                order=None if order is None else torch.randperm(len(order), generator=generator, device=device),
            )


def _codes(kind: Codes, like: Tensor, generator: torch.Generator) -> Tensor:
    device = generator.device
    if kind is Codes.FP8:
        noise = torch.randn(like.shape, generator=generator, device=device)
        return noise.to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.randint(0, 256, like.shape, generator=generator, device=device, dtype=torch.uint8)
