"""Decompresses a checkpoint with compressed-tensors itself: `FOLDER FLOATS`.

The library reads the config of FOLDER, finds each layer's scheme by its own rules, and makes floats of its tensors;
FLOATS is the safetensors file that they go into.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def scheme_of(config: QuantizationConfig, module: str) -> QuantizationScheme:
    """As the library matches: the names of a layer before its class."""
    assert not match_targets(module, nn.Linear(1, 1), config.ignore or [])
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    return schemes[match_targets(module, nn.Linear(1, 1), list(schemes))[0]]


def main(folder: Path, floats: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    config = QuantizationConfig(**json.loads((folder / "config.json").read_text())["quantization_config"])
    found = {}
    for module in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        scheme = scheme_of(config, module)
        start = f"{module}."
        own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        own.pop("bias", None)
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        rows = {"input_scale", "input_zero_point"} & set(own)
        assert bool(rows) == bool(scheme.input_activations and not scheme.input_activations.dynamic), module
        assert set(own) - rows == set(compressor.compression_param_names(scheme)), (module, sorted(own))
        found[module] = compressor.decompress(own, scheme)["weight"].to(torch.float32)
    save_file(found, floats)


main(*map(Path, sys.argv[1:]))
