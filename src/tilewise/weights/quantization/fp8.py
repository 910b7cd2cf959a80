"""FP8 as DeepSeek keeps it, in blocks, and as vLLM's older tools do, with one scale for a matrix.

Source: transformers 5.24 `FineGrainedFP8Config`, `integrations/finegrained_fp8.py`; InternLM/lmdeploy
`lite/apis/blocked_fp8.py`; vllm-project/vllm `model_executor/layers/quantization/fp8.py` for `weight_scale`.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

import torch

from tilewise.ignored import LOG
from tilewise.platforms.forms import Codes, Dense, Form, Grouped
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method, QuantizationConfig, module_class, spellings
from tilewise.weights.quantization.stored import FLOATS, Layouts, ScaleBlock, StoredLayout, StoredModule

_SUPPORTED = {
    "fmt": ("e4m3", "float8_e4m3fn"),
    "activation_scheme": ("dynamic", "static"),
    "scale_fmt": ("float", "ue8m0"),
    "expert_dtype": ("fp8",),
}
_LISTS = ("modules_to_not_convert", "ignored_layers", "modules_to_convert")
_SCALES = (".weight_scale_inv", ".weight_scale")
_SCALES_OF_ROWS = (".input_scale", ".activation_scale")
_SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0")


@dataclass(frozen=True)
class Fp8Layout(StoredLayout):
    """A layer of E4M3. Rows stay floats, whatever scale for them the files have, which is read and checked: the
    weights are multiplied as exactly as they are stored."""

    block: ScaleBlock
    names: Set[str]
    """Names of all tensors of the files; empty before they are known."""

    def __str__(self) -> str:
        return f"fp8 {self.block}, rows in floats"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        """Read a layer; one that is stored in floats, though the config does not list it, is a `Dense` one."""
        matrix = stored.tensor(".weight", (outputs, inputs), ("F8_E4M3", *FLOATS))
        if matrix.dtype != torch.float8_e4m3fn:
            return Dense(matrix)
        for end in _SCALES_OF_ROWS:
            if stored.name + end in self.names:
                stored.scales(end, (1,), _SCALE_TYPES, (), of_rows=True)
        usual, *others = self._shapes(len(matrix), inputs)
        scales = stored.scales(self._scale_end(stored.name), usual, _SCALE_TYPES, *others)
        # Where the config gives no blocks, there is one scale for the matrix, or one for each output.
        block = ScaleBlock(1, None) if self.block.outputs is None and scales.numel() == len(matrix) else self.block
        scales = block.of_each_output(scales, len(matrix), inputs)
        return Grouped(Codes.FP8, matrix.view(torch.uint8), scales, None, block.inputs or inputs)

    def _shapes(self, outputs: int, inputs: int) -> list[tuple[int, ...]]:
        found = self.block.shapes(outputs, inputs)
        return found + (ScaleBlock(1, None).shapes(outputs, inputs) if self.block.outputs is None else [])

    def _scale_end(self, module: str) -> str:
        usual = _SCALES[0] if self.block.outputs else _SCALES[1]
        return next((end for end in _SCALES if module + end in self.names), usual)


def layouts(folder: CheckpointFolder) -> Layouts:
    config = QuantizationConfig.of(folder)
    _check_keys(config)
    layout = Fp8Layout(_block(config), known_names(folder.path))
    also = frozenset(config.names("modules_to_convert"))
    named = _Named([*config.names("modules_to_not_convert"), *config.names("ignored_layers")])

    def found(module: str) -> StoredLayout | None:
        linear = module_class(module) == "Linear" or not also.isdisjoint(spellings(module))
        return layout if linear and not named.matches(module) else None

    return found


class _Named:
    """A set of modules, given by their own names or by those of modules that they are in.

    Such a name may stand anywhere in a module's own, as whole parts between dots. Where files write
    `model.layers.*.mlp.gate`, each `*` is any one part.
    """

    def __init__(self, names: list[str]) -> None:
        self._exact = frozenset(name for name in names if "*" not in name)
        starred = (re.escape(name.replace(".*", "*")).replace(r"\*", r"\.[^.]+") for name in names if "*" in name)
        self._starred = [re.compile(rf"(^|.*\.){pattern}(\.|$)") for pattern in starred]

    def matches(self, module: str) -> bool:
        return any(self._has(name) for name in spellings(module))

    def _has(self, name: str) -> bool:
        parts = name.split(".")
        within = (".".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1))
        return any(part in self._exact for part in within) or any(one.match(name) for one in self._starred)


def _check_keys(config: QuantizationConfig) -> None:
    for key, supported in _SUPPORTED.items():
        if (found := config.get(key)) is not None and found not in supported:
            raise config.refused(key, found, ", ".join(repr(one) for one in supported))
    known = ("quant_method", "weight_block_size", *_SUPPORTED, *_LISTS)
    without = {f"{config.where}: {key}": "it is not known" for key in config.values if key not in known}
    LOG.take(without, "checkpoint")


def _block(config: QuantizationConfig) -> ScaleBlock:
    found = config.get("weight_block_size")
    if found is None:
        return ScaleBlock(None, None)
    whole = isinstance(found, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in found)
    if not whole or len(found) != 2 or min(found) < 1:
        raise config.refused("weight_block_size", found, "two whole numbers above 0")
    return ScaleBlock(*found)


METHOD = Method(("fp8",), layouts)
