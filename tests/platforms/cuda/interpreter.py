"""Repairs of Triton's interpreter: what it computes wrongly, or cannot, and a GPU can (as of 3.6).

- It keeps bfloat16 as its bits in 16-bit integers, and multiplies those in `tl.dot` without a word.
- numpy 2.4 turns no array of one number into an index any more, which loops over runtime bounds need.
- Sums of products of int8 are made in the accumulator's type only if numpy is told so, which it is; they are right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter


def repair() -> None:
    if getattr(interpreter, "_repaired", False):
        return
    interpreter._repaired = True
    interpreter.InterpreterBuilder.create_dot = _with_bfloat16(interpreter.InterpreterBuilder.create_dot)
    interpreter._patch_lang_tensor = _with_index(interpreter._patch_lang_tensor)


def _with_bfloat16(create_dot: Any) -> Any:
    def dot(self: Any, a: Any, b: Any, sums: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            products = np.matmul(_float32(a.data), _float32(b.data))
            return interpreter.TensorHandle(products.astype(sums.data.dtype) + sums.data, sums.dtype.scalar)
        return create_dot(self, a, b, sums, *rest)

    return dot


def _float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _with_index(patch: Any) -> Any:
    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

    return patched
