"""Repairs of Triton's interpreter: what it computes wrongly, or cannot, and a GPU can (as of 3.6).

- It keeps bfloat16 as its bits in 16-bit integers, and multiplies those in `tl.dot` without a word.
- It cuts floats off where they become bfloat16, instead of rounding them, and where they become float8 it loses the
  carry of a mantissa that is rounded up to the next power of two: torch converts them here, half to even.
- numpy 2.4 turns no array of one number into an index any more, which loops over runtime bounds need.
- It patches Triton's language again at every call of a device function, which takes half of the time of kernels that
  have some. A launch has patched `tl` already; `tl.core`, which Triton's own functions use, stays patched once it is.
- Sums of products of int8 are right, but made in a loop that takes minutes: float64 holds them as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

_FLOATS = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_BITS = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32}


def repair() -> None:
    if getattr(interpreter, "_repaired", False):
        return
    interpreter._repaired = True
    interpreter.InterpreterBuilder.create_dot = _by_floats(interpreter.InterpreterBuilder.create_dot)
    interpreter._convert_float = _with_rounding(interpreter._convert_float)
    interpreter._patch_lang_tensor = _with_index(interpreter._patch_lang_tensor)
    interpreter.InterpretedFunction.__call__ = _call


def _by_floats(create_dot: Any) -> Any:
    def dot(self: Any, a: Any, b: Any, sums: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            products = np.matmul(_float32(a.data), _float32(b.data))
        elif a.dtype.scalar == tl.int8:
            products = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        else:
            return create_dot(self, a, b, sums, *rest)
        return interpreter.TensorHandle(products.astype(sums.data.dtype) + sums.data, sums.dtype.scalar)

    return dot


def _float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _with_rounding(convert: Any) -> Any:
    def converted(numbers: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        """Numbers, kept as what numpy has for `given`, as the bits of `wanted`."""
        nearest = rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if not nearest or given not in _FLOATS or wanted not in _FLOATS:
            return convert(numbers, given, wanted, rounding)
        floats = torch.from_numpy(np.ascontiguousarray(numbers)).view(_FLOATS[given])
        if wanted == tl.float8e4nv:  # cvt.rn.satfinite
            floats = floats.float().clamp(-448, 448)
        bits = floats.to(_FLOATS[wanted]).view(_BITS[wanted.primitive_bitwidth])
        return bits.numpy().reshape(np.shape(numbers))

    return converted


def _with_index(patch: Any) -> Any:
    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

    return patched


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    if not getattr(tl.core, "_patched", False) and tl not in function.fn.__globals__.values():
        interpreter._patch_lang(function.fn)
        tl.core._patched = True
    return function.rewrite()(*args, **kwargs)
