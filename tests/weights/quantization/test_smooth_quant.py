"""LMDeploy's SmoothQuant: int8 and FP8 with a scale for each output, and what its files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.weights.broken import change_config, change_tensors, damaged, load, refused
from tests.weights.quantization.written import SPEC, Written, write_pair
from tilewise.errors import InvalidCheckpoint
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import CheckpointFolder

INT8 = {"quantization_config": {"quant_method": "smooth_quant", "quant_dtype": "int8"}}
FP8 = {"quantization_config": {"quant_method": "smooth_quant", "quant_dtype": "float8_e4m3fn"}}
K = "language_model.model.layers.1.self_attn.k_proj"


def as_int8(module: str, matrix: Tensor) -> Written:
    floats = matrix.numpy()
    scales = (np.abs(floats).max(1, keepdims=True) / np.float32(127)).astype(np.float32)
    codes = np.clip(np.round(floats / scales), -128, 127).astype(np.int8)
    return {".weight": torch.from_numpy(codes), ".scale": torch.from_numpy(scales)}, torch.from_numpy(codes * scales)


def as_fp8(module: str, matrix: Tensor) -> Written:
    scales = matrix.abs().amax(1, keepdim=True) / 448
    codes = (matrix / scales).to(torch.float8_e4m3fn)
    return {".weight": codes, ".scale": scales}, codes.float() * scales


def logits(folder: Path) -> Tensor:
    return all_logits(load(folder), prompt_of(SPEC, (1,)), random_tiles(SPEC, 1))


def test_fp8_stands_for_its_numbers(tmp_path: Path) -> None:
    stored, floats = write_pair(tmp_path, as_fp8, FP8)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config", [INT8, {"llm_config": INT8}, {"quantization_config": {"quant_method": "smooth_quant"}}]
)
def test_int8_rounds_rows_as_they_come(tmp_path: Path, config: dict[str, Any]) -> None:
    stored, floats = write_pair(tmp_path, as_int8, config)
    near, found = logits(floats), dict[str, Tensor]()
    assert (logits(stored) - near).abs().max() < 0.1 * near.abs().max()
    architecture = Architecture.of(CheckpointFolder.open(stored))
    architecture.load(torch.float32, Ops(), 64, watch=found.__setitem__)
    name = K.replace("language_model", "language")
    assert found[f"{name}.weight"].dtype == torch.int8
    assert found[f"{name}.bias"].dtype == torch.float32


@pytest.mark.parametrize(("quantise", "config"), [(as_int8, INT8), (as_fp8, FP8)], ids=["int8", "fp8"])
def test_what_is_kept_is_known_before_there_are_weights(tmp_path: Path, quantise: Any, config: dict[str, Any]) -> None:
    stored, _ = write_pair(tmp_path, quantise, config)
    ops = Ops()
    counted = Architecture.of(CheckpointFolder.open(stored)).count_bytes(ops, torch.float32)
    (stored / "model.safetensors").unlink()
    early = Architecture.of(CheckpointFolder.open(stored))
    assert early.count_bytes(ops, torch.float32) == counted < early.count_parameters(ops) * 4


def test_layers_that_were_skipped_stay_in_floats(tmp_path: Path) -> None:
    config = {"quantization_config": {**INT8["quantization_config"], "modules_to_not_convert": ["down_proj"]}}

    def quantise(module: str, matrix: Tensor) -> Written:
        return ({".weight": matrix}, matrix) if module.endswith("down_proj") else as_int8(module, matrix)

    stored, _ = write_pair(tmp_path, quantise, config)
    ops = Ops()
    architecture = Architecture.of(CheckpointFolder.open(stored))
    counted = architecture.count_bytes(ops, torch.float32)
    architecture.load(torch.float32, ops, 64)
    (stored / "model.safetensors").unlink()
    assert Architecture.of(CheckpointFolder.open(stored)).count_bytes(ops, torch.float32) == counted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.update({f"{K}.scale": torch.zeros(32, 1)}), (f"{K}.scale", "0.0")),
        (lambda tensors: tensors.update({f"{K}.scale": torch.full((32, 1), torch.nan)}), (f"{K}.scale", "nan")),
        (lambda tensors: tensors.update({f"{K}.scale": torch.ones(31, 1)}), (f"{K}.scale", "[31, 1]", "[32, 1]")),
        (lambda tensors: tensors.pop(f"{K}.scale"), (f"{K}.weight", "I8")),
        (lambda tensors: tensors.update({f"{K}.weight": torch.ones(32, 64)}), (f"{K}.weight", "F32", "I8")),
    ],
    ids=["zero", "NaN", "shape", "no scales", "floats"],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, said: tuple[str, ...]) -> None:
    stored, _ = write_pair(tmp_path, as_int8, INT8)
    change_tensors(stored, change)
    damaged(stored, *said)


@pytest.mark.parametrize("kind", ["float8_e5m2", ["int8"]], ids=str)
def test_another_type_is_refused_by_name(tmp_path: Path, kind: object) -> None:
    stored, _ = write_pair(tmp_path, as_int8, INT8)
    change_config(stored, quantization_config={"quant_dtype": kind})
    refused(InvalidCheckpoint, lambda: load(stored), f"quant_dtype is {kind!r}", "int8, float8_e4m3fn")
