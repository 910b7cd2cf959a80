"""MXFP4, in which GPT-OSS keeps its experts: blocks of 32 numbers share a power of two.

Source: OCP Microscaling v1.0; openai/gpt-oss `gpt_oss/torch/weights.py` for names and order.
"""

from __future__ import annotations

import re

from tilewise.platforms.forms import Codes, Form, Grouped
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method
from tilewise.weights.quantization.stored import MX_BLOCK, Layouts, StoredLayout, StoredModule, powers_of_two

_EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


class Mxfp4Layout(StoredLayout):
    """A layer of uint8 blocks [out, in / 32, 16], two codes a byte, and exponents [out, in / 32] with 127 added."""

    suffix = "_blocks"

    def __str__(self) -> str:
        return "MXFP4"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        groups = inputs // MX_BLOCK
        blocks = stored.tensor("_blocks", (outputs, groups, MX_BLOCK // 2), ("U8",))
        exponents = stored.tensor("_scales", (outputs, groups), ("U8",))
        scales = stored.check_scales("_scales", powers_of_two(exponents))
        return Grouped(Codes.FP4, blocks.flatten(1), scales, None, MX_BLOCK)


def layouts(folder: CheckpointFolder) -> Layouts:
    layout = Mxfp4Layout()
    return lambda module: layout if _EXPERTS.search(module) else None


METHOD = Method(("mxfp4",), layouts)
