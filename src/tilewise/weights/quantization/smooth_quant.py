"""SmoothQuant as `lmdeploy lite smooth_quant` writes it: the decoder's matrices in int8 or FP8, a scale per output.

Source of the layout: InternLM/lmdeploy 0.18, `lmdeploy/lite/apis/smooth_quant.py` and
`lmdeploy/pytorch/models/q_modules.py`. Smoothing is folded into norms and weights, and rows are rounded as they come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewise.platforms.forms import Codes, Form, Grouped, Int8
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Layouts, Method, StoredLayout, StoredTensors
from tilewise.weights.quantization.blocks import check_scales
from tilewise.weights.quantization.description import (
    expect_some,
    layouts_where,
    listed_modules,
    quantization_section,
    refused,
)

_TYPES = {"int8": "I8", "float8_e4m3fn": "F8_E4M3"}


@dataclass(frozen=True)
class SmoothQuantLayout:
    """A layer of `weight` [out, in] and `scale` float32 [out, 1]."""

    stored: str
    """The type of weights, as safetensors files spell it."""
    suffix: str = ".weight"

    def __str__(self) -> str:
        return "int8 (rows as they come)" if self.stored == "I8" else "FP8 (scales of outputs)"

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        weight = tensors.tensor(f"{module}.weight", (outputs, inputs), (self.stored,), item)
        scales = tensors.tensor(f"{module}.scale", (len(weight), 1), ("F32", "BF16", "F16"), item).float()
        check_scales(tensors, f"{module}.scale", scales)
        if self.stored == "I8":
            return Int8(weight, scales[:, 0].contiguous())
        return Grouped(Codes.FP8, weight.view(torch.uint8), scales, None, inputs)

    def folds_bias(self, matrix: Form) -> bool:
        return False


def layouts(folder: CheckpointFolder) -> Layouts:
    config = quantization_section(folder)
    kind = config.get("quant_dtype", "int8")
    if kind not in _TYPES:
        raise refused(config, "quant_dtype", kind, ", ".join(_TYPES))
    layout: StoredLayout = SmoothQuantLayout(_TYPES[kind])
    names = known_names(folder.path)
    expect_some(folder, layout, names, ".scale")
    if names:
        return lambda module: layout if f"{module}.scale" in names else None
    return layouts_where(folder, layout, listed_modules(config, "modules_to_not_convert"))


METHOD = Method(("smooth_quant",), layouts)
