"""ModelSlim's checkpoints for Ascend: a description gives the quantisation of each tensor by name.

Source of layouts and arithmetic: msmodelslim 26.1.0, `core/quant_service/modelslim_v1/save/ascendv1.py` for today's
files, `pytorch/llm_ptq/llm_ptq_tools/save/complex_quantifier.py` for older ones. Rotations (QuaRot) and smoothing are
folded into the weights before they are written, so nothing is to be done for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.platforms.forms import Codes, Form, Grouped, Int8, StaticRows, packed_nibbles
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder, read_json
from tilewise.weights.quantization import Method, QuantizationConfig
from tilewise.weights.quantization.stored import (
    MX_BLOCK,
    Layouts,
    StoredLayout,
    StoredModule,
    exchanged_halves,
    powers_of_two,
)

logger = logging.getLogger("tilewise")

_NUMBERS = ("F32", "BF16", "F16")
_OFFSETS = (*_NUMBERS, "I8", "I32")
_STATIC = (".quant_bias", ".deq_scale", ".input_scale", ".input_offset")
_FLOATS = ("FLOAT", "W16A16S")
_READABLE = (
    "W8A8, W8A8_DYNAMIC, W8A8_MIX, W8A16, W4A16, W4A8_DYNAMIC, WFP8AFP8_DYNAMIC, W8A8_MXFP8, W4A8_MXFP, W4A4_MXFP4"
)


@dataclass(frozen=True)
class Description:
    """The parts of a description that are about all layers."""

    names: frozenset[str]
    """Names of the tensors that the files should have."""
    group: int | None
    """Inputs that share a scale where a layer has groups at all; None = not said."""
    packed: bool
    """True if two numbers of 4 bits share a byte; the first tools gave each a byte of its own."""


@dataclass(frozen=True)
class _DescribedLayout(StoredLayout):
    """A layout of tensors some of which are there only if the description names them."""

    description: Description

    def _named(self, stored: StoredModule, *ends: str) -> list[str]:
        """Return the ends of those tensors of a layer that the files should have."""
        return [end for end in ends if stored.name + end in self.description.names]

    def _group(self, stored: StoredModule, scales: Tensor, inputs: int) -> int:
        """Return how many inputs share one of these `.weight_scale` [out, groups].

        Raises InvalidCheckpoint for another number.
        """
        groups, described = scales.shape[1], self.description.group
        group, rest = divmod(inputs, groups)
        if groups > 1 and (rest or (described is not None and group != described)):
            wanted = f"groups of {described} inputs, as the description says" if described else "groups of equal size"
            raise stored.wrong(".weight_scale", f"has {groups} scales for {inputs} inputs", wanted)
        return group

    def _check_symmetric(self, stored: StoredModule, offset: str) -> None:
        for end in self._named(stored, offset):
            offsets = stored.tensor(end, (None, None), _OFFSETS)
            if not offsets.is_meta and offsets.any():
                found = f"has offsets other than 0, such as {float(offsets[offsets != 0][0])}"
                raise stored.wrong(end, found, "zeros, as weights that multiply with int8 have no offsets")

    def _read_idle(self, stored: StoredModule, *ends: str) -> None:
        """Read tensors only to count them as read: other machines need them, or they repeat what others say."""
        for end in self._named(stored, *ends):
            dimensions = 1 if end in _STATIC else 2
            stored.tensor(end, (None,) * dimensions, (*_OFFSETS, "I64"))


@dataclass(frozen=True)
class StaticLayout(_DescribedLayout):
    """W8A8: int8 `weight`, `quant_bias` int32 [out], `deq_scale` [out], `input_scale` [1], `input_offset` [1].

    The float bias is inside `quant_bias`, and so is what the offset of the rows adds. Older files also have the scales
    of the weight alone, which `deq_scale` includes.
    """

    folds_bias = True

    def __str__(self) -> str:
        return "int8 (rows by calibration)"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        weight = stored.tensor(".weight", (outputs, inputs), ("I8",))
        addend = stored.tensor(".quant_bias", (len(weight),), ("I32",))
        scales = stored.check_scales(".deq_scale", _deq_scales(stored, len(weight)))
        row_scale = stored.scales(".input_scale", (1,), _NUMBERS, of_rows=True)
        row_offset = stored.tensor(".input_offset", (1,), _OFFSETS)
        self._read_idle(stored, ".weight_scale")
        self._check_symmetric(stored, ".weight_offset")
        return Int8(weight, scales, _static_rows(stored, row_scale, row_offset), addend)


@dataclass(frozen=True)
class DynamicLayout(_DescribedLayout):
    """W8A8_DYNAMIC: int8 `weight`, `weight_scale` and `weight_offset` (zeros) [out, 1], rows rounded as they come.

    W8A8_MIX has the tensors of static rows beside them, for machines that only decode. Layers with a scale for each
    group of inputs multiply with rows of floats.
    """

    def __str__(self) -> str:
        return "int8 (rows as they come)"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        weight = stored.tensor(".weight", (outputs, inputs), ("I8",))
        scales = stored.scales(".weight_scale", (len(weight), None), _NUMBERS)
        self._check_symmetric(stored, ".weight_offset")
        self._read_idle(stored, *_STATIC)
        if scales.shape[1] == 1:
            return Int8(weight, scales[:, 0].contiguous())
        return Grouped(Codes.INT8, weight.view(torch.uint8), scales, None, self._group(stored, scales, inputs))


@dataclass(frozen=True)
class WeightOnlyLayout(_DescribedLayout):
    """W8A16, W4A16 and W4A8_DYNAMIC: a number is (code - `weight_offset`) * `weight_scale`, for rows of floats.

    Scales are [out, 1] or [out, groups]. With `weight_scale_second` [out, groups], a number is rounded twice: the first
    scale is then of the output. W4A8_DYNAMIC asks for rows of int8, which are kept in floats here; what its files say
    of them (`scale_bias`) follows from the weights.
    """

    bits: int
    across: bool = False
    """True if bytes hold the codes of two outputs even where an output has one scale."""

    def __str__(self) -> str:
        groups = self.description.group
        return f"{self.bits} bits (scales of " + ("outputs)" if groups is None else f"outputs or of {groups} inputs)")

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        scales = self._scales(stored, ".weight_scale", outputs, inputs)
        outputs = len(scales)
        shifts = self._shifts(stored, scales)
        for second in self._named(stored, ".weight_scale_second"):
            scales = scales * self._scales(stored, second, outputs, inputs)
            self._check_symmetric(stored, ".weight_offset_second")
        self._read_idle(stored, ".scale_bias")
        group = self._group(stored, scales, inputs)
        if self.bits == 4 and group % 2:
            found = f"has {scales.shape[1]} scales an output, {group} inputs each"
            raise stored.wrong(".weight_scale", found, "an even number of inputs, as codes have 4 bits")
        codes = self._codes(stored, outputs, inputs, across=self.across or group < inputs)
        return Grouped(Codes.INT8 if self.bits == 8 else Codes.INT4, codes, scales, shifts, group)

    def _scales(self, stored: StoredModule, end: str, outputs: int | None, inputs: int) -> Tensor:
        """Return float32 [out, groups]; without files, with as many groups as the description says that there are."""
        found = stored.scales(end, (outputs, None), _NUMBERS)
        twice = self._named(stored, ".weight_scale_second")
        if found.is_meta and self.description.group and (not twice or end.endswith("_second")):
            return found.new_empty(len(found), -(-inputs // self.description.group))
        return found

    def _shifts(self, stored: StoredModule, scales: Tensor) -> Tensor | None:
        """Return what offsets add to the numbers of a group; None where they are all zero."""
        for end in self._named(stored, ".weight_offset"):
            offsets = stored.tensor(end, (None, None) if scales.is_meta else scales.shape, _OFFSETS).float()
            if offsets.is_meta or not offsets.any():
                return None
            if not offsets.isfinite().all():
                found = f"has {offsets[~offsets.isfinite()][0].item()}"
                raise stored.wrong(end, found, "numbers that are finite")
            return -offsets * scales
        return None

    def _codes(self, stored: StoredModule, outputs: int, inputs: int, across: bool) -> Tensor:
        """Return codes as `Grouped` keeps them."""
        # Codes of 4 bits are in two's complement in the files, and have 8 added here: `^ 8` turns one into the other,
        # `^ 0x88` does so for both halves of a byte.
        if self.bits == 8:
            return stored.tensor(".weight", (outputs, inputs), ("I8",)).view(torch.uint8)
        if not self.description.packed:
            whole = stored.tensor(".weight", (outputs, inputs), ("I8",))
            if not whole.is_meta and ((whole < -8) | (whole > 7)).any():
                found = f"has numbers from {int(whole.min())} to {int(whole.max())}"
                raise stored.wrong(".weight", found, "those from -8 to 7, which 4 bits can say")
            return packed_nibbles((whole.view(torch.uint8) & 15) ^ 8)
        if not across:
            return stored.tensor(".weight", (outputs, inputs // 2), ("I8",)).view(torch.uint8) ^ 0x88
        pairs = stored.tensor(".weight", (outputs // 2, inputs), ("I8",)).view(torch.uint8)
        return torch.stack(exchanged_halves(pairs[:, ::2], pairs[:, 1::2]), 1).flatten(0, 1) ^ 0x88


@dataclass(frozen=True)
class FloatCodesLayout(_DescribedLayout):
    """WFP8AFP8_DYNAMIC, and the MX kinds, whose `weight_scale` uint8 [out, in / 32] has exponents with 127 added.

    WFP8AFP8_DYNAMIC has float scales [out, 1] and offsets of zero. Rows stay floats, whatever rounding of them a
    description asks for.
    """

    kind: Codes
    mx: bool

    def __str__(self) -> str:
        return f"{'MX' if self.mx else ''}FP{self.kind.bits}, rows in floats"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        codes = self._codes(stored, outputs, inputs)
        if not self.mx:
            scales = stored.scales(".weight_scale", (len(codes), 1), _NUMBERS)
            self._check_symmetric(stored, ".weight_offset")
            return Grouped(self.kind, codes, scales, None, inputs)
        exponents = stored.tensor(".weight_scale", (len(codes), -(-inputs // MX_BLOCK)), ("U8",))
        scales = stored.check_scales(".weight_scale", powers_of_two(exponents))
        return Grouped(self.kind, codes, scales, None, MX_BLOCK)

    def _codes(self, stored: StoredModule, outputs: int | None, inputs: int) -> Tensor:
        if self.kind is Codes.FP4:
            return stored.tensor(".weight", (outputs, inputs // 2), ("U8",))
        return stored.tensor(".weight", (outputs, inputs), ("F8_E4M3",)).view(torch.uint8)


def _deq_scales(stored: StoredModule, outputs: int) -> Tensor:
    """Return scales in float32; where they are stored as int64, each holds the bits of a float32."""
    scales = stored.tensor(".deq_scale", (outputs,), ("F32", "I64"))
    if scales.dtype != torch.int64:
        return scales
    if not scales.is_meta and (scales >> 32).any():
        found = f"has the whole number {int(scales[(scales >> 32) != 0][0])}"
        raise stored.wrong(".deq_scale", found, "the 32 bits of a float in each")
    return scales.to(torch.int32).view(torch.float32)


def _static_rows(stored: StoredModule, scale: Tensor, offset: Tensor) -> StaticRows:
    if scale.is_meta:
        return StaticRows(1.0, 0)
    found = float(offset)
    if not -128 <= found <= 127 or found != int(found):
        raise stored.wrong(".input_offset", f"has {found}", "a whole number from -128 to 127")
    return StaticRows(float(scale), int(found))


def layouts(folder: CheckpointFolder) -> Layouts:
    section = _described(folder)
    by_type, kinds = _layouts_by_type(section), {k: v for k, v in section.values.items() if k.endswith(".weight")}
    if not kinds:
        raise InvalidCheckpoint(f"{section.where} describes no weights: {GET_AGAIN}.")
    there, found = known_names(folder.path), dict[str, StoredLayout]()
    for name, kind in kinds.items():
        if isinstance(kind, str) and kind in _FLOATS:
            continue
        if not isinstance(kind, str) or kind not in by_type:
            raise section.refused(name, kind, _READABLE)
        if there and name not in there:
            raise InvalidCheckpoint(
                f"{folder.path} has no tensor {name}, which {section.where} describes as {kind}: {GET_AGAIN}."
            )
        found[name.removesuffix(".weight")] = by_type[kind]
    return found.get


def _layouts_by_type(section: QuantizationConfig) -> Mapping[str, StoredLayout]:
    values: Mapping[str, Any] = section.values
    metadata = values.get("metadata")
    if isinstance(metadata, dict) and metadata.get("quarot"):
        raise InvalidCheckpoint(
            f"{section.where}: metadata.quarot asks for rotations while the model runs, which is not supported: take a "
            "checkpoint into which they are folded."
        )
    if "C8" in values.values():
        logger.info("The scales of the checkpoint for a KV cache in int8 are not used: they change nothing else.")
    group = section.get("group_size", 0)
    version = str(section.get("version", "0"))
    description = Description(
        names=frozenset(name for name, kind in values.items() if isinstance(kind, str) and "." in name),
        group=section.whole("group_size") if group else None,
        packed=not version.startswith("0"),
    )
    static, dynamic = StaticLayout(description), DynamicLayout(description)
    return {
        **dict.fromkeys(("W8A8", "W8A8S"), static),
        **dict.fromkeys(("W8A8_DYNAMIC", "W8A8_MIX"), dynamic),
        "W8A16": WeightOnlyLayout(description, 8),
        "W4A16": WeightOnlyLayout(description, 4),
        "W4A8_DYNAMIC": WeightOnlyLayout(description, 4, across=True),
        "WFP8AFP8_DYNAMIC": FloatCodesLayout(description, Codes.FP8, mx=False),
        "W8A8_MXFP8": FloatCodesLayout(description, Codes.FP8, mx=True),
        **dict.fromkeys(("W4A8_MXFP", "W4A4_MXFP4"), FloatCodesLayout(description, Codes.FP4, mx=True)),
    }


def _described(folder: CheckpointFolder) -> QuantizationConfig:
    """Read the description by the name that it has today or, as in the past, one that ends with the quantisation."""
    found = sorted(folder.path.glob("quant_model_description*.json"))
    usual = folder.path / "quant_model_description.json"
    if not found:
        raise InvalidCheckpoint(
            f"{folder.path} has no {usual.name}, though {folder.config.where} speaks of a quantisation without saying "
            "which (quant_method): ModelSlim writes one. Fetch the file, or take another copy of the model."
        )
    if usual not in found and len(found) > 1:
        raise InvalidCheckpoint(f"{folder.path} has {found[0].name} and {found[1].name}: keep that of its weights.")
    path = usual if usual in found else found[0]
    return QuantizationConfig(read_json(path), str(path))


METHOD = Method(("ascend",), layouts)
