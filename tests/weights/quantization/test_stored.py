"""Codes in words, and which modules have a layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import SPECS, write_original
from tests.weights.broken import change_tensors
from tests.weights.quantization.written import bit_stream
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import layouts_of
from tilewise.weights.quantization.stored import exchanged_halves, unpacked

IN_FILES, IN_LIST = "language_model.model.layers.0.mlp.up_proj", "language_model.model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [64, 61])
def test_codes_are_a_stream_of_bits(bits: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (64, 5))
    words = bit_stream(codes, bits).T
    assert torch.equal(unpacked(words, bits, count), torch.from_numpy(codes.T[:, :count]).to(torch.uint8))
    assert unpacked(words.to("meta"), bits, count).shape == (5, count)


def test_halves_of_bytes_are_exchanged() -> None:
    first, second = (torch.tensor([byte], dtype=torch.uint8) for byte in (0x21, 0x43))
    assert [int(found) for found in exchanged_halves(first, second)] == [0x31, 0x42]


@pytest.mark.parametrize("known", [True, False])
def test_files_tell_which_modules_are_quantised_and_a_config_only_before_there_are_any(
    known: bool, tmp_path: Path
) -> None:
    """Lists of configs name modules that a tool left in floats under other names, or packed all the same."""
    folder = write_original(tmp_path, SPECS["qwen2-300m"])
    config = json.loads((folder / "config.json").read_text())
    listed = {"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": ["layers.1."]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": listed}))
    if known:
        words = {f"{name}.qweight": torch.zeros(32, 8, dtype=torch.int32) for name in (IN_FILES, IN_LIST)}
        change_tensors(folder, lambda tensors: tensors.update(words))
    else:
        (folder / "model.safetensors").unlink()
    find = layouts_of(CheckpointFolder.open(folder))
    assert find is not None
    assert find(IN_FILES) is not None
    assert (find(IN_LIST) is not None) == known
    assert (find(IN_FILES.replace("up_proj", "down_proj")) is not None) == (not known)
