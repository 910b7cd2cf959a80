"""What GPT-OSS alone has: experts in MXFP4, read as the numbers they stand for, and configs that are not computed.

Its logits and answers are compared with transformers where every model's are, in test_parity.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.conftest import OursOf
from tests.models.driving import TEXT_IDS, all_logits, load
from tests.tiny import TWINS, hf_tensors, original_config, original_tensors, write_hf
from tests.weights.broken import change_tensors, refused
from tilewise.errors import InvalidCheckpoint
from tilewise.models.load import Architecture
from tilewise.platforms.ops import TorchOps
from tilewise.twin.tensors import quantise
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization.mxfp4 import Mxfp4Layout
from tilewise.weights.quantization.stored import ExpectedTensor, StoredModule

FLOATS = TWINS["InternVL3_5-GPT-OSS-20B-A4B-Preview"]
BLOCKS = TWINS["InternVL3_5-GPT-OSS-20B-A4B-Preview-MXFP4"]
EXPERTS = "language_model.model.layers.1.mlp.experts"
NO_PICTURES = torch.empty(0, 56, 56, 3, dtype=torch.uint8)


class Stored:
    """The tensors of one module, by the ends of their names."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def has(self, name: str) -> bool:
        return True

    def place(self, name: str) -> str:
        return "The checkpoint"

    def tensor(self, expected: ExpectedTensor) -> Tensor:
        found = self.tensors[expected.name.rpartition("_")[2]]
        return found if expected.item is None else found[expected.item]


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """The numbers of blocks [..., out, groups, 16]."""
    if blocks.dim() > 3:
        return torch.stack([dequantised(*pair) for pair in zip(blocks, scales, strict=True)])
    inputs = 32 * blocks.shape[1]
    stored = StoredModule(Stored(blocks=blocks, scales=scales), "m")
    return Mxfp4Layout().read(stored, len(blocks), inputs).dequantised()


def test_every_code_stands_for_its_number_low_nibble_first() -> None:
    """By hand: codes 0 to 15 in eight bytes, then zeros; the scale 128 doubles."""
    blocks = torch.zeros(1, 1, 16, dtype=torch.uint8)
    blocks[0, 0, :8] = torch.tensor([(2 * pair + 1) * 16 + 2 * pair for pair in range(8)])
    found = dequantised(blocks, torch.tensor([[128]], dtype=torch.uint8))[0]
    numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert found[:16].tolist() == [2 * number for number in numbers] + [-2 * number for number in numbers]
    assert not found[16:].any()


def test_blocks_stand_for_the_values_that_were_rounded_to() -> None:
    weights = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2)) * 10
    blocks, scales, values = quantise(weights)
    assert (values - weights).abs().max() < 10
    assert torch.equal(dequantised(blocks, scales), values)
    assert torch.equal(quantise(values)[2], values)


def test_the_twin_in_blocks_holds_the_numbers_of_its_hf_form() -> None:
    packed, floats = original_tensors(BLOCKS), hf_tensors(BLOCKS)
    for name in ("gate_up_proj", "down_proj"):
        stored = dequantised(packed[f"{EXPERTS}.{name}_blocks"], packed[f"{EXPERTS}.{name}_scales"])
        expected = floats[f"model.language_model.layers.1.mlp.experts.{name}"]
        assert torch.equal(stored.transpose(1, 2), expected)
        assert not torch.equal(expected, hf_tensors(FLOATS)[f"model.language_model.layers.1.mlp.experts.{name}"])


def test_experts_in_blocks_equal_the_same_values_in_floats(ours_of: OursOf, tmp_path: Path) -> None:
    floats = load(write_hf(tmp_path, BLOCKS), TorchOps())
    logits = [
        all_logits(model, TEXT_IDS, NO_PICTURES, BLOCKS.image_id)
        for model in (ours_of("InternVL3_5-GPT-OSS-20B-A4B-Preview-MXFP4", "original", TorchOps()), floats)
    ]
    assert torch.equal(*logits)


def test_blocks_without_their_scales_are_named(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, FLOATS)
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    blocks = torch.zeros(4, 64, 1, 16, dtype=torch.uint8)
    change_tensors(folder, lambda tensors: (tensors.pop(name), tensors.update({f"{name}_blocks": blocks})))
    refused(InvalidCheckpoint, lambda: load(folder, TorchOps()), f"{name}_scales")


def test_an_exponent_that_stands_for_no_number_is_named(tmp_path: Path) -> None:
    """255 is NaN among the scales of OCP Microscaling v1.0, section 5.4.1."""
    folder = write_hf(tmp_path, FLOATS)
    name = "model.language_model.layers.1.mlp.experts.down_proj"

    def in_blocks(tensors: dict[str, Tensor]) -> None:
        blocks, scales, _ = quantise(tensors.pop(name).transpose(1, 2))
        scales[1, 2] = 255
        tensors.update({f"{name}_blocks": blocks, f"{name}_scales": scales})

    change_tensors(folder, in_blocks)
    refused(
        InvalidCheckpoint, lambda: load(folder, TorchOps()), f"model.safetensors: the tensor {name}_scales", "[2, 0]"
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_types", ["full_attention"] * 2, "layer_types must alternate, a sliding layer first"),
        ("swiglu_limit", 5.0, "swiglu_limit is 5.0, expected 7.0"),
        ("num_local_experts", 0, "num_local_experts must be a whole number above 0, found 0"),
    ],
)
def test_what_the_code_does_not_compute_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    config = original_config(FLOATS)
    config["llm_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidCheckpoint, match=message):
        Architecture.of(CheckpointFolder.open(tmp_path))
