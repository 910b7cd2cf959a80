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

from tilewise.platforms.forms import Codes, Form, Grouped, packed_nibbles
from tilewise.weights.folder import CheckpointFolder, Section
from tilewise.weights.quantization import FLOATS, Layouts, Method, StoredLayout, StoredTensors
from tilewise.weights.quantization.blocks import check_scales, wrong_tensor
from tilewise.weights.quantization.description import (
    group_size,
    layouts_where,
    quantization_section,
    refused,
    settings_by_pattern,
)

BITS = (2, 3, 4, 8)
_WORD = 32


@dataclass(frozen=True)
class GptqLayout:
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
    suffix: str = ".qweight"

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group or 'all inputs'}"

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        group = self.group or inputs
        groups = -(-inputs // group)
        zero_words = None if outputs is None else outputs * self.bits // _WORD
        words = tensors.tensor(f"{module}.qweight", (inputs * self.bits // _WORD, outputs), ("I32",))
        zeros = tensors.tensor(f"{module}.qzeros", (groups, zero_words), ("I32",))
        scales = tensors.tensor(f"{module}.scales", (groups, outputs), FLOATS)
        check_scales(tensors, f"{module}.scales", scales)
        order = self._order(tensors, module, inputs, group)
        zeros = (unpacked_bits(zeros, self.bits).T + self.less_one) & (2**self.bits - 1)
        return self._form(words.T.contiguous(), zeros, scales.T.float().contiguous(), group, order)

    def _form(self, words: Tensor, zeros: Tensor, scales: Tensor, group: int, order: Tensor | None) -> Grouped:
        middle, wide = 2 ** (self.bits - 1), self.bits == 8
        symmetric = not zeros.is_meta and bool((zeros == middle).all())
        shifts = None if symmetric else -zeros.float() * scales
        kind = (Codes.INT8 if wide else Codes.INT4) if symmetric else (Codes.UINT8 if wide else Codes.UINT4)
        if self.bits == 4 and order is None:
            return Grouped(kind, words.view(torch.uint8), scales, shifts, group)  # as the files have them
        codes = unpacked_bits(words, self.bits) if order is None else unpacked_bits(words, self.bits)[:, order]
        # `Grouped` keeps symmetric codes in two's complement if they have 8 bits, else with 8 added.
        if symmetric:
            codes = codes ^ 128 if wide else codes + (8 - middle)
        return Grouped(kind, codes if wide else packed_nibbles(codes), scales, shifts, group, order)

    def _order(self, tensors: StoredTensors, module: str, inputs: int, group: int) -> Tensor | None:
        """Return the inputs in the order of their groups; None where they are in it already."""
        if not tensors.has(f"{module}.g_idx"):
            return None
        groups = tensors.tensor(f"{module}.g_idx", (inputs,), ("I32", "I64"))
        usual = torch.arange(inputs, device=groups.device) // group
        if groups.is_meta or torch.equal(groups.long(), usual):
            return None
        found, order = groups.long().sort(stable=True)
        if not torch.equal(found, usual):
            counts = torch.bincount(groups.clamp(0, int(usual[-1]) + 1)).tolist()
            raise wrong_tensor(
                tensors,
                f"{module}.g_idx",
                f"gives its groups {str(counts)[:40]} inputs",
                f"{usual[-1] + 1} groups of {group} inputs, the group_size of its config",
            )
        return order

    def folds_bias(self, matrix: Form) -> bool:
        return False


def unpacked_bits(words: Tensor, bits: int) -> Tensor:
    """Unpack int32 [n, m] to uint8 codes [n, m * 32 / bits]: a stream of bits, the lowest of each word first."""
    if words.is_meta:
        return words.new_empty(len(words), words.shape[1] * _WORD // bits, dtype=torch.uint8)
    if bits == 8:
        return words.contiguous().view(torch.uint8)
    if _WORD % bits == 0:
        places = torch.arange(0, _WORD, bits, device=words.device)
        codes: Tensor = (words[..., None] >> places) & (2**bits - 1)
        return codes.to(torch.uint8).flatten(1)
    stream: Tensor = (words[..., None] >> torch.arange(_WORD, device=words.device)) & 1
    values = 2 ** torch.arange(bits, dtype=torch.uint8, device=words.device)
    found: Tensor = stream.to(torch.uint8).flatten(1).unflatten(1, (-1, bits)) * values
    return found.sum(-1, dtype=torch.uint8)


def layouts(folder: CheckpointFolder) -> Layouts:
    config = quantization_section(folder)
    usual = _layout(config, config.values)
    dynamic = settings_by_pattern(config, "dynamic")
    own = {pattern: _layout(config, config.values | given) for pattern, given in dynamic.items()}
    all_of_them = layouts_where(folder, usual, head=bool(config.get("lm_head", False)))

    def find(module: str) -> StoredLayout | None:
        """Return a module's layout: patterns give some their own, or with `-:` leave them in floats (`dynamic`)."""
        for pattern, layout in own.items():
            if re.match(pattern.removeprefix("-:").removeprefix("+:"), module):
                return None if pattern.startswith("-:") else all_of_them(module) and layout
        return all_of_them(module)

    return find


def _layout(config: Section, values: Mapping[str, Any]) -> GptqLayout:
    asked = replace(config, values=dict(values))
    bits, kept = asked.whole("bits"), str(asked.get("checkpoint_format", "gptq"))
    if bits not in BITS:
        raise refused(config, "bits", bits, ", ".join(map(str, BITS)))
    if kept not in ("gptq", "gptq_v2"):
        raise refused(config, "checkpoint_format", kept, "gptq, gptq_v2")
    return GptqLayout(bits, group_size(asked, "group_size"), less_one=kept == "gptq")


METHOD = Method(("gptq",), layouts)
