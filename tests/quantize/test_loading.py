"""What is written is loaded with no flag, and computes what its dequantised matrices compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models.driving import all_logits, load, prompt_of, random_tiles
from tests.quantize.reading import compressed_tensors, modelslim, tensors_of
from tests.tiny import SPECS, write_hf, write_original
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize
from tilewise.weights.folder import CheckpointFolder


def dequantised(quantised: Path, source: Path, folder: Path) -> Path:
    """The source with the matrices that the quantised files stand for, in floats."""
    shutil.copytree(source, folder)
    tensors = tensors_of(source)
    written = modelslim if (quantised / "quant_model_description.json").exists() else compressed_tensors
    for module, matrix in written(quantised).items():
        tensors[f"{module}.weight"] = torch.from_numpy(matrix).float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "options", "bound"),
    [
        ("qwen2-300m", {"scheme": "w4a16", "vision": True}, 1e-4),
        ("phi3-300m", {"scheme": "w4a16", "asymmetric": True, "error_feedback": False}, 1e-4),
        ("qwen3moe-300m-head", {"scheme": "w8a16"}, 1e-4),
        ("internlm2-300m", {"scheme": "fp8"}, 1e-4),
        ("qwen2-300m", {"scheme": "w8a8", "vision": True}, 0.1),
        ("internlm2-300m", {"scheme": "w8a8-static"}, 0.1),
        ("qwen3moe-300m-head", {"scheme": "w8a16", "format": "modelslim"}, 1e-4),
        ("qwen2-300m", {"scheme": "w8a8", "format": "modelslim", "vision": True}, 0.1),
        ("internlm2-300m", {"scheme": "w8a8-static", "format": "modelslim", "vision": True}, 0.1),
    ],
)
def test_logits_are_those_of_the_dequantised_checkpoint(tmp_path, name, options, bound):
    """Where rows are rounded as well, within what that changes, relative to all logits."""
    spec = SPECS[name]
    source = write_original(tmp_path / "source", spec)
    out = tmp_path / "out"
    quantize(QuantizeOptions(model=str(source), out=str(out), max_shard_size=40_000, **options), show=False)
    floats = dequantised(out, source, tmp_path / "floats")
    ids, pixels = prompt_of(spec, [2]), random_tiles(spec, 2)
    found, wanted = (all_logits(load(folder, Ops()), ids, pixels, spec.image_id) for folder in (out, floats))
    assert float((found - wanted).norm() / wanted.norm()) < bound


@pytest.mark.parametrize("name", ["internlm2-300m", "qwen3moe-300m-head"])
def test_fp8_as_loaded_is_what_quantize_writes(tmp_path, name):
    """To the last bit, and the memory that is planned for is that of the file."""
    spec = SPECS[name]
    source, out = write_original(tmp_path / "source", spec), tmp_path / "out"
    quantize(QuantizeOptions(model=str(source), out=str(out), scheme="fp8", vision=True), show=False)
    ids, pixels = prompt_of(spec, [2]), random_tiles(spec, 2)
    found = [Architecture.of(CheckpointFolder.open(folder), quantization="fp8") for folder in (source, out)]
    ops = Ops()
    logits = [all_logits(one.load(torch.float32, ops, context=256), ids, pixels, spec.image_id) for one in found]
    assert torch.equal(*logits)
    floats, as_loaded, of_file = (
        one.count_bytes(ops, torch.float32) for one in (Architecture.of(CheckpointFolder.open(source)), *found)
    )
    assert as_loaded == of_file < 0.7 * floats


def test_transformers_names_load_as_well(tmp_path):
    source = write_hf(tmp_path / "source", SPECS["qwen3moe-300m-head"], fused_experts=True)
    out = tmp_path / "out"
    quantize(QuantizeOptions(model=str(source), out=str(out), scheme="w8a8"), show=False)
    described: dict[str, Any] = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "lm_head" in described["ignore"]
    load(out, Ops())
