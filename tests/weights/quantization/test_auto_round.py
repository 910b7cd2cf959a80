"""AutoRound's description: the packing decides how codes lie, and layers may have settings of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.weights.broken import load, refused
from tests.weights.quantization import test_awq, test_gptq
from tests.weights.quantization.test_gptq import logits, written
from tests.weights.quantization.written import Written, write_pair
from tilewise.errors import InvalidCheckpoint


def config(**more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "auto-round", "bits": 4, "group_size": 32, **more}}


@pytest.mark.parametrize(
    ("packing", "quantise"),
    [
        ("auto_round:auto_gptq", written(4, symmetric=False, version=1)),
        ("auto_round", written(4, symmetric=False, version=2)),
        ("auto_round:gptqmodel", written(4, symmetric=False, version=2)),
        ("auto_round:auto_awq", test_awq.quantise),
    ],
)
def test_packings(tmp_path: Path, packing: str, quantise: Any) -> None:
    stored, floats = write_pair(tmp_path, quantise, config(packing_format=packing))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_layers_with_settings_of_their_own(tmp_path: Path) -> None:
    def quantise(module: str, matrix: Tensor) -> Written:
        if module == test_gptq.LAYER:
            return {".weight": matrix}, matrix
        return written(8 if module.endswith("o_proj") else 4, version=1)(module, matrix)

    own = {test_gptq.LAYER: {"bits": 16, "data_type": "float"}, ".*o_proj": {"bits": 8}}
    stored, floats = write_pair(tmp_path, quantise, config(packing_format="auto_round:auto_gptq", extra_config=own))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"packing_format": "auto_round:fp8_static"},
            ("packing_format is 'auto_round:fp8_static'", "auto_round:auto_awq"),
        ),
        ({"packing_format": "auto_round:auto_awq", "bits": 8}, ("bits is 8", "can be read is 4")),
        ({"bits": 5}, ("bits is 5", "2, 3, 4, 8")),
        ({"act_bits": 8}, ("act_bits is 8",)),
        ({"extra_config": [1]}, ("extra_config is [1]", "an object")),
        ({"extra_config": {"layers.*": 8}}, ("extra_config: layers.* is 8", "an object")),
        ({"extra_config": {"layers.(": {}}}, ("extra_config: layers.( is", "a regular expression")),
        ({"rotation_config": {"hadamard_type": "hadamard"}}, ("rotation_config",)),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, values: dict[str, Any], said: tuple[str, ...]) -> None:
    stored, _ = write_pair(tmp_path, written(4), config(**values))
    refused(InvalidCheckpoint, lambda: load(stored), *said)
