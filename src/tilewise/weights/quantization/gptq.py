"""GPTQ, as AutoGPTQ, GPTQModel and AutoRound write it.

Source of the layout: AutoGPTQ `auto_gptq/nn_modules/qlinear/qlinear_cuda.py`; GPTQModel's `checkpoint_format`: "gptq"
stores zero points less one, "gptq_v2" as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Form, Grouped
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method, QuantizationConfig, layouts_where
from tilewise.weights.quantization.stored import (
    Layouts,
    StoredLayout,
    StoredModule,
    grouped,
    order_by_group,
    shifts_of,
    unpacked,
)

BITS = (2, 3, 4, 8)
_WORD = 32


@dataclass(frozen=True)
class GptqLayout(StoredLayout):
    """A layer of `qweight` int32 [in * bits / 32, out], `qzeros` int32 [groups, out * bits / 32],
    `scales` [groups, out], and `g_idx` int32 [in], the group of each input.

    A number is (code - zero) * scale. Codes are a stream of bits, the lowest first. Where groups are scattered over the
    inputs (`desc_act`), columns are brought into the order of groups.
    """

    bits: int
    group: int | None
    """Inputs that share a scale; None = all inputs of an output."""
    less_one: bool
    """True if zero points are stored less one."""
    suffix = ".qweight"

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group or 'all inputs'}"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        group = self.group or inputs
        groups = -(-inputs // group)
        zero_words = None if outputs is None else outputs * self.bits // _WORD
        words = stored.tensor(".qweight", (inputs * self.bits // _WORD, outputs), ("I32",))
        zeros = stored.tensor(".qzeros", (groups, zero_words), ("I32",))
        scales = stored.scales(".scales", (groups, outputs)).T.contiguous()
        order = self._order(stored, inputs, group)
        # Files of the first version have zero points less one, in as many bits: 0 less one is the largest number.
        zeros = (unpacked(zeros, self.bits).T + self.less_one) & (2**self.bits - 1)
        return self._form(words.T.contiguous(), zeros, scales, group, order)

    def _form(self, words: Tensor, zeros: Tensor, scales: Tensor, group: int, order: Tensor | None) -> Grouped:
        middle = 2 ** (self.bits - 1)
        shifted = None if not zeros.is_meta and bool((zeros == middle).all()) else zeros
        if self.bits == 4 and order is None:  # as the files have them
            kind = Codes.INT4 if shifted is None else Codes.UINT4
            return Grouped(kind, words.view(torch.uint8), scales, shifts_of(shifted, scales), group)
        codes = (unpacked(words, self.bits) - middle).view(torch.int8)
        return grouped(codes, scales, shifted, group, self.bits, order)

    def _order(self, stored: StoredModule, inputs: int, group: int) -> Tensor | None:
        """Return the inputs in the order of their groups; None where they are in it already."""
        if not stored.has(".g_idx"):
            return None
        groups = stored.tensor(".g_idx", (inputs,), ("I32", "I64"))
        if groups.is_meta:
            return None
        try:
            return order_by_group(groups, group)
        except ValueError as counts:
            expected = f"{-(-inputs // group)} groups of {group} inputs, the group_size of its config"
            raise stored.wrong(".g_idx", f"gives its groups {counts} inputs", expected) from None


def layouts(folder: CheckpointFolder) -> Layouts:
    config = QuantizationConfig.of(folder)
    usual = _layout(config, config.values)
    dynamic = config.settings_by_pattern("dynamic")
    own = {pattern: _layout(config, config.values | given) for pattern, given in dynamic.items()}
    all_of_them = layouts_where(folder, usual, head=bool(config.get("lm_head", False)))

    def find(module: str) -> StoredLayout | None:
        """Return a module's layout: patterns give some their own, or with `-:` leave them in floats (`dynamic`)."""
        for pattern, layout in own.items():
            if re.match(pattern.removeprefix("-:").removeprefix("+:"), module):
                return None if pattern.startswith("-:") else all_of_them(module) and layout
        return all_of_them(module)

    return find


def _layout(config: QuantizationConfig, values: Mapping[str, Any]) -> GptqLayout:
    asked = replace(config, values=dict(values))
    bits, kept = asked.whole("bits"), str(asked.get("checkpoint_format", "gptq"))
    if bits not in BITS:
        raise config.refused("bits", bits, ", ".join(map(str, BITS)))
    if kept not in ("gptq", "gptq_v2"):
        raise config.refused("checkpoint_format", kept, "gptq, gptq_v2")
    return GptqLayout(bits, asked.group_size(), less_one=kept == "gptq")


METHOD = Method(("gptq",), layouts)
