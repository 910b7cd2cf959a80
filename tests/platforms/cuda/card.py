"""A card of the tests: tensors of the host that count as a GPU's, so that torch's rules between host and device hold.

A tensor of the card is one of the host with another type, `OnCard`. Every call of torch's functions comes by `Rules`,
and is taken as a GPU would take it:

- An op over tensors of host and card is an error, but for copies, and for single numbers of the host.
- What is not filled holds nonsense (`torch.empty`), and so does pinned memory until its copy has arrived.
- What makes the host wait for the device is noted, with the line of ours that asked for it.
- A graph keeps calls with their tensors. What it makes is nonsense until its first replay, which does the same with
  what its tensors hold then. A wait or a copy of the host's memory is an error while a graph is captured.

Triton's kernels run in its interpreter, and get no tensor of the host. Streams are not held to anything: all work is
done in the order of the calls (`LateStreams` of test_engine.py has batches of tiles end late).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tilewise.platforms.cuda import CudaPlatform
from tilewise.platforms.ops import Ops

DEVICE = torch.device("cuda", 0)
HOST = torch.device("cpu")
MEMORY = 4 * 2**30

WAITS = {
    *("item", "tolist", "nonzero", "unique", "unique_consecutive", "masked_select", "equal", "allclose", "argwhere"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero", "bincount"),
}
"""Functions that ask a device for numbers, or for the size of what they return."""
UNFILLED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
INDEXED = {"__getitem__", "__setitem__", "index_put_"}


class OnCard(Tensor):
    """A tensor of the card."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take a call in a thread that has not entered the rules."""
        return Rules.entered.call(func, args, kwargs or {})


