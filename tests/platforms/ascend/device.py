"""The checking device: ops of an NPU whose calls meet torch_npu's interface, and are computed by torch on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.platforms.ascend.interface import Interface, compute_by, load
from tests.platforms.ascend.stand_ins import STAND_INS, Strictness
from tests.platforms.ascend.wheels import FOLDER, VERSIONS
from tilewise.platforms.ascend import AscendPlatform, capturer_of
from tilewise.platforms.ascend.npu_ops import AscendOps
from tilewise.platforms.ascend.weights import NzLayout

NEWEST = VERSIONS[-1]
FETCHED = all((FOLDER / version).exists() for version in VERSIONS)


@cache
def interface() -> Interface:
    """Return the newest torch_npu's interface, which is there from the first call on."""
    found = load(FOLDER / NEWEST, tuple(STAND_INS))
    compute_by(found, STAND_INS)
    return found


class CheckedOps(AscendOps):
    """The ops of an NPU, of which none falls back to torch: what is refused comes out."""

    def attempt(self, kernel: Any, instead: Any, *args: Any, **named: Any) -> Any:
        return kernel(*args, **named)


def lenient_ops() -> AscendOps:
    """Return ops that take float32 and small sizes as well, for comparisons within rounding."""
    interface()
    return CheckedOps(floats=(torch.float32, torch.float16, torch.bfloat16), any_width=True)


def strict_ops(nz: NzLayout = NzLayout.QUANTISED) -> AscendOps:
    interface()
    return CheckedOps(nz)


@contextmanager
def strict() -> Iterator[None]:
    """Refuse what a card refuses."""
    before, Strictness.here = Strictness.here, True
    try:
        yield
    finally:
        Strictness.here = before


class CheckingPlatform(AscendPlatform):
    """An NPU of the CPU's memory, or of that of a simulated card (tests/platforms/cuda/card.py)."""

    def __init__(self, ops: Callable[[], AscendOps] = strict_ops, device: torch.device = torch.device("cpu")) -> None:
        self._make_ops = ops
        self.device = device
        self._npu = FakeNpu()

    def ops(self, batch_invariant: bool = False) -> AscendOps:
        if batch_invariant:
            pytest.skip("an NPU has no batch-invariant ops")
        return self._make_ops()


class Tape(TorchDispatchMode):
    """The calls of a step with their tensors, as a graph of an NPU captures them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number of the device is asked for while it is captured")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, dict(kwargs or {}), found))
        return found


class NoReading(TorchFunctionMode):
    """Refuse what reads a device's numbers: of a CPU's tensors `tolist` does so without a call that a tape sees."""

    reads = (Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.reads:
            raise RuntimeError("numbers of the device are asked for while it is captured")
        return func(*args, **(kwargs or {}))


class NPUGraph:
    """A graph as torch_npu has it: attention of a replay waits until it is told lengths by an update."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.waits = False

    def end(self) -> None:
        """Overwrite what the capture has made by NaN and -1: a card computes nothing before the first replay."""
        made, given = dict[int, torch.UntypedStorage](), set[int]()
        for _, args, kwargs, found in self.tape.calls:
            given |= {place for place, _ in _storages((args, kwargs)) if place not in made}
            made |= {place: storage for place, storage in _storages(found) if place not in given}
        for storage in made.values():
            storage.fill_(0xFF)

    def replay(self) -> None:
        assert not self.waits, "a replay begins while the one before still waits for its update"
        self.waits = True

    def update(self, cpu_update_input: list[dict[str, Any]]) -> None:
        assert self.waits, "an update without a replay"
        (lengths,) = cpu_update_input
        for func, args, kwargs, kept in self.tape.calls:
            if "fused_infer_attention" in str(func):
                kwargs |= {name: value for name, value in lengths.items() if name in kwargs}
            for old, new in zip(tree_leaves(kept), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)
        self.waits = False


def _storages(values: Any) -> Iterator[tuple[int, torch.UntypedStorage]]:
    """Yield the memory of each tensor among values, by its address."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.untyped_storage().nbytes():
            yield value.untyped_storage().data_ptr(), value.untyped_storage()


class FakeNpu:
    """Of torch's module for NPUs what graphs need, of a device that does one thing after the other."""

    NPUGraph = NPUGraph

    def __init__(self) -> None:
        self.captured = 0

    def graph_pool_handle(self) -> object:
        return object()

    def synchronize(self) -> None:
        pass

    def current_stream(self) -> FakeNpu:
        return self

    @contextmanager
    def graph(self, graph: NPUGraph, pool: object, auto_dispatch_capture: bool) -> Iterator[None]:
        assert auto_dispatch_capture
        self.captured += 1
        with graph.tape, NoReading():
            yield
        graph.end()


def capturer(npu: FakeNpu) -> Callable[[Any], Any]:
    return lambda _: capturer_of(npu)
