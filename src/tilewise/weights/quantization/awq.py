"""AWQ in its "gemm" layout, as OpenGVLab publishes InternVL2 to InternVL3 (written by `lmdeploy lite auto_awq`).

Source of the layout: mit-han-lab/llm-awq and AutoAWQ, `awq/utils/packing_utils.py`; InternLM/lmdeploy
`lmdeploy/lite/quantization/modules/linear.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Form, Grouped
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method, QuantizationConfig, layouts_where
from tilewise.weights.quantization.stored import (
    Layouts,
    StoredLayout,
    StoredModule,
    exchanged_halves,
    shifts_of,
    unpacked,
)

_TOGETHER = 8
"""Outputs whose codes share an int32: its lowest four bits belong to the first output in `_ORDER`, and so on."""
_MIDDLE = 8
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACES = tuple(map(_ORDER.index, range(_TOGETHER)))


@dataclass(frozen=True)
class AwqLayout(StoredLayout):
    """A layer of `qweight` int32 [in, out / 8], `qzeros` int32 [in / group, out / 8] and `scales` [in / group, out].

    A number is (code - zero) * scale. Symmetric files have no zero points, or have 8 everywhere: then codes stand for
    numbers from -8 on.
    """

    group: int | None
    """Inputs that share a scale; None = all inputs of an output."""
    zero_point: bool
    suffix = ".qweight"

    def __str__(self) -> str:
        return f"4 bits in groups of {self.group or 'all inputs'}"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        group = self.group or inputs
        groups, packed = -(-inputs // group), None if outputs is None else outputs // _TOGETHER
        scales = stored.scales(".scales", (groups, outputs)).T.contiguous()
        codes = _codes(stored.tensor(".qweight", (inputs, packed), ("I32",)))
        if not self.zero_point and not stored.has(".qzeros"):
            return Grouped(Codes.INT4, codes, scales, None, group)
        words = stored.tensor(".qzeros", (groups, packed), ("I32",))
        zeros = unpacked(words, 4).unflatten(1, (-1, _TOGETHER))[..., list(_PLACES)].flatten(1)
        if not zeros.is_meta and bool((zeros == _MIDDLE).all()):
            return Grouped(Codes.INT4, codes, scales, None, group)
        return Grouped(Codes.UINT4, codes, scales, shifts_of(zeros.T, scales), group)


def _codes(words: Tensor) -> Tensor:
    """Repack int32 [in, out / 8] to uint8 [out, in / 2], two inputs a byte."""
    if words.is_meta:
        return words.new_empty(words.shape[1] * _TOGETHER, len(words) // 2, dtype=torch.uint8)
    # Little-endian: byte b of a word has codes 2b, in its low half, and 2b + 1, which belong to outputs _ORDER[2b] and
    # _ORDER[2b + 1]. Bytes of two neighbouring inputs exchange halves, so that each has both codes of one output.
    pairs = words.view(torch.uint8).unflatten(1, (-1, 4))
    both = words.new_empty(len(words) // 2, words.shape[1], _TOGETHER, dtype=torch.uint8)
    both[..., list(_ORDER[::2])], both[..., list(_ORDER[1::2])] = exchanged_halves(pairs[::2], pairs[1::2])
    return both.flatten(1).T.contiguous()


def layouts(folder: CheckpointFolder) -> Layouts:
    config = QuantizationConfig.of(folder)
    bits, version = config.get("bits", config.get("w_bit")), str(config.get("version", "gemm")).lower()
    if bits != 4:
        raise config.refused("bits", bits, "4")
    if version != "gemm":
        raise config.refused("version", version, "gemm")
    key = "group_size" if "group_size" in config.values else "q_group_size"
    layout = AwqLayout(config.group_size(key), bool(config.get("zero_point", True)))
    return layouts_where(folder, layout, config.names("modules_to_not_convert"))


METHOD = Method(("awq",), layouts)
