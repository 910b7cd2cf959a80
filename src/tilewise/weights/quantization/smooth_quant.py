"""SmoothQuant as `lmdeploy lite smooth_quant` writes it: the decoder's matrices in int8 or FP8, a scale per output.

Source of the layout: InternLM/lmdeploy 0.18, `lmdeploy/lite/apis/smooth_quant.py` and
`lmdeploy/pytorch/models/q_modules.py`. Smoothing is folded into norms and weights, and rows are rounded as they come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewise.platforms.forms import Codes, Form, Grouped, Int8
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method, QuantizationConfig, layouts_where
from tilewise.weights.quantization.stored import Layouts, StoredLayout, StoredModule

_TYPES = {"int8": "I8", "float8_e4m3fn": "F8_E4M3"}


@dataclass(frozen=True)
class SmoothQuantLayout(StoredLayout):
    """A layer of `weight` [out, in] and `scale` float32 [out, 1]."""

    dtype: str
    """The type of weights, as safetensors files spell it."""

    def __str__(self) -> str:
        return "int8 (rows as they come)" if self.dtype == "I8" else "FP8 (scales of outputs)"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        weight = stored.tensor(".weight", (outputs, inputs), (self.dtype,))
        scales = stored.scales(".scale", (len(weight), 1), ("F32", "BF16", "F16"))
        if self.dtype == "I8":
            return Int8(weight, scales[:, 0].contiguous())
        return Grouped(Codes.FP8, weight.view(torch.uint8), scales, None, inputs)


def layouts(folder: CheckpointFolder) -> Layouts:
    config = QuantizationConfig.of(folder)
    kind = config.get("quant_dtype", "int8")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise config.refused("quant_dtype", kind, ", ".join(_TYPES))
    return layouts_where(folder, SmoothQuantLayout(_TYPES[kind]), config.names("modules_to_not_convert"), mark=".scale")


METHOD = Method(("smooth_quant",), layouts)