class Pinned(Tensor):
    """A tensor in memory of the host from which, and to which, the card copies by itself."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Graph:
    """A captured step: its calls in their order, each of which writes to where it wrote at first."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.made: list[Tensor] = []
        self.launches: list[str] = []
        """Kernels that a GPU launches at each replay: calls that write to memory, torch's by their names."""
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for call in self.calls:
            call()

    def keep(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """Keep a call that has returned `found`."""
        given, made = {_memory(one) for one in _tensors((args, kwargs))}, _tensors(found)
        if not made and func.__name__ != "__setitem__":
            return  # sizes and the like
        new = [one for one in made if _memory(one) not in given]
        self.made += new
        name = func.__name__
        if name not in UNFILLED and (new or name == "__setitem__" or (name.endswith("_") and name[0] != "_")):
            self.launches.append(name)

        def again() -> None:
            for old, new in zip(made, _tensors(_plain(func, args, kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    _plain(Tensor.copy_, (old, new))

        self.calls.append(again)


class Rules(TorchFunctionMode):
    """The rules of a card, for all calls of torch's functions within its `with` block."""

    entered: Rules

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """Calls for which the host has waited, each with the line of ours that it came from."""
        self.graphs: list[Graph] = []
        self.alignments: dict[tuple[str, str], set[bool]] = {}
        """Whether tensors began at a multiple of 16 bytes, by kernel of Triton's and argument: it compiles a kernel for
        each case that it meets.
        """
        self._capturing: Graph | None = None
        self._on_their_way: list[tuple[Tensor, Tensor]] = []
        self._copies = {"to": self._to, "cpu": self._to_host, "pin_memory": self._pin, "copy_": self._copy}

    def __enter__(self) -> Rules:
        Rules.entered = self
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do what a call of torch's function does here."""
        name = func.__name__
        if name in self._copies:
            return self._copies[name](*args, **kwargs)
        if "device" in kwargs or kwargs.get("pin_memory"):
            return self._make(func, args, dict(kwargs))
        tensors = _tensors((args, kwargs))
        if not any(isinstance(one, OnCard) for one in tensors):
            return func(*args, **kwargs)
        if name == "__get__":
            return self._property(func, args)
        if name in INDEXED:
            self._check_index(name, args)
        elif any(not isinstance(one, OnCard) and one.dim() for one in tensors):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found some on the host")
        if name == "numpy":
            raise TypeError("can't convert a tensor of the card to numpy")
        counted = name == "repeat_interleave" and len(tensors) == 2 and "output_size" not in kwargs
        if (name in WAITS or counted) and any(one.numel() for one in tensors):
            self.wait(name)
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute on the card; while a graph is captured, it keeps the call."""
        found = _plain(func, args, kwargs)
        if isinstance(found, torch.Size):
            return found
        found = tree_map(_as_card, found)
        if func.__name__ in UNFILLED:
            _spoil(found)
        if self._capturing is not None:
            self._capturing.keep(func, args, kwargs, found)
        return found

    def _property(self, func: Any, args: Any) -> Any:
        facts = {"device": DEVICE, "is_cuda": True, "is_cpu": False}
        name = func.__self__.__name__
        return facts[name] if name in facts else self._compute(func, args, {})  # such as the transposed matrix

    def _make(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Make a tensor on the device that is named, else on that of the tensor that it is made like."""
        device, like_card = kwargs.pop("device", None), any(isinstance(one, OnCard) for one in args)
        if kwargs.pop("pin_memory", False):
            return _plain(lambda: func(*args, **kwargs).as_subclass(Pinned))
        if not (like_card if device is None else torch.device(device).type == "cuda"):
            return _plain(func, args, kwargs if device is None else kwargs | {"device": device})
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.wait(func.__name__)
        return self._compute(func, args, kwargs)

    def _check_index(self, name: str, args: Any) -> None:
        """Check an index: one of the host is copied to the card, and truth values are counted first."""
        target, index, *value = args
        parts = index if isinstance(index, tuple) else (index,)
        places = [part for part in parts if isinstance(part, Tensor | list)]
        if not isinstance(target, OnCard):
            raise RuntimeError(f"{name}: a tensor of the host is indexed by one of the card")
        if any(not isinstance(part, OnCard) or part.dtype == torch.bool for part in places):
            self.wait(f"{name} by truth values, or by numbers of the host")
        if value and isinstance(value[0], Tensor) and not isinstance(value[0], OnCard) and value[0].dim():
            if places:
                raise RuntimeError(f"{name}: the tensor is on the card, and the values are on the host")
            self.wait(f"{name} of the host's numbers")

    # Copies between host and card.

    def _to(self, source: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        named = [kwargs.pop("device", None), *args]
        device = next((found for found in map(_device_of, named) if found is not None), None)
        dtypes = [one.dtype if isinstance(one, Tensor) else one for one in args]
        rest = [one for one in dtypes if isinstance(one, torch.dtype)]
        here = isinstance(source, OnCard)
        there = here if device is None else device.type == "cuda"
        if here and there:
            return self._compute(Tensor.to, (source, *rest), kwargs)
        if there:
            return self._upload(source, non_blocking, *rest, **kwargs)
        if not here:
            return _plain(Tensor.to, (source, *([] if device is None else [device]), *rest), kwargs)
        if non_blocking:
            raise RuntimeError("numbers of the card are copied to memory that is not pinned, and nobody waits for them")
        self.wait("to the host")
        return _plain(lambda: _host_view(source).to(*rest, **kwargs).clone())

    def _upload(self, source: Tensor, non_blocking: bool, *rest: Any, **kwargs: Any) -> Tensor:
        if self._capturing is not None:
            raise RuntimeError("a copy of the host's memory is captured")
        if not (non_blocking and isinstance(source, Pinned)):
            self.wait("to the card")
        return _as_card(_plain(lambda: _host_view(source).to(*rest, **kwargs).clone()))

    def _to_host(self, source: Tensor) -> Tensor:
        return self._to(source, HOST)

    def _pin(self, source: Tensor) -> Tensor:
        if isinstance(source, OnCard):
            raise RuntimeError("cannot pin a tensor of the card")
        return _plain(lambda: source.clone().as_subclass(Pinned))

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(target, OnCard):
            there = source if isinstance(source, OnCard) else self._upload(source, non_blocking)
            return self._compute(Tensor.copy_, (target, there), {})
        if not isinstance(source, OnCard):
            return _plain(Tensor.copy_, (target, source))
        if self._capturing is not None:
            raise RuntimeError("a copy to the host is captured")
        if not (non_blocking and isinstance(target, Pinned)):
            self.wait("copy_ to the host")
            return _plain(Tensor.copy_, (target, source))
        _spoil(target)
        self._on_their_way.append((target, _plain(Tensor.clone, (source,))))
        return target

    def wait(self, what: str) -> None:
        """Note that the host waits for the device."""
        if self._capturing is not None:
            raise RuntimeError(f"the host waits for the device while a graph is captured: {what}")
        self.waits.append(f"{what} ({_line_of_ours()})")
        self.arrive(self.sent)

    @property
    def sent(self) -> int:
        """Number of copies to the host that have not arrived."""
        return len(self._on_their_way)

    def arrive(self, number: int) -> None:
        """Let the first copies to the host arrive."""
        with torch.inference_mode():
            for target, source in self._on_their_way[:number]:
                _plain(Tensor.copy_, (target, source))
        del self._on_their_way[:number]

    # Graphs, and kernels of Triton.

    @contextmanager
    def capture(self, graph: Graph) -> Iterator[None]:
        self._capturing = graph
        try:
            yield
        finally:
            self._capturing = None
        for tensor in graph.made:
            _spoil(tensor)
        self.graphs.append(graph)

    def launch(self, name: str, kernel: Callable[..., None], args: Any, kwargs: Any) -> None:
        """Launch a kernel, to which a tensor of the host would be an address of nowhere."""
        for argument, value in [*enumerate(args), *kwargs.items()]:
            if isinstance(value, Tensor):
                if not isinstance(value, OnCard):
                    raise ValueError("Pointer argument cannot be accessed from Triton: a tensor of the host")
                self.alignments.setdefault((name, str(argument)), set()).add(value.data_ptr() % 16 == 0)
        given, named = tree_map(_host_view, (args, kwargs))

        def run() -> None:
            _plain(kernel, given, named)

        run()
        if self._capturing is not None:
            self._capturing.calls.append(run)
            self._capturing.launches.append("a kernel of Triton's")


def _plain(func: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Call a function as if all its tensors were the host's; results have torch's own type."""
    with torch._C.DisableTorchFunction():
        return func(*args, **(kwargs or {}))


def _host_view(value: Any) -> Any:
    """Return a tensor as one of torch's own type, over the same memory; anything else as it is."""
    return _plain(Tensor.as_subclass, (value, Tensor)) if isinstance(value, Tensor) else value


def _as_card(value: Any) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, OnCard):
        return value
    return _plain(Tensor.as_subclass, (value, OnCard))


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _device_of(value: Any) -> torch.device | None:
    if isinstance(value, Tensor):
        return DEVICE if isinstance(value, OnCard) else HOST
    return torch.device(value) if isinstance(value, str | torch.device) else None


def _spoil(tensor: Tensor) -> None:
    """Fill memory with bits that are NaN in floats and -1 in whole numbers."""
    if tensor.numel():
        _plain(lambda: _host_view(tensor).untyped_storage().fill_(0xFF))


def _memory(tensor: Tensor) -> int:
    return int(_plain(lambda: tensor.untyped_storage().data_ptr()))


def _line_of_ours() -> str:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if "/tilewise/" in (path := frame.f_code.co_filename):
            return f"{path.rpartition('/tilewise/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
    return "a test"


class Event:
    """An event that happens late: copies that were sent before it was recorded arrive when it has happened."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._asked = 0

    def record(self, stream: Any = None) -> None:
        self._sent, self._recorded = Rules.entered.sent, time.perf_counter()

    def query(self) -> bool:
        self._asked += 1
        if self._asked < 3:
            return False
        self.synchronize()
        return True

    def synchronize(self) -> None:
        Rules.entered.arrive(self._sent)
        self._sent = 0

    def elapsed_time(self, other: Event) -> float:
        """Return milliseconds of the host, which has done the work in between itself."""
        return 1000 * (other._recorded - self._recorded)


class Stream:
    """A stream that does its work at once."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.priority = priority

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


class _Generator(torch.Generator):
    """A generator, for the card or for the host: both draw the host's numbers."""

    def __new__(cls, device: Any = HOST) -> _Generator:
        return super().__new__(cls)

    def __init__(self, device: Any = HOST) -> None:
        self.own = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.own


class CardPlatform(CudaPlatform):
    """The platform of the card, for tests of the contract of the engine."""

    def ops(self, batch_invariant: bool = False) -> Ops:
        if batch_invariant:
            pytest.skip("a GPU has no batch-invariant ops")
        return super().ops()


@contextmanager
def installed(capability: tuple[int, int] = (9, 0)) -> Iterator[Rules]:
    """Give torch a card of this compute capability, on which `device="cuda"` computes."""
    # Not imported above: Triton decides as it is loaded whether it interprets, which conftest.py of this folder says.
    from triton.runtime import interpreter

    rules, execute = Rules(), interpreter.GridExecutor.__call__
    facts = dict(zip(("major", "minor"), capability, strict=True)) | {"name": "card of the tests"}
    found = SimpleNamespace(multi_processor_count=132, total_memory=MEMORY, **facts)
    of_torch: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "get_device_properties": lambda device: found,
        "mem_get_info": lambda device: (MEMORY, MEMORY),
        "max_memory_reserved": lambda device=None: MEMORY,
        "empty_cache": lambda: None,
        "_sleep": lambda cycles: None,
        "synchronize": lambda device=None: rules.wait("synchronize"),
        "current_stream": lambda device=None: Stream(DEVICE),
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": object,
        "graph": lambda graph, pool, stream: rules.capture(graph),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
    }

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        rules.launch(self.fn.__name__, lambda *given, **named: execute(self, *given, **named), args, kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_torch.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(interpreter.GridExecutor, "__call__", launch)
        with rules:
            yield rules
