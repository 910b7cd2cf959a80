"""GPTQ: every width of codes, symmetric or not, in both versions, with groups in order or scattered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.weights.broken import change_config, change_tensors, damaged, load, refused
from tests.weights.quantization.written import SPEC, Written, bit_stream, codes_of, numbers_of, write_pair
from tilewise.errors import InvalidCheckpoint

LAYER = "language_model.model.layers.1.mlp.down_proj"


def config(bits: int = 4, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": 32, **more}}


def written(bits: int, symmetric: bool = True, version: int = 1, scattered: bool = False):
    def quantise(module: str, matrix: Tensor) -> Written:
        inputs = matrix.shape[1]
        order = np.random.default_rng(3).permutation(inputs) if scattered else np.arange(inputs)
        codes, zeros, scales = codes_of(matrix[:, order], bits, 32, symmetric)
        groups = np.empty(inputs, dtype=np.int64)
        groups[order] = np.arange(inputs) // 32
        back = np.argsort(order)
        stored_zeros = (zeros - (version == 1)) % 2**bits
        tensors = {
            ".qweight": bit_stream(codes[back], bits),
            ".qzeros": bit_stream(stored_zeros.T, bits).T.contiguous(),
            ".scales": torch.from_numpy(scales),
            ".g_idx": torch.from_numpy(groups.astype(np.int32)),
        }
        return tensors, numbers_of(codes[back], zeros, scales, groups)

    return quantise


def logits(folder: Path) -> Tensor:
    ids, pixels = prompt_of(SPEC, (1,)), random_tiles(SPEC, 1)
    return all_logits(load(folder), ids, pixels)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(("symmetric", "version"), [(True, 1), (False, 1), (False, 2)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_numbers_are_those_that_the_codes_stand_for(
    tmp_path: Path, bits: int, symmetric: bool, version: int, scattered: bool
) -> None:
    kept = config(bits, sym=symmetric, desc_act=scattered, checkpoint_format="gptq" if version == 1 else "gptq_v2")
    stored, floats = write_pair(tmp_path, written(bits, symmetric, version, scattered), kept)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_modules_of_their_own_and_in_floats(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: patterns with settings, and with `-:` modules that stay as they are."""

    def quantise(module: str, matrix: Tensor) -> Written:
        if ".layers.0." in module:
            return {".weight": matrix}, matrix
        return written(8 if module.endswith("down_proj") else 4)(module, matrix)

    dynamic = {"-:.*layers\\.0\\..*": {}, "+:.*down_proj": {"bits": 8}}
    stored, floats = write_pair(tmp_path, quantise, config(4, dynamic=dynamic))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 5}, ("bits is 5", "2, 3, 4, 8")),
        ({"bits": None}, ("bits must be a whole number",)),
        ({"group_size": 33}, ("group_size is 33", "an even number")),
        ({"checkpoint_format": "marlin"}, ("checkpoint_format is 'marlin'", "gptq, gptq_v2")),
        ({"dynamic": [1]}, ("dynamic is [1]",)),
        ({"dynamic": {"+:layers": 4}}, ("dynamic: +:layers is 4", "an object")),
        ({"dynamic": {"-:layers.[0": {}}}, ("dynamic: -:layers.[0 is", "a regular expression")),
    ],
)
def test_what_the_config_cannot_say(tmp_path: Path, values: dict[str, Any], said: tuple[str, ...]) -> None:
    stored, _ = write_pair(tmp_path, written(4), config(4))
    change_config(stored, **config(**({"bits": 4} | values)))
    refused(InvalidCheckpoint, lambda: load(stored), "config.json: quantization_config", *said)


def broken_scale(value: float) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{LAYER}.scales"][1, 5] = value

    return change


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is wrong with it."""
    return write_pair(tmp_path_factory.mktemp("whole"), written(4), config(4))[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(f"{LAYER}.qweight"), ("has no tensor", f"{LAYER}.weight")),
        (lambda tensors: tensors.pop(f"{LAYER}.scales"), ("has no tensor", f"{LAYER}.scales")),
        (lambda tensors: tensors.pop(f"{LAYER}.qzeros"), ("has no tensor", f"{LAYER}.qzeros")),
        (broken_scale(0.0), (f"{LAYER}.scales", "0.0 at [1, 5]")),
        (broken_scale(float("nan")), (f"{LAYER}.scales", "nan at [1, 5]")),
        (broken_scale(float("inf")), (f"{LAYER}.scales", "inf at [1, 5]")),
        (lambda t: t.update({f"{LAYER}.scales": t[f"{LAYER}.scales"][:2]}), (f"{LAYER}.scales", "[2, 64]", "[3, 64]")),
        (lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"][:8]}), (f"{LAYER}.qweight", "[8, 64]")),
        (lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].float()}), (f"{LAYER}.qweight", "F32", "I32")),
        (
            lambda t: t[f"{LAYER}.g_idx"].fill_(0),
            (f"{LAYER}.g_idx", "gives its groups [96] inputs", "3 groups of 32 inputs"),
        ),
        (lambda t: t.update({f"{LAYER}.what": torch.ones(1)}), ("no place", f"{LAYER}.what")),
    ],
)
def test_damaged_layers_are_named(whole: Path, tmp_path: Path, change: Any, said: tuple[str, ...]) -> None:
    stored = shutil.copytree(whole, tmp_path / "stored")
    change_tensors(stored, change)
    damaged(stored, *said)
