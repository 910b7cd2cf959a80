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
from tilewise.weights.folder import CheckpointFolder, Section, read_json
from tilewise.weights.quantization import Layouts, Method, StoredLayout, StoredTensors
from tilewise.weights.quantization.blocks import check_scales, wrong_tensor

logger = logging.getLogger("tilewise")

_NUMBERS = ("F32", "BF16", "F16")
_OFFSETS = (*_NUMBERS, "I8", "I32")
_STATIC = ("quant_bias", "deq_scale", "input_scale", "input_offset")
_FLOATS = ("FLOAT", "W16A16S")
_READABLE = "W8A8, W8A8_DYNAMIC, W8A8_MIX, W8A16, W4A16, W4A8_DYNAMIC"


@dataclass(frozen=True)
class Description:
    """The parts of a description that are about all layers."""

    names: frozenset[str]
    """Names of the tensors that the files should have."""
    group: int | None
    """Inputs that share a scale where a layer has groups at all; None = not said."""
    packed: bool
    """True if two numbers of 4 bits share a byte; the first tools gave each a byte of its own."""

    def named(self, module: str, *ends: str) -> list[str]:
        """Return the names of those tensors of a layer that the files should have."""
        return [name for end in ends if (name := f"{module}.{end}") in self.names]


@dataclass(frozen=True)
class StaticLayout:
    """W8A8: int8 `weight`, `quant_bias` int32 [out], `deq_scale` [out], `input_scale` [1], `input_offset` [1].

    The float bias is inside `quant_bias`, and so is what the offset of the rows adds. Older files also have the scales
    of the weight alone, which `deq_scale` includes.
    """

    description: Description
    suffix: str = ".weight"

    def __str__(self) -> str:
        return "int8 (rows by calibration)"

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        weight = tensors.tensor(f"{module}.weight", (outputs, inputs), ("I8",), item)
        per_output = (len(weight),)
        addend = tensors.tensor(f"{module}.quant_bias", per_output, ("I32",), item)
        scales = tensors.tensor(f"{module}.deq_scale", per_output, ("F32", "I64"), item)
        scales = _as_float(tensors, f"{module}.deq_scale", scales)
        check_scales(tensors, f"{module}.deq_scale", scales)
        row_scale = tensors.tensor(f"{module}.input_scale", (1,), _NUMBERS, item)
        row_offset = tensors.tensor(f"{module}.input_offset", (1,), _OFFSETS, item)
        check_scales(tensors, f"{module}.input_scale", row_scale, of_rows=True)
        _read_idle(tensors, self.description.named(module, "weight_scale"), item)
        _check_symmetric(tensors, self.description.named(module, "weight_offset"), item)
        return Int8(weight, scales, _static_rows(tensors, f"{module}.input_offset", row_scale, row_offset), addend)

    def folds_bias(self, matrix: Form) -> bool:
        return True


@dataclass(frozen=True)
class DynamicLayout:
    """W8A8_DYNAMIC: int8 `weight`, `weight_scale` and `weight_offset` (zeros) [out, 1], rows rounded as they come.

    W8A8_MIX has the tensors of static rows beside them, for machines that only decode. Layers with a scale for each
    group of inputs multiply with rows of floats.
    """

    description: Description
    suffix: str = ".weight"

    def __str__(self) -> str:
        return "int8 (rows as they come)"

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        weight = tensors.tensor(f"{module}.weight", (outputs, inputs), ("I8",), item)
        scales = tensors.tensor(f"{module}.weight_scale", (len(weight), None), _NUMBERS, item).float()
        check_scales(tensors, f"{module}.weight_scale", scales)
        _check_symmetric(tensors, self.description.named(module, "weight_offset"), item)
        _read_idle(tensors, self.description.named(module, *_STATIC), item)
        if scales.shape[1] == 1:
            return Int8(weight, scales[:, 0].contiguous())
        group = _group(tensors, f"{module}.weight_scale", scales, inputs, self.description.group)
        return Grouped(Codes.INT8, weight.view(torch.uint8), scales, None, group)

    def folds_bias(self, matrix: Form) -> bool:
        return False


