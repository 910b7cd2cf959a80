"""Formats of quantised checkpoints: the tensors that files have for a layer, and the small files that describe them.

Sources: the `compressed-tensors` package 0.17 (names, packing and keys of its config), msmodelslim 26.1 (names, types
and order of what is folded into `quant_bias`).
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tilewise.platforms.forms import StaticRows
from tilewise.quantize import COMPRESSED_TENSORS, FP8, W4A16, W8A8, W8A8_STATIC, W8A16, QuantizeOptions
from tilewise.quantize.modules import Matrix
from tilewise.quantize.output import JOURNAL
from tilewise.quantize.rounding import RoundedMatrix, Rounding
from tilewise.weights.folder import Section

logger = logging.getLogger("tilewise")

Tensors = dict[str, Tensor]
_SMALL = 64 * 2**20
"""Bytes of the largest file that is copied beside the weights."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".index.json", ".partial")
_WORD = 32
"""Bits of a word that codes are packed into."""


@dataclass(frozen=True)
class Plan:
    """A plan of what is written: which layers are quantised, how, and which tensors stay in floats."""

    options: QuantizeOptions
    rounding: Rounding
    matrices: Sequence[Matrix]
    floats: Sequence[str]
    """Names of the tensors that stay in floats, as the files have them."""
    linear_floats: Sequence[str]
    """Names of the modules among `floats` that are linear layers; the output head always counts as one."""

    def is_static(self, matrix: Matrix) -> bool:
        """True if the layer's activations are rounded with a scale that calibration finds.

        Activations inside an MLP have outliers, and experts see too few tokens: these are rounded as they come.
        """
        return self.options.scheme == W8A8_STATIC and not (matrix.of_expert or matrix.closes_mlp)

    def blank(self, matrix: Matrix) -> RoundedMatrix:
        """Return a rounded matrix of meta tensors, to see what the files will hold."""
        static = StaticRows(1.0, 0) if self.is_static(matrix) else None
        return replace(self.rounding.blank(matrix.outputs, matrix.inputs), static=static)


@dataclass(frozen=True)
class Format(ABC):
    """The way in which one project's files keep rounded matrices."""

    plan: Plan
    weights: ClassVar[str]
    """File name of the weights, without number and ending."""

    @abstractmethod
    def encode(self, matrix: Matrix, rounded: RoundedMatrix, bias: Tensor | None) -> Tensors:
        """Return the tensors of a layer, which may be meta, by their names in the files.

        `bias` is only for formats that fold it into another tensor; the files keep it in floats as well.
        """

    def config(self, source: Section) -> dict[str, Any]:
        """Return the config.json of the quantised checkpoint."""
        return dict(source.values)

    def description(self) -> dict[str, dict[str, Any]]:
        """Return further small files by name."""
        return {}


class CompressedTensors(Format):
    """The format of compressed-tensors, which vLLM, SGLang and transformers read."""

    weights = "model"

    def encode(self, matrix: Matrix, rounded: RoundedMatrix, bias: Tensor | None) -> Tensors:
        name, bits = matrix.module, self.plan.rounding.bits
        if self._kind != "pack-quantized":
            found = {f"{name}.weight": rounded.levels, f"{name}.weight_scale": rounded.scales}
            if rounded.static is not None:
                found[f"{name}.input_scale"] = _numbers(rounded, [rounded.static.scale], torch.float32)
                found[f"{name}.input_zero_point"] = _numbers(rounded, [rounded.static.offset], torch.int8)
            return found
        found = {
            f"{name}.weight_packed": packed(rounded.levels, bits),
            f"{name}.weight_scale": rounded.scales,
            f"{name}.weight_shape": _numbers(rounded, rounded.levels.shape, torch.int64),
        }
        if rounded.zeros is not None:
            found[f"{name}.weight_zero_point"] = packed(rounded.zeros.T, bits).T.contiguous()
        return found

    def config(self, source: Section) -> dict[str, Any]:
        found = {
            "quant_method": "compressed-tensors",
            "format": self._kind,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "config_groups": {f"group_{number}": group for number, group in enumerate(self._groups())},
            "ignore": list(self.plan.linear_floats),
        }
        return {**source.values, "quantization_config": found}

    @property
    def _kind(self) -> str:
        return _KINDS[self.plan.options.scheme]

    def _groups(self) -> list[dict[str, Any]]:
        plan, kind = self.plan, "float" if self.plan.rounding.floats else "int"
        if self._kind == "pack-quantized":
            return [self._group(["Linear"], None)]
        rows = _arguments(type=kind, strategy="token", dynamic=True)
        if plan.options.scheme != W8A8_STATIC:
            return [self._group(["Linear"], rows)]
        groups = [self._group(["Linear"], _arguments(symmetric=False, observer="minmax"))]
        if others := _patterns([matrix for matrix in plan.matrices if not plan.is_static(matrix)]):
            groups.append(self._group(others, rows))
        return groups

    def _group(self, targets: list[str], rows: dict[str, Any] | None) -> dict[str, Any]:
        rounding = self.plan.rounding
        weights = _arguments(
            num_bits=rounding.bits,
            type="float" if rounding.floats else "int",
            symmetric=not rounding.asymmetric,
            group_size=rounding.group,
            strategy="channel" if rounding.group is None else "group",
            observer="memoryless_minmax",
        )
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": rows,
            "output_activations": None,
            "format": self._kind,
        }


