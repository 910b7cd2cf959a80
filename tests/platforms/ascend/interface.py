"""torch_npu's interface on a CPU: each call meets the real schema and the real meta kernel, and is computed by torch.

Schemas come from the wheel's lists of functions, meta kernels from its Python; a stand-in (`stand_ins.py`) computes
what the documentation says, and refuses what it forbids. A call fails where any of the three refuses it, or where the
stand-in's result has another shape or dtype than the meta kernel's.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._pytree import tree_leaves, tree_map

_CANN, _ATLAS_A2 = "9.1.0", 220
_EXAMPLES = 4


@dataclass(frozen=True)
class TensorSpec:
    """What a schema and a meta kernel see of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def meta(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Call:
    """A call of an op, with specs in the places of tensors."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on_meta(self) -> Any:
        """Give the call to schema and meta kernel, which raise what they refuse."""
        args, kwargs = tree_map(_to_meta, (self.args, self.kwargs))
        return getattr(torch.ops.npu, self.op)(*args, **kwargs)


def _to_meta(value: Any) -> Any:
    return value.meta() if isinstance(value, TensorSpec) else value


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _to_spec(value: Any) -> Any:
    return TensorSpec.of(value) if isinstance(value, Tensor) else value


@dataclass
class Interface:
    """The ops of one torch_npu in this process, where there can be only one."""

    version: str
    without_meta: tuple[str, ...]
    """Ops that have a schema, but no meta kernel."""
    library: Library
    calls: dict[str, dict[str, Call]] = field(default_factory=dict)
    """Calls so far that were different, by op."""
    examples: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    """Arguments of the first of them, to be called again with something wrong."""

    def wants_example(self, call: Call) -> bool:
        return len(self.examples.get(call.op, ())) < _EXAMPLES and repr(call) not in self.calls.get(call.op, ())

    def note(self, call: Call, arguments: tuple[Any, Any] | None) -> None:
        self.calls.setdefault(call.op, {})[repr(call)] = call
        if arguments is not None:
            self.examples.setdefault(call.op, []).append(arguments)


def load(folder: Path, names: tuple[str, ...]) -> Interface:
    """Define the ops of an unpacked wheel, with their meta kernels. Raises RuntimeError if it lacks one of `names`."""
    library, defined = Library("npu", "DEF"), set[str]()
    for name, schema in _schemas(folder):
        with suppress(RuntimeError):  # defined twice, or with a type that only a card's torch knows
            library.define(schema)
            defined.add(name)
    if missing := [name for name in names if name not in defined]:
        raise RuntimeError(f"torch_npu {folder.name} has no {', '.join(missing)}")
    with_meta = _load_meta_kernels(folder / "torch_npu" / "op_plugin" / "meta" / "_meta_registrations.py")
    return Interface(folder.name, tuple(name for name in names if name not in with_meta), library)


def _schemas(folder: Path) -> Iterator[tuple[str, str]]:
    for file in ("npu_native_functions_by_codegen.yaml", "npu_native_functions.yaml"):
        for line in (folder / "torch_npu" / "csrc" / "aten" / file).read_text().splitlines():
            if match := re.match(r'\s*-?\s*func:\s*"?(\w+)((?:\.\w+)?\(.*[^"])"?\s*$', line):
                yield match[1], match[1] + match[2]


class _Anything(types.ModuleType):
    """A module that has whatever is asked of it: meta kernels name what only a card's torch_npu has."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")

    def __call__(self, *_: Any, **__: Any) -> str:
        return ""


def _load_meta_kernels(file: Path) -> set[str]:
    """Run the wheel's file of meta kernels; those of ops that are not defined here are left out."""
    names = ("torch_npu", "torch_npu.utils", "torch_npu.utils._error_code", "torch_npu.npu", "torch_npu.npu.utils")
    stubs: dict[str, Any] = {name: _Anything(name) for name in (*names, "torch_npu.npu._backends")}
    stubs["torch_npu.npu.utils"].get_cann_version = lambda *_, **__: _CANN
    stubs["torch_npu.npu._backends"].get_soc_version = lambda: _ATLAS_A2
    known: set[str] = set()
    real = torch.library.impl

    def impl(library: Library, name: str, *args: Any) -> Callable[[Any], Any]:
        def register(kernel: Any) -> Any:
            with suppress(RuntimeError):  # an op that is not defined here
                real(library, name, *args)(kernel)
                known.add(name)
            return kernel

        return register

    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    torch.library.impl = impl  # type: ignore[assignment]
    try:
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "torch_npu_meta"})
    finally:
        torch.library.impl = real
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return known


def compute_by(interface: Interface, stand_ins: dict[str, Callable[..., Any]]) -> None:
    """Let calls with tensors of the CPU be checked, noted, and computed by stand-ins."""
    for name, stand_in in stand_ins.items():
        interface.library.impl(name, _checked(interface, name, stand_in), "CPU")


def _checked(interface: Interface, name: str, stand_in: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        specs = Call(name, *tree_map(_to_spec, (args, kwargs)))
        expected = None if name in interface.without_meta else specs.on_meta()
        wanted = interface.wants_example(specs)  # before a cache is written to
        arguments = tree_map(_cloned, (args, kwargs)) if wanted else None
        found = stand_in(*args, **kwargs)
        if expected is not None:
            seen, told = (
                [(tuple(x.shape), x.dtype) for x in tree_leaves(one) if isinstance(x, Tensor)]
                for one in (found, expected)
            )
            assert seen == told, f"{name}: the stand-in gives {seen}, the meta kernel {told}"
        interface.note(specs, arguments)
        return found

    return call