@dataclass(frozen=True)
class WeightOnlyLayout:
    """W8A16, W4A16 and W4A8_DYNAMIC: a number is (code - `weight_offset`) * `weight_scale`, for rows of floats.

    Scales are [out, 1] or [out, groups]. With `weight_scale_second` [out, groups], a number is rounded twice: the first
    scale is then of the output. W4A8_DYNAMIC asks for rows of int8, which are kept in floats here; what its files say
    of them (`scale_bias`) follows from the weights.
    """

    bits: int
    description: Description
    across: bool = False
    """True if bytes hold the codes of two outputs even where an output has one scale."""
    suffix: str = ".weight"

    def __str__(self) -> str:
        groups = self.description.group
        return f"{self.bits} bits (scales of " + ("outputs)" if groups is None else f"outputs or of {groups} inputs)")

    def read(self, tensors: StoredTensors, module: str, outputs: int | None, inputs: int, item: int | None) -> Form:
        scales = self._scales(tensors, f"{module}.weight_scale", outputs, inputs, item)
        outputs = len(scales)
        shifts = self._shifts(tensors, module, scales, item)
        if self.description.named(module, "weight_scale_second"):
            name = f"{module}.weight_scale_second"
            scales = scales * self._scales(tensors, name, outputs, inputs, item)
            _check_symmetric(tensors, self.description.named(module, "weight_offset_second"), item)
        _read_idle(tensors, self.description.named(module, "scale_bias"), item)
        group = _group(tensors, f"{module}.weight_scale", scales, inputs, self.description.group)
        if self.bits == 4 and group % 2:
            found = f"has {scales.shape[1]} scales an output, {group} inputs each"
            raise wrong_tensor(
                tensors, f"{module}.weight_scale", found, "an even number of inputs, as codes have 4 bits"
            )
        across = self.across or group < inputs
        codes = self._codes(tensors, f"{module}.weight", (outputs, inputs), across, item)
        return Grouped(Codes.INT8 if self.bits == 8 else Codes.INT4, codes, scales, shifts, group)

    def _scales(self, tensors: StoredTensors, name: str, outputs: int | None, inputs: int, item: int | None) -> Tensor:
        """Return float32 [out, groups]; without files, with as many groups as the description says that there are."""
        found = tensors.tensor(name, (outputs, None), _NUMBERS, item).float()
        check_scales(tensors, name, found)
        twice = name.removesuffix("_second") + "_second" in self.description.names
        if found.is_meta and self.description.group and (not twice or name.endswith("_second")):
            return found.new_empty(len(found), -(-inputs // self.description.group))
        return found

    def _shifts(self, tensors: StoredTensors, module: str, scales: Tensor, item: int | None) -> Tensor | None:
        """Return what offsets add to the numbers of a group; None where they are all zero."""
        for name in self.description.named(module, "weight_offset"):
            wanted = (None, None) if scales.is_meta else scales.shape
            offsets = tensors.tensor(name, wanted, _OFFSETS, item).float()
            if offsets.is_meta or not offsets.any():
                return None
            if not offsets.isfinite().all():
                found = f"has {offsets[~offsets.isfinite()][0].item()}"
                raise wrong_tensor(tensors, name, found, "numbers that are finite")
            return -offsets * scales
        return None

    def _codes(
        self, tensors: StoredTensors, name: str, shape: tuple[int, int], across: bool, item: int | None
    ) -> Tensor:
        """Return codes as `Grouped` keeps them."""
        # Codes of 4 bits are in two's complement in the files, and have 8 added here: `^ 8` turns one into the other,
        # `^ 0x88` does so for both halves of a byte.
        outputs, inputs = shape
        if self.bits == 8:
            return tensors.tensor(name, shape, ("I8",), item).view(torch.uint8)
        if not self.description.packed:
            whole = tensors.tensor(name, shape, ("I8",), item)
            if not whole.is_meta and ((whole < -8) | (whole > 7)).any():
                found = f"has numbers from {int(whole.min())} to {int(whole.max())}"
                raise wrong_tensor(tensors, name, found, "those from -8 to 7, which 4 bits can say")
            return packed_nibbles((whole.view(torch.uint8) & 15) ^ 8)
        if not across:
            return tensors.tensor(name, (outputs, inputs // 2), ("I8",), item).view(torch.uint8) ^ 0x88
        # A byte has two outputs of one input here, and two inputs of one output in the form.
        pairs = tensors.tensor(name, (outputs // 2, inputs), ("I8",), item).view(torch.uint8)
        left, right = pairs[:, ::2], pairs[:, 1::2]
        upper, lower = (left & 15) | (right << 4), (left >> 4) | (right & 240)
        return torch.stack((upper, lower), 1).flatten(0, 1) ^ 0x88

    def folds_bias(self, matrix: Form) -> bool:
        return False


def _as_float(tensors: StoredTensors, name: str, scales: Tensor) -> Tensor:
    """Return scales in float32; where they are stored as int64, each holds the bits of a float32."""
    if scales.dtype != torch.int64:
        return scales
    if not scales.is_meta and (scales >> 32).any():
        found = f"has the whole number {int(scales[(scales >> 32) != 0][0])}"
        raise wrong_tensor(tensors, name, found, "the 32 bits of a float in each")
    return scales.to(torch.int32).view(torch.float32)


def _static_rows(tensors: StoredTensors, name: str, scale: Tensor, offset: Tensor) -> StaticRows:
    if scale.is_meta:
        return StaticRows(1.0, 0)
    found = float(offset)
    if not -128 <= found <= 127 or found != int(found):
        raise wrong_tensor(tensors, name, f"has {found}", "a whole number from -128 to 127")
    return StaticRows(float(scale), int(found))


def _group(tensors: StoredTensors, name: str, scales: Tensor, inputs: int, described: int | None) -> int:
    """Return how many inputs share one of these scales [out, groups]. Raises InvalidCheckpoint for another number."""
    groups = scales.shape[1]
    group, rest = divmod(inputs, groups)
    if groups > 1 and (rest or (described is not None and group != described)):
        wanted = f"groups of {described} inputs, as the description says" if described else "groups of equal size"
        raise wrong_tensor(tensors, name, f"has {groups} scales for {inputs} inputs", wanted)
    return group


def _check_symmetric(tensors: StoredTensors, names: list[str], item: int | None) -> None:
    for name in names:
        offsets = tensors.tensor(name, (None, None), _OFFSETS, item)
        if not offsets.is_meta and offsets.any():
            found = f"has offsets other than 0, such as {float(offsets[offsets != 0][0])}"
            raise wrong_tensor(tensors, name, found, "zeros, as weights that multiply with int8 have no offsets")


def _read_idle(tensors: StoredTensors, names: list[str], item: int | None) -> None:
    """Read tensors only to count them as read: other machines need them, or they repeat what others say."""
    for name in names:
        dimensions = 1 if name.endswith(_STATIC) else 2
        tensors.tensor(name, (None,) * dimensions, (*_OFFSETS, "I64"), item)


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
            raise InvalidCheckpoint(
                f"{section.where}: {name} is {kind!r:.80}, and what can be read is {_READABLE}: take another "
                "quantisation of the model, or the model in bfloat16."
            )
        if there and name not in there:
            raise InvalidCheckpoint(
                f"{folder.path} has no tensor {name}, which {section.where} describes as {kind}: {GET_AGAIN}."
            )
        found[name.removesuffix(".weight")] = by_type[kind]
    return found.get


def _layouts_by_type(section: Section) -> Mapping[str, StoredLayout]:
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
        "W8A16": WeightOnlyLayout(8, description),
        "W4A16": WeightOnlyLayout(4, description),
        "W4A8_DYNAMIC": WeightOnlyLayout(4, description, across=True),
    }


def _described(folder: CheckpointFolder) -> Section:
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
    return Section(read_json(path), str(path))


METHOD = Method(("ascend",), layouts)
