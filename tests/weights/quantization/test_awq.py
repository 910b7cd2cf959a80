"""AWQ: the order of outputs in a word, zero points, and where configs describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.weights.broken import change_config, damaged, load, refused
from tests.weights.quantization.written import SPEC, Written, codes_of, numbers_of, write_pair
from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Grouped
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import check_method

KEPT = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}


def words(codes: np.ndarray) -> Tensor:
    """[n, out] -> int32 [n, out / 8]: four bits each, from the lowest on, of outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    packed = np.zeros((len(codes), codes.shape[1] // 8), dtype=np.uint32)
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        packed |= codes[:, output::8].astype(np.uint32) << (4 * place)
    return torch.from_numpy(packed.view(np.int32).copy())


def quantise(module: str, matrix: Tensor, zero_point: bool = True) -> Written:
    codes, zeros, scales = codes_of(matrix, 4, 32, symmetric=not zero_point)
    tensors = {".qweight": words(codes), ".scales": torch.from_numpy(scales)}
    if zero_point:
        tensors[".qzeros"] = words(zeros)
    return tensors, numbers_of(codes, zeros, scales, np.arange(len(codes)) // 32)


def logits(folder: Path) -> Tensor:
    ids, pixels = prompt_of(SPEC, (1,)), random_tiles(SPEC, 1)
    return all_logits(load(folder), ids, pixels)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": KEPT},
        {"llm_config": {"quantization_config": KEPT}},
        {"quantization_config": {"quant_method": "awq", "w_bit": 4, "q_group_size": 32}},
    ],
    ids=["top", "llm_config", "older keys"],
)
def test_the_numbers_are_those_that_the_codes_stand_for(tmp_path: Path, config: dict[str, Any]) -> None:
    stored, floats = write_pair(tmp_path, quantise, config)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_without_zero_points_codes_are_around_eight(tmp_path: Path) -> None:
    config = {"quantization_config": {**KEPT, "zero_point": False}}
    stored, floats = write_pair(tmp_path, lambda module, matrix: quantise(module, matrix, False), config)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_what_is_kept_is_known_before_there_are_weights(tmp_path: Path) -> None:
    """Bytes by the small files alone, and by the files: matrices of the decoder are as many as their codes."""
    stored, _ = write_pair(tmp_path, quantise, {"quantization_config": KEPT})
    there, ops = Architecture.of(CheckpointFolder.open(stored)), Ops()
    counted = there.count_bytes(ops, torch.float32)
    kept: list[int] = []

    def store(parts: Any, bias: Tensor | None, use: Use = Use.ALONE) -> Any:
        weight = ops.store(parts, bias, use)
        if isinstance(parts[0], Grouped):
            kept.append(weight.nbytes)
        return weight

    there.load(torch.float32, ops, 64, store=store)
    in_floats = there.count_parameters(ops) * 4
    linear = sum(2 * (rows * columns) for rows, columns in ((64, 64), (32, 64), (32, 64), (64, 64), *[(96, 64)] * 3))
    biases = 2 * (64 + 32 + 32) * 4
    assert counted == in_floats - 4 * linear - biases + sum(kept)
    (stored / "model.safetensors").unlink()
    assert Architecture.of(CheckpointFolder.open(stored)).count_bytes(ops, torch.float32) == counted


def test_a_checkpoint_whose_description_is_lost_is_named(tmp_path: Path) -> None:
    stored, _ = write_pair(tmp_path, quantise, {})
    damaged(stored, "has no tensor", "Of this layer there are", "q_proj.qweight")


def test_a_description_of_files_in_floats(tmp_path: Path) -> None:
    _, floats = write_pair(tmp_path, quantise, {})
    change_config(floats, quantization_config=KEPT)
    damaged(floats, "quantised by awq", "no tensor whose name ends with .qweight")


def test_a_method_that_is_named_is_compared_with_the_files(tmp_path: Path) -> None:
    stored, floats = (
        CheckpointFolder.open(folder) for folder in write_pair(tmp_path, quantise, {"quantization_config": KEPT})
    )
    for wanted in (None, "int8", "awq", "awq_marlin"):
        check_method(stored, wanted)
    refused(InvalidConfig, lambda: check_method(stored, "gptq"), "quantization='gptq'", "quantised by awq")
    for wanted in ("int8", "fp8"):
        check_method(floats, wanted)
    refused(
        InvalidConfig,
        lambda: check_method(floats, "awq"),
        "quantization='awq'",
        "in floats",
        "int8 or fp8",
        "tilewise quantize",
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [({"bits": 8}, ("bits is 8", "is 4:")), ({"version": "gemv"}, ("version is 'gemv'", "gemm"))],
)
def test_what_the_config_cannot_say(tmp_path: Path, values: dict[str, Any], said: tuple[str, ...]) -> None:
    stored, _ = write_pair(tmp_path, quantise, {"quantization_config": KEPT})
    change_config(stored, quantization_config={**KEPT, **values})
    refused(InvalidCheckpoint, lambda: load(stored), *said)
