"""What is written: every scheme in every format, read by independent code, on twins of several structures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.quantize.reading import compressed_tensors, modelslim, tensors_of
from tests.tiny import SPECS, TinySpec, write_hf, write_original
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize

READERS = {"compressed-tensors": compressed_tensors, "modelslim": modelslim}
BOUNDS = {"w8a8": 0.01, "w8a8-static": 0.01, "w8a16": 0.01, "fp8": 0.04, "w4a16": 0.2}
"""Relative errors of a matrix: of a normal distribution, 255 levels over its range give 0.7 %, E4M3 2.6 %, and 15
levels an output about 11 %, more where error feedback moves weights."""
WIDE = TinySpec(decoder="qwen3", heads=4, kv_heads=2, head_dim=16, hidden=64, intermediate=96)
"""All of its widths are multiples of 16."""


def quantised(tmp_path: Path, source: Path, **options: Any) -> Path:
    quantize(QuantizeOptions(model=str(source), out=str(tmp_path / "out"), **options), show=False)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("scheme", "form", "options"),
    [
        ("w8a8", "compressed-tensors", {}),
        ("w8a8", "modelslim", {}),
        ("w8a8-static", "compressed-tensors", {"vision": True}),
        ("w8a8-static", "modelslim", {"vision": True}),
        ("w8a16", "compressed-tensors", {}),
        ("w8a16", "modelslim", {}),
        ("fp8", "compressed-tensors", {"vision": True}),
        ("w4a16", "compressed-tensors", {}),
        ("w4a16", "compressed-tensors", {"asymmetric": True, "group_size": 16}),
        ("w4a16", "compressed-tensors", {"error_feedback": False}),
    ],
)
def test_matrices_are_what_they_were_within_the_scheme(tmp_path, scheme, form, options):
    spec = WIDE if "group_size" in options else SPECS["qwen2-300m"]
    source = write_original(tmp_path / "source", spec, dtype="bfloat16")
    out = quantised(tmp_path, source, scheme=scheme, format=form, **options)
    floats, found = tensors_of(source), READERS[form](out)
    expected = {f"language_model.model.layers.{n}.{name}" for n in range(2) for name in LINEARS}
    if options.get("vision"):
        expected |= {f"vision_model.encoder.layers.{n}.{name}" for n in range(2) for name in VISION}
        expected |= {"mlp1.1", "mlp1.3"}
    assert set(found) == expected
    for module, matrix in found.items():
        original = floats[f"{module}.weight"].double().numpy()
        assert np.linalg.norm(matrix - original) <= BOUNDS[scheme] * np.linalg.norm(original), module


LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
VISION = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_go_to_the_nearest_code(tmp_path, bits):
    """Given the scale that was chosen, no other code is nearer."""
    source = write_original(tmp_path / "source", WIDE, dtype="float32")
    kind: dict[str, Any] = {"scheme": "w4a16", "error_feedback": False} if bits == 4 else {"scheme": "w8a8"}
    found, tensors = compressed_tensors(out := quantised(tmp_path, source, **kind)), tensors_of(out)
    floats = tensors_of(source)
    for module, matrix in found.items():
        original = floats[f"{module}.weight"].double().numpy()
        scales = tensors[f"{module}.weight_scale"].double().numpy()
        scales = np.repeat(scales, original.shape[1] // scales.shape[1], axis=1)
        lowest, highest = (-8, 7) if bits == 4 else (-127, 127)
        nearest = np.clip(np.round(original / scales), lowest, highest) * scales
        assert np.abs(matrix - original).max() <= np.abs(nearest - original).max() * (1 + 1e-6), module


def test_everything_else_stays_as_it_was(tmp_path):
    source = write_original(tmp_path / "source", SPECS["qwen3-300m-head"], dtype="bfloat16")
    out = quantised(tmp_path, source)
    floats, found = tensors_of(source), tensors_of(out)
    kept = set(found) & set(floats)
    for name in kept:
        if found[name].dtype == floats[name].dtype:
            assert torch.equal(found[name], floats[name]), name
    quantised_names = {name for name in kept if found[name].dtype == torch.int8}
    assert len(quantised_names) == 14
    assert set(floats) == kept
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    ignored = set(config.pop("quantization_config")["ignore"])
    assert config == json.loads((source / "config.json").read_text())
    assert {"language_model.lm_head", "mlp1.1", "vision_model.encoder.layers.0.attn.qkv"} <= ignored
    assert not any("embed" in name or "norm" in name for name in ignored)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("internlm2-300m", ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")),
        ("phi3-300m", ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    ],
)
def test_layers_that_files_keep_as_one_stay_one(tmp_path, name, modules):
    source = write_original(tmp_path / "source", SPECS[name])
    out = quantised(tmp_path, source, scheme="w8a8-static")
    assert set(compressed_tensors(out)) == {f"language_model.model.layers.{n}.{m}" for n in range(2) for m in modules}
    static = {name.removesuffix(".input_scale") for name in tensors_of(out) if name.endswith(".input_scale")}
    closing = ("w2", "down_proj")
    assert static == {
        f"language_model.model.layers.{n}.{m}" for n in range(2) for m in modules if not m.endswith(closing)
    }


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8-static"])
def test_experts_are_written_apart_and_routers_stay(tmp_path, together, scheme):
    spec = SPECS["qwen3moe-300m-head"]
    apart = tensors_of(write_hf(tmp_path / "apart", spec))
    source = write_hf(tmp_path / "source", spec, fused_experts=together)
    out = quantised(tmp_path, source, scheme=scheme)
    found = compressed_tensors(out)
    layer = "model.language_model.layers.1.mlp"
    experts = {f"{layer}.experts.{n}.{m}_proj" for n in range(spec.experts) for m in ("gate", "up", "down")}
    assert experts <= set(found)
    for module in experts:
        original = apart[f"{module}.weight"].double().numpy()
        assert np.linalg.norm(found[module] - original) <= BOUNDS[scheme] * np.linalg.norm(original), module
    assert f"{layer}.gate" in json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    tensors = tensors_of(out)
    assert torch.equal(tensors[f"{layer}.gate.weight"], apart[f"{layer}.gate.weight"])
    assert not any(".experts." in name and "input_scale" in name for name in tensors)


def test_static_sums_of_modelslim_give_what_floats_give(tmp_path):
    """(rounded rows . weight + quant_bias) * deq_scale, in whole numbers, with the bias in quant_bias."""
    source = write_original(tmp_path / "source", SPECS["qwen2-300m"], dtype="float16")
    out = quantised(tmp_path, source, scheme="w8a8-static", format="modelslim")
    floats, found = tensors_of(source), tensors_of(out)
    module = "language_model.model.layers.1.self_attn.q_proj"
    scale, offset = (float(found[f"{module}.{name}"]) for name in ("input_scale", "input_offset"))
    low, high = (-128 - offset) * scale, (127 - offset) * scale
    x = np.random.default_rng(0).uniform(low, high, (8, floats[f"{module}.weight"].shape[1]))
    rows = np.clip(np.round(x / scale) + offset, -128, 127).astype(np.int64)
    sums = rows @ found[f"{module}.weight"].numpy().astype(np.int64).T + found[f"{module}.quant_bias"].numpy()
    steps = found[f"{module}.deq_scale"]
    assert steps.dtype == torch.int64
    y = sums * steps.numpy().astype(np.int32).view(np.float32).astype(np.float64)
    exact = x @ floats[f"{module}.weight"].double().numpy().T + floats[f"{module}.bias"].double().numpy()
    assert np.linalg.norm(y - exact) < 0.02 * np.linalg.norm(exact)


def test_the_card_says_what_was_measured(tmp_path):
    source = write_original(tmp_path / "twin", SPECS["qwen2-300m"])
    out = quantised(tmp_path, source, scheme="w4a16")
    card = (out / "README.md").read_text()
    for text in (
        "# twin, w4a16",
        "error feedback | GPTQ",
        "samples shipped with Tilewise",
        "mean of 14",
        "tilewise serve",
    ):
        assert text in card
    layers = json.loads((out / "quantize.json").read_text())["layers"]
    found, floats = compressed_tensors(out), tensors_of(source)
    for module, (weights, _) in layers.items():
        original = floats[f"{module}.weight"].double().numpy()
        measured = np.linalg.norm(found[module] - original) / np.linalg.norm(original)
        assert weights == pytest.approx(measured, rel=1e-4)
