"""Quantised files read by numpy alone: nothing here is shared with what writes them or with the engine's readers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

Floats = NDArray[np.float64]


def tensors_of(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder, through the index where there is one."""
    found: dict[str, Any] = {}
    for index in folder.glob("*.index.json"):
        places = json.loads(index.read_text())["weight_map"]
        for name in set(places.values()):
            found |= load_file(folder / name)
        assert set(places) == set(found)
        return found
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def unpacked(words: Any, bits: int, count: int) -> NDArray[np.int64]:
    """int32 [rows, words] -> [rows, count]: the first code in the lowest bits, half the range subtracted."""
    unsigned = words.numpy().view(np.uint32).astype(np.int64)
    codes = [(unsigned >> (bits * place)) & (2**bits - 1) for place in range(32 // bits)]
    return np.stack(codes, axis=-1).reshape(len(unsigned), -1)[:, :count] - 2 ** (bits - 1)


def compressed_tensors(folder: Path) -> dict[str, Floats]:
    """Matrices by module, as the config describes them."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = tensors_of(folder)
    found = {}
    for name in tensors:
        if not name.endswith(".weight_scale"):
            continue
        module = name.removesuffix(".weight_scale")
        assert module not in config["ignore"]
        weights = _group_of(config, module)["weights"]
        found[module] = _dequantised(tensors, module, weights)
    return found


def _group_of(config: dict[str, Any], module: str) -> dict[str, Any]:
    """A name that matches comes before the class of the layer."""
    groups: list[dict[str, Any]] = list(config["config_groups"].values())
    for group in groups:
        if any(target.startswith("re:") and re.match(target[3:], module) for target in group["targets"]):
            return group
    return next(group for group in groups if "Linear" in group["targets"])


def _dequantised(tensors: dict[str, Any], module: str, weights: dict[str, Any]) -> Floats:
    scales = tensors[f"{module}.weight_scale"].double().numpy()
    if f"{module}.weight" in tensors:
        codes = tensors[f"{module}.weight"]
        assert codes.dtype == (torch.int8 if weights["type"] == "int" else torch.float8_e4m3fn)
        assert weights["strategy"] == "channel"
        return np.asarray(codes.double().numpy() * scales)
    outputs, inputs = tensors[f"{module}.weight_shape"].tolist()
    codes = unpacked(tensors[f"{module}.weight_packed"], weights["num_bits"], inputs).astype(np.float64)
    group = weights["group_size"] or inputs
    assert scales.shape == (outputs, inputs // group)
    if not weights["symmetric"]:
        zeros = unpacked(tensors[f"{module}.weight_zero_point"].T.contiguous(), weights["num_bits"], outputs).T
        codes -= np.repeat(zeros, group, axis=1)
    return np.asarray(codes * np.repeat(scales, group, axis=1))


def modelslim(folder: Path) -> dict[str, Floats]:
    """Matrices by module, as the description types them."""
    tensors = tensors_of(folder)
    types = json.loads((folder / "quant_model_description.json").read_text())
    assert {name for name, kind in types.items() if isinstance(kind, str) and "." in name} == set(tensors)
    found = {}
    for name, kind in types.items():
        if not name.endswith(".weight") or kind == "FLOAT":
            continue
        module = name.removesuffix(".weight")
        codes = tensors[name].double().numpy()
        if kind == "W8A8":
            steps = tensors[f"{module}.deq_scale"]
            floats = steps.to(torch.int32).view(torch.float32) if steps.dtype == torch.int64 else steps
            scales = floats.double().numpy()[:, None] / tensors[f"{module}.input_scale"].double().numpy()
        else:
            scales = tensors[f"{module}.weight_scale"].double().numpy()
            assert not tensors[f"{module}.weight_offset"].any()
        found[module] = codes * scales
    return found
