"""Tensors that files keep in several, in packed or in two forms: what is missing, left over or misshapen is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import SPECS, hf_tensors, write_hf, write_original
from tests.weights.broken import change_tensors, load, refused
from tilewise.errors import InvalidCheckpoint

MOE = SPECS["qwen3moe-300m-head"]
MLP = "language_model.model.layers.1.mlp"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_original(tmp_path / "moe", MOE)


def fused() -> dict[str, Tensor]:
    """The experts of layer 1 in their other form."""
    name = "model.language_model.layers.1.mlp.experts"
    tensors = hf_tensors(MOE)
    return {f"{MLP}.experts.{part}": tensors[f"{name}.{part}"] for part in ("gate_up_proj", "down_proj")}


@pytest.mark.parametrize("missing", ["0.gate_proj", "0.up_proj", "3.up_proj", "5.gate_proj", "2.down_proj"])
def test_missing_expert_is_named(folder: Path, missing: str) -> None:
    name = f"{MLP}.experts.{missing}.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    refused(InvalidCheckpoint, lambda: load(folder), str(folder), name)


def test_experts_missing_in_both_forms_are_named_in_one(folder: Path) -> None:
    change_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if f"{MLP}.experts." in name])
    refused(InvalidCheckpoint, lambda: load(folder), f"{MLP}.experts.", "layers.1.mlp.experts.0.gate_proj")


def test_experts_in_both_forms_leave_one_over(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update(fused()))
    message = refused(InvalidCheckpoint, lambda: load(folder), "no place", *fused())
    assert "experts.0." not in message


def test_half_a_form_beside_a_whole_one_is_left_over(folder: Path) -> None:
    """What one form lacks is read from the other, of which the rest is left over."""
    gone = f"{MLP}.experts.4.gate_proj.weight"
    change_tensors(folder, lambda tensors: (tensors.update(fused()), tensors.pop(gone)))
    refused(InvalidCheckpoint, lambda: load(folder), "no place", f"{MLP}.experts.down_proj")


def test_layers_may_differ_in_form(folder: Path) -> None:
    def fuse(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if f"{MLP}.experts." in name]:
            del tensors[name]
        tensors.update(fused())

    change_tensors(folder, fuse)
    load(folder)


def test_an_expert_too_many_is_left_over(folder: Path) -> None:
    name = f"{MLP}.experts.6.gate_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(22, 36)}))
    refused(InvalidCheckpoint, lambda: load(folder), name)


@pytest.mark.parametrize("expert", [0, 4])
@pytest.mark.parametrize(("part", "shape"), [("up_proj", (21, 36)), ("gate_proj", (22, 35)), ("down_proj", (22, 36))])
def test_expert_of_a_wrong_shape(folder: Path, expert: int, part: str, shape: tuple[int, ...]) -> None:
    name = f"{MLP}.experts.{expert}.{part}.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(shape)}))
    refused(InvalidCheckpoint, lambda: load(folder), f"{MLP}.experts.", f"{part}.weight")


def test_quantised_expert_is_named(folder: Path) -> None:
    name = f"{MLP}.experts.4.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    refused(InvalidCheckpoint, lambda: load(folder), name, "I8", "quantised")


@pytest.mark.parametrize(
    ("model", "name", "shape", "expected"),
    [
        ("internlm2-300m", "attention.wqkv", (59, 36), "[36, 36]"),
        ("internlm2-300m", "attention.wqkv", (60, 35), "[36, 36]"),
        ("phi3-300m", "self_attn.qkv_proj", (107, 36), "[36, 36]"),
        ("phi3-300m", "mlp.gate_up_proj", (103, 36), "[52, 36]"),
        ("phi3-300m", "mlp.gate_up_proj", (104, 35), "[52, 36]"),
    ],
)
def test_packed_tensor_of_a_wrong_shape(
    model: str, name: str, shape: tuple[int, ...], expected: str, tmp_path: Path
) -> None:
    folder, name = write_original(tmp_path, SPECS[model]), f"language_model.model.layers.1.{name}.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(shape)}))
    refused(InvalidCheckpoint, lambda: load(folder), name, expected)


@pytest.mark.parametrize(
    ("model", "name"),
    [("internlm2-300m", "attention.wqkv"), ("internlm2-300m", "feed_forward.w3"), ("phi3-300m", "mlp.gate_up_proj")],
)
def test_missing_tensor_is_named_as_its_family_does(model: str, name: str, tmp_path: Path) -> None:
    folder, name = write_original(tmp_path, SPECS[model]), f"language_model.model.layers.1.{name}.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    refused(InvalidCheckpoint, lambda: load(folder), name)


def test_a_bias_that_internlm2_does_not_know_is_left_over(tmp_path: Path) -> None:
    folder, name = (
        write_original(tmp_path, SPECS["internlm2-300m"]),
        "language_model.model.layers.0.attention.wqkv.bias",
    )
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(60)}))
    refused(InvalidCheckpoint, lambda: load(folder), name)


def test_fused_experts_of_a_wrong_shape(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, MOE, fused_experts=True)
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(5, 44, 36)}))
    refused(InvalidCheckpoint, lambda: load(folder), name, "has 5 items, expected at least 6")
