"""AWQ in its "gemm" layout, as OpenGVLab publishes InternVL2 to InternVL3 (written by `lmdeploy lite auto_awq`).

Source of the layout: mit-han-lab/llm-awq and AutoAWQ, `awq/utils/packing_utils.py`; InternLM/lmdeploy
`lmdeploy/lite/quantization/modules/linear.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Form, Grouped
from tilewise.weights.folder import CheckpointFolder, Section
from tilewise.weights.quantization import FLOATS, Layouts, Method, StoredTensors
from tilewise.weights.quantization.blocks import check_scales
from tilewise.weights.quantization.description import (
    group_size,
    layouts_where,
    listed_modules,
    quantization_section,
    refused,
)

_TOGETHER = 8
"""Outputs whose codes share an int32: its lowest four bits belong to the first output in `_ORDER`, and so on."""
_MIDDLE = 8
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AwqLayout:
    """A layer of `qweight` int32 [in, out / 8], `qzeros` int32 [in / group, out / 8] and `scales` [in / group, out].

    A number is (code - zero) * scale. Symmetric files have no zero points, or have 8 everywhere: then codes stand for
    numbers from -8 on.
    """

    group: int | None
    """Inputs that share a scale; None = all inputs of an output."""
    zero_point: bool
    suffix: str = ".qweight"

    def __str__(self) -> str:
        return f"4 bits in groups of {self.group or 'all inputs'}"

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        group = self.group or inputs
        groups, packed = -(-inputs // group), None if outputs is None else outputs // _TOGETHER
        scales = tensors.tensor(f"{module}.scales", (groups, outputs), FLOATS)
        check_scales(tensors, f"{module}.scales", scales)
        words = tensors.tensor(f"{module}.qweight", (inputs, packed), ("I32",))
        kept = scales.T.float().contiguous()
        if not self.zero_point and not tensors.has(f"{module}.qzeros"):
            return Grouped(Codes.INT4, _codes(words), kept, None, group)
        zeros = _unpacked(tensors.tensor(f"{module}.qzeros", (groups, packed), ("I32",)))
        if not zeros.is_meta and bool((zeros == _MIDDLE).all()):
            return Grouped(Codes.INT4, _codes(words), kept, None, group)
        return Grouped(Codes.UINT4, _codes(words), kept, -zeros.T.float() * kept, group)

    def folds_bias(self, matrix: Form) -> bool:
        return False


def _unpacked(words: Tensor) -> Tensor:
    """Unpack int32 [n, out / 8] to uint8 codes [n, out]."""
    codes = words.new_empty(*words.shape, _TOGETHER, dtype=torch.uint8)
    if codes.is_meta:
        return codes.flatten(1)
    for place, output in enumerate(_ORDER):
        codes[..., output] = ((words >> 4 * place) & 15).to(torch.uint8)
    return codes.flatten(1)


def _codes(words: Tensor) -> Tensor:
    """Repack int32 [in, out / 8] to uint8 [out, in / 2], two inputs a byte."""
    if words.is_meta:
        return words.new_empty(words.shape[1] * _TOGETHER, len(words) // 2, dtype=torch.uint8)
    # A byte of the file has two outputs of one input, a byte of the form two inputs of one output. So two bytes, of
    # neighbouring inputs, make two bytes by exchanging halves; no code ever takes a byte of its own.
    halves = words.view(torch.uint8).unflatten(1, (-1, 4))
    even, odd = halves[::2], halves[1::2]
    both = words.new_empty(len(even), words.shape[1], _TOGETHER, dtype=torch.uint8)
    both[..., list(_ORDER[::2])] = (even & 15) | (odd << 4)
    both[..., list(_ORDER[1::2])] = (even >> 4) | (odd & 240)
    return both.flatten(1).T.contiguous()


def layouts(folder: CheckpointFolder) -> Layouts:
    config = quantization_section(folder)
    bits, version = _either(config, "bits", "w_bit"), str(config.get("version", "gemm")).lower()
    if bits != 4:
        raise refused(config, "bits", bits, "4")
    if version != "gemm":
        raise refused(config, "version", version, "gemm")
    key = "group_size" if "group_size" in config.values else "q_group_size"
    layout = AwqLayout(group_size(config, key), bool(config.get("zero_point", True)))
    return layouts_where(folder, layout, listed_modules(config, "modules_to_not_convert"))


def _either(config: Section, *keys: str) -> object:
    return next((config.get(key) for key in keys if config.get(key) is not None), None)


METHOD = Method(("awq",), layouts)
