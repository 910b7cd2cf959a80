"""Compresses a checkpoint with compressed-tensors itself: `FOLDER FLOATS SCHEME IGNORED...`.

The layers of FOLDER become modules of torch of the same names, which the library quantises, packs and describes.
FLOATS, a copy of FOLDER, gets what the library makes of the codes again, in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.base import decompress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def scheme_of(name: str) -> QuantizationScheme:
    """One of the library's own, or another that it knows no name for, in groups and blocks as small as the model."""
    if name == "W8A8_STATIC_ASYM":
        rows = QuantizationArgs(num_bits=8, symmetric=False, strategy="tensor")
        return QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=8, strategy="channel"), input_activations=rows
        )
    if name == "W4A16_CHANNEL_ASYM":
        return QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=4, strategy="channel", symmetric=False)
        )
    if name == "W8A16_ASYM":
        return QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=8, group_size=32, symmetric=False)
        )
    scheme = preset_name_to_scheme(name, ["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = 32
    if scheme.weights.block_structure:
        scheme.weights.block_structure = [24, 32]
        scheme.input_activations.group_size = 32
    return scheme


def modules_of(tensors: dict[str, Tensor]) -> nn.Module:
    """A tree of modules with these tensors. Matrices are linear layers, but for embeddings."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path[:-1]:
            module = module._modules.setdefault(part, nn.Module())
        if path and path[-1] not in module._modules:
            module.add_module(path[-1], made_for(path[-1], tensors.get(".".join([*path, "weight"]))))
        holder = module._modules[path[-1]] if path else module
        holder.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return root


def made_for(name: str, matrix: Tensor | None) -> nn.Module:
    if matrix is None or matrix.dim() != 2 or "embed" in name:
        return nn.Module()
    return nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")


def set_scales(module: nn.Module, scheme: QuantizationScheme) -> None:
    """By the smallest and the largest number of each block."""
    weights, matrix = scheme.weights, module.weight.data
    shape = module.weight_scale.shape
    size = [weights.group_size or matrix.shape[1]]
    if weights.block_structure:
        size = weights.block_structure
    rows, columns = (size[0], size[1]) if len(size) == 2 else (1 if len(shape) == 2 else len(matrix), size[0])
    low, high = torch.empty(shape), torch.empty(shape)
    for number in range(low.numel()):
        line, place = divmod(number, shape[-1])
        part = matrix[line * rows : (line + 1) * rows, place * columns : (place + 1) * columns]
        low.view(-1)[number], high.view(-1)[number] = part.min(), part.max()
    scales, zeros = calculate_qparams(low, high, weights)
    module.weight_scale.data = scales.bfloat16()
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zeros
    if hasattr(module, "input_scale"):
        module.input_scale.data.fill_(0.03)
    if hasattr(module, "input_zero_point"):
        module.input_zero_point.data.fill_(-7)


def main(folder: Path, floats: Path, name: str, *ignored: str) -> None:
    scheme, tensors = scheme_of(name), load_file(folder / "model.safetensors")
    model = modules_of(tensors)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=list(ignored)))
    quantised = {path: module for path, module in model.named_modules() if hasattr(module, "quantization_scheme")}
    for module in quantised.values():
        set_scales(module, module.quantization_scheme)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    compressor.update_config(str(folder))
    for path, module in quantised.items():
        module.weight_scale.data = module.weight_scale.data.float()
        decompress_module(module)
        tensors[f"{path}.weight"] = module.weight.data.float().contiguous()
    save_file(tensors, floats / "model.safetensors")
    print(json.dumps(sorted(quantised)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
