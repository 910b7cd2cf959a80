"""Calls with something wrong in them: a checking device that lets one pass would let a mistake of ours pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

RIGHT = {
    ("npu_fused_infer_attention_score", "block_table: wider"): "a table may be wider than the longest sequence",
    ("npu_fused_infer_attention_score_v2", "block_table: wider"): "a table may be wider than the longest sequence",
    ("npu_dynamic_quant", "argument 0: wider"): "rows of another width",
    ("npu_quantize", "argument 0: wider"): "rows of another width",
    ("npu_trans_quant_param", "argument 0: wider"): "more scales",
    ("npu_quant_matmul", "argument 2: dtype"): "for float16, scales may be float32 or int64",
    ("npu_moe_init_routing_v2", "argument 0: wider"): "rows of another width",
    ("npu_grouped_matmul", "argument 1: wider"): "more outputs",
    ("npu_moe_token_unpermute", "argument 0: wider"): "rows of another width",
    ("npu_format_cast", "argument 0: wider"): "any matrix has a layout",
    ("npu_format_cast", "argument 0: dtype"): "any matrix has a layout",
}
"""Calls that are right in spite of it, and why."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def mutations(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Arguments]]:
    """Yield calls with one wrong name, dtype, type, width, number of axes or length, and what it is."""
    for place, value in enumerate(args):
        for what, wrong in _wrong(value):
            yield f"argument {place}: {what}", ((*args[:place], wrong, *args[place + 1 :]), kwargs)
    for name, value in kwargs.items():
        others = {other: given for other, given in kwargs.items() if other != name}
        yield f"{name}: name", (args, {**others, f"{name}_": value})
        for what, wrong in _wrong(value):
            yield f"{name}: {what}", (args, {**others, name: wrong})


def _wrong(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case Tensor():
            yield "dtype", value.to(_other(value.dtype))
            if value.dim():
                yield "wider", torch.cat((value, value[..., :1]), dim=-1)
                yield "axes", value.flatten()[:1].squeeze(0)
        case [Tensor(), *_]:
            for what, wrong in _wrong(value[0]):
                yield what, [wrong, *value[1:]]
            yield "length", [*value, *value]
        case [int(), *_]:
            yield "length", value[:-1]
            yield "type", "numbers"
        case bool():
            yield "type", "yes"
        case int() | float():
            yield "type", "a number"
        case str():
            yield "type", 7
            yield "value", f"{value}?"


def _other(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype that nothing takes in the place of this one: a float of 64 bits, or one for whole numbers."""
    return torch.float64 if dtype.is_floating_point else torch.float32
