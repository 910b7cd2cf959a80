"""MXFP4, in which GPT-OSS keeps its experts: blocks of 32 numbers share a power of two.

Source: OCP Microscaling v1.0; openai/gpt-oss `gpt_oss/torch/weights.py` for names and order.
"""

from __future__ import annotations

import re

import torch

from tilewise.platforms.forms import Codes, Form, Grouped
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Layouts, Method, StoredLayout, StoredTensors
from tilewise.weights.quantization.blocks import check_scales

_BLOCK = 32
_EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


class Mxfp4Layout:
    """A layer of uint8 blocks [out, in / 32, 16], two codes a byte, and exponents [out, in / 32] with 127 added."""

    suffix = "_blocks"

    def __str__(self) -> str:
        return "MXFP4"

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        groups = inputs // _BLOCK
        blocks = tensors.tensor(f"{module}_blocks", (outputs, groups, _BLOCK // 2), ("U8",), item)
        exponents = tensors.tensor(f"{module}_scales", (outputs, groups), ("U8",), item)
        scales = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents.int() - 127)
        check_scales(tensors, f"{module}_scales", scales)
        return Grouped(Codes.FP4, blocks.flatten(1), scales, None, _BLOCK)

    def folds_bias(self, matrix: Form) -> bool:
        return False


def layouts(folder: CheckpointFolder) -> Layouts:
    layout: StoredLayout = Mxfp4Layout()
    return lambda module: layout if _EXPERTS.search(module) else None


METHOD = Method(("mxfp4",), layouts)
