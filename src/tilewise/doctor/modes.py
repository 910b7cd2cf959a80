"""Modes: the ways of computing that an engine can be told to take, each with the golden answers that it has to give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tilewise.environment import Environment
from tilewise.platforms import DeviceKind, current_platform

Arithmetic = Literal["floats", "int8", "fp8", "w4a16", "int8 cache", "fp8 cache"]
"""Options that round on purpose. Modes of one arithmetic agree within rounding, so they share golden answers."""

ROUNDED: dict[Arithmetic, dict[str, Any]] = {
    "floats": {},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "w4a16": {},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "fp8 cache": {"kv_cache_dtype": "fp8"},
}
"""Options of the engine for each arithmetic; w4a16 is a checkpoint of its own."""
PLAIN = {"dtype": "float32", "device": "cpu", "enforce_eager": True}
"""Options beside `plain_ops` of what is true by definition."""
_FLOAT32, _BFLOAT16, _FLOAT16 = 2e-3, 0.5, 0.06
_INT8, _ROUNDED = 0.25, 0.03
"""Most for rows that are rounded to int8 as they come, where a sum in another order falls to the other side of a half;
and for weights or caches that are rounded."""


@dataclass(frozen=True)
class Mode:
    """A way of computing, and how far log-probabilities may be from golden ones."""

    name: str
    allowed: float
    options: dict[str, Any] = field(default_factory=dict)
    arithmetic: Arithmetic = "floats"
    plain: bool = False
    """True for torch's ops where a CPU has kernels of ours."""


def modes_here(device: DeviceKind = "auto") -> list[Mode]:
    """Return the modes of a device; with "auto" those of the CPU, and of a GPU or an NPU if there is one.

    Raises InvalidConfig for a device that is not there.
    """
    name = current_platform(device).name
    devices = dict.fromkeys(("cpu", name) if device == "auto" else (name,))
    return [mode for device in devices for mode in _of_device(device)]


def _of_device(device: str) -> Iterator[Mode]:
    def mode(name: str, allowed: float, arithmetic: Arithmetic = "floats", plain: bool = False, **more: Any) -> Mode:
        options = {"device": device, "dtype": "float32", **ROUNDED[arithmetic], **more}
        return Mode(f"{device}, {name}", allowed, options, arithmetic, plain)

    if device == "cpu":
        yield mode("float32, torch's ops", _FLOAT32, plain=True, enforce_eager=True)
    yield mode("float32, op by op", _FLOAT32, enforce_eager=True)
    yield mode("float32, graphs", _FLOAT32)
    yield mode("bfloat16", _BFLOAT16, dtype="bfloat16")
    yield mode("float16", _FLOAT16, dtype="float16")
    yield mode("int8", _INT8, "int8")
    for arithmetic in ("fp8", "w4a16", "int8 cache", "fp8 cache"):
        yield mode(arithmetic, _ROUNDED, arithmetic)
    yield mode("bfloat16, w4a16", _BFLOAT16, "w4a16", dtype="bfloat16")
    yield mode("prompts in chunks", _FLOAT32, max_num_batched_tokens=48, max_num_seqs=8)
    yield mode("overlapped steps", _FLOAT32, async_scheduling=True)
    yield mode("guessing ahead", _FLOAT32, speculative_config={"method": "ngram", "num_speculative_tokens": 4})
    if device == "cpu":
        yield mode("batch-invariant", _FLOAT32, batch_invariant=True)
        yield mode("a vision worker", _FLOAT32, vision_workers=1)
    yield mode("two ranks", _FLOAT32, tensor_parallel_size=2)
    yield mode("two stages", _FLOAT32, pipeline_parallel_size=2)


@contextmanager
def plain_ops(wanted: bool = True) -> Iterator[None]:
    """Let engines that are made inside compute by torch's ops, as the user's variable would."""
    before = dict(os.environ)
    if wanted:
        os.environ |= {Environment.cpu_kernels.name: "0"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