@dataclass(frozen=True)
class ModelSlim(Format):
    """The format of ModelSlim, which vLLM on Ascend and MindIE read."""

    weights = "quant_model_weights"
    model_dtype: torch.dtype

    def encode(self, matrix: Matrix, rounded: RoundedMatrix, bias: Tensor | None) -> Tensors:
        name = matrix.module
        if rounded.static is not None:
            return self._encode_static(name, rounded, rounded.static, bias)
        return {
            f"{name}.weight": rounded.levels,
            f"{name}.weight_scale": rounded.scales,
            f"{name}.weight_offset": torch.zeros_like(rounded.scales),
        }

    def description(self) -> dict[str, dict[str, Any]]:
        """Return the file that gives a type to each tensor by name, and says a few words about all."""
        plan, usual = self.plan, _TYPES[self.plan.options.scheme]
        types: dict[str, Any] = {}
        for matrix in plan.matrices:
            kind = "W8A8_DYNAMIC" if plan.options.scheme == W8A8_STATIC and not plan.is_static(matrix) else usual
            types |= dict.fromkeys(self.encode(matrix, plan.blank(matrix), None), kind)
        types |= dict.fromkeys(plan.floats, "FLOAT")
        about = {"version": "1.0.0", "model_quant_type": usual, "metadata": {}, "group_size": 0, "optional": {}}
        return {"quant_model_description.json": {**types, **about}}

    def _encode_static(self, name: str, rounded: RoundedMatrix, static: StaticRows, bias: Tensor | None) -> Tensors:
        """Encode a layer with static activations; bias and their offset become whole numbers in `quant_bias`."""
        # A result is step * (sum(w * x) - offset * sum(w)) + bias over int8 weights and activations. Whatever does not
        # depend on x is divided by the step, and added to the sum as one whole number.
        step = (rounded.scales.float() * static.scale)[:, 0]
        shift = rounded.levels.sum(1, dtype=torch.int64).double() * static.offset
        folded = -shift if bias is None else bias.double() / step.double() - shift
        as_bits = self.model_dtype == torch.float16
        return {
            f"{name}.weight": rounded.levels,
            f"{name}.quant_bias": folded.round().clamp(-(2**31), 2**31 - 1).to(torch.int32),
            f"{name}.input_scale": _numbers(rounded, [static.scale], torch.float32),
            f"{name}.input_offset": _numbers(rounded, [static.offset], torch.float32),
            f"{name}.deq_scale": step.view(torch.int32).to(torch.int64) if as_bits else step,
        }


def format_of(plan: Plan, model_dtype: torch.dtype) -> Format:
    return CompressedTensors(plan) if plan.options.format == COMPRESSED_TENSORS else ModelSlim(plan, model_dtype)


def small_files(folder: Path) -> list[Path]:
    """Return the files that are copied, such as tokenizer and templates; config and card are written anew."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.endswith(_WEIGHTS)
        and path.name not in ("config.json", "README.md", JOURNAL)
        and not path.name.startswith(".")
        and path.stat().st_size <= _SMALL
    ]


def warn_of_missing_code(source: Section, folder: Path) -> None:
    """Log which Python files other programs will miss.

    Tilewise neither reads nor fetches Python files of checkpoints; others want those that a config names.
    """
    named = source.get("auto_map")
    places = [place for place in (named if isinstance(named, dict) else {}).values() if isinstance(place, str)]
    files = sorted({f"{place.rpartition('--')[2].partition('.')[0]}.py" for place in places})
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        logger.warning(
            "%s: vLLM and transformers will look for %s there, which the source does not have here: copy them from "
            "where it was published. Tilewise needs none of them.",
            *(folder, ", ".join(missing)),
        )


def packed(levels: Tensor, bits: int) -> Tensor:
    """Pack int8 [rows, width] into int32 [rows, words], each level with half the range added, the first one lowest."""
    per_word = _WORD // bits
    rows, width = levels.shape
    words = torch.zeros(rows, -(-width // per_word), dtype=torch.int32, device=levels.device)
    for place in range(min(per_word, width)):
        codes = levels[:, place::per_word].to(torch.int32) + 2 ** (bits - 1)
        words[:, : codes.shape[1]] |= codes << (bits * place)
    return words


_KINDS = {
    **dict.fromkeys((W8A8, W8A8_STATIC), "int-quantized"),
    **dict.fromkeys((W4A16, W8A16), "pack-quantized"),
    FP8: "float-quantized",
}
_TYPES = {W8A8: "W8A8_DYNAMIC", W8A8_STATIC: "W8A8", W8A16: "W8A16"}


def _arguments(**given: Any) -> dict[str, Any]:
    """Return all keys for the weights or the activations of a config group; keys that are not given get defaults."""
    usual = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "group_size": None,
        "strategy": "tensor",
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": None,
        "observer_kwargs": {},
    }
    return {**usual, **given}


def _patterns(matrices: Sequence[Matrix]) -> list[str]:
    """Return patterns that match the names of these layers and of no other."""
    experts = {r"re:.*\.experts\..*" for matrix in matrices if matrix.of_expert}
    ends = {matrix.module.rpartition(".")[2] for matrix in matrices if not matrix.of_expert}
    return sorted(experts | {rf"re:.*\.{re.escape(end)}$" for end in ends})


def _numbers(rounded: RoundedMatrix, values: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return a small tensor that goes beside a matrix; it is a meta tensor if the matrix is one."""
    if rounded.levels.is_meta:
        return torch.empty(len(values), dtype=dtype, device="meta")
    return torch.tensor(list(values), dtype=dtype)
