"""Smoothing against the paper's formula in plain torch, over activations of transformers' model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.driving import all_logits, load, normalised, prompt_of, random_tiles
from tests.quantize.reading import compressed_tensors, modelslim, tensors_of
from tests.tiny import SPECS, TinySpec, reference_model, write_hf, write_original
from tests.weights.broken import change_tensors, refused
from tilewise.config import EngineConfig
from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.platforms.ops import Ops
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.calibration import prepared, shipped_samples
from tilewise.quantize.run import quantize
from tilewise.quantize.smoothing import balanced, powers

SAMPLES = 3
QKV, GATE_UP = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]
EXPERTS = [f"mlp.experts.{number}.{name}" for number in range(6) for name in ("gate_proj", "up_proj")]
READERS: dict[str, dict[str, list[str]]] = {
    "qwen2-300m": {"input_layernorm": QKV, "post_attention_layernorm": GATE_UP},
    "qwen3-6b-tied": {"input_layernorm": QKV, "post_attention_layernorm": GATE_UP},
    "qwen3moe-300m-head": {"input_layernorm": QKV, "post_attention_layernorm": ["mlp.gate", *EXPERTS]},
    "internlm2-300m": {"attention_norm": ["attention.wqkv"], "ffn_norm": ["feed_forward.w1", "feed_forward.w3"]},
    "phi3-300m": {"input_layernorm": ["self_attn.qkv_proj"], "post_attention_layernorm": ["mlp.gate_up_proj"]},
}
"""Norms of a layer of the decoder and what reads them, in the names of the files."""
VISION = {"norm1": ["attn.qkv"], "norm2": ["mlp.fc1"]}
TOWER, PROJECTOR = "vision_model.encoder.layers", {"mlp1.0": ["mlp1.1"]}


def readers(spec: str, prefix: str, vision: bool = False) -> dict[str, list[str]]:
    """Every norm of a twin that is smoothed, in the order of the computation, with its readers."""
    parts = [(TOWER, VISION)] if vision else []
    layers = {
        f"{place}.{layer}.{norm}": [f"{place}.{layer}.{reader}" for reader in names]
        for place, norms in [*parts, (prefix, READERS[spec])]
        for layer in range(2)
        for norm, names in norms.items()
    }
    return layers | (PROJECTOR if vision else {})


def norm_outputs(source: Path, hf: Path, prefix: str) -> dict[str, Tensor]:
    """What the norms of transformers' model give [rows, width] on the first shipped samples, by the files' names."""
    config = EngineConfig.of(model=str(source))
    inputs = ModelInputs.of(config)
    requests = prepared(shipped_samples(), inputs.plain_preparer(2048), SAMPLES)
    theirs = reference_model(hf)
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, module: Any) -> None:
        module.register_forward_hook(lambda _, x, y: seen.setdefault(name, []).append(y.flatten(0, -2)) and None)

    internlm = f"{prefix}.0.ffn_norm.weight" in tensors_of(source)
    names = ("attention_norm", "ffn_norm") if internlm else ("input_layernorm", "post_attention_layernorm")
    for number, layer in enumerate(theirs.model.language_model.layers):
        watch(f"{prefix}.{number}.{names[0]}", layer.input_layernorm)
        watch(f"{prefix}.{number}.{names[1]}", layer.post_attention_layernorm)
    for number, layer in enumerate(theirs.model.vision_tower.encoder.layer):
        watch(f"{TOWER}.{number}.norm1", layer.layernorm_before)
        watch(f"{TOWER}.{number}.norm2", layer.layernorm_after)
    watch("mlp1.0", theirs.model.multi_modal_projector.layer_norm)
    with torch.inference_mode():
        for request in requests:
            tiles = [torch.from_numpy(tile.pixels.copy()) for image in request.images for tile in image.tiles]
            pixels = normalised(torch.stack(tiles)) if tiles else None
            theirs(input_ids=torch.tensor([request.prompt_ids]), pixel_values=pixels)
    return {name: torch.cat(rows) for name, rows in seen.items()}


def by_formula(x: Tensor, weights: list[Tensor], strength: float) -> Tensor:
    """s_j = max|x_j|^a / max|W_j|^(1 - a), to the nearest power of two between 2^-10 and 2^10."""
    largest = torch.cat([weight.float() for weight in weights]).abs().amax(0)
    ratio = x.float().abs().amax(0) ** strength / largest ** (1 - strength)
    return torch.tensor([2.0 ** max(-10, min(10, round(math.log2(one)))) for one in ratio.tolist()])


def smoothed(tmp_path: Path, source: Path, name: str = "out", **options: Any) -> Path:
    given: dict[str, Any] = {"smooth": 0.5, "calibration_samples": SAMPLES, **options}
    quantize(QuantizeOptions(model=str(source), out=str(tmp_path / name), **given), show=False)
    return tmp_path / name


def source_of(tmp_path: Path, name: str) -> tuple[Path, Path, str, dict[str, Tensor]]:
    """A twin to be quantised, the same for transformers, where its layers are, and its tensors one by one."""
    spec = SPECS[name]
    hf = write_hf(tmp_path / "hf", spec)
    if spec.decoder == "qwen3_moe":  # as transformers saves it: all experts of a layer in one tensor
        stacked = write_hf(tmp_path / "source", spec, fused_experts=True)
        return stacked, hf, "model.language_model.layers", tensors_of(hf)
    source = write_original(tmp_path / "source", spec)
    return source, hf, "language_model.model.layers", tensors_of(source)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2-300m", {"vision": True}),
        ("qwen2-300m", {"smooth": 0.8, "format": "modelslim"}),
        ("qwen3-6b-tied", {"vision": True}),
        ("qwen3moe-300m-head", {}),
        ("internlm2-300m", {"smooth": 0.25}),
        ("phi3-300m", {}),
    ],
)
def test_norms_are_divided_and_their_readers_multiplied(tmp_path, name, options):
    source, hf, prefix, floats = source_of(tmp_path, name)
    out = smoothed(tmp_path, source, **options)
    outputs, found = norm_outputs(source, hf, prefix), tensors_of(out)
    matrices = (modelslim if options.get("format") == "modelslim" else compressed_tensors)(out)
    touched = set()
    for norm, names in readers(name, prefix, options.get("vision", False)).items():
        weights = [floats[f"{reader}.weight"] for reader in names]
        factors = by_formula(outputs[norm], weights, options.get("smooth", 0.5))
        assert len(factors.unique()) > 1
        for kind in ("weight", "bias"):
            if f"{norm}.{kind}" in floats:
                assert torch.equal(found[f"{norm}.{kind}"], floats[f"{norm}.{kind}"] / factors), norm
                touched.add(f"{norm}.{kind}")
        for reader, weight in zip(names, weights, strict=True):
            touched.add(f"{reader}.weight")
            if reader not in matrices:  # the router
                assert torch.equal(found[f"{reader}.weight"], weight * factors), reader
                continue
            folded = (weight * factors).double().numpy()
            steps = abs(folded).max(1, keepdims=True) / 127
            assert (abs(matrices[reader] - folded) <= 0.5001 * steps).all(), reader
    for tensor in set(found) & set(floats) - touched:
        if found[tensor].dtype == floats[tensor].dtype:
            assert torch.equal(found[tensor], floats[tensor]), tensor


def folded_floats(source: Path, out: Path, names: dict[str, list[str]], folder: Path) -> Path:
    """The source with norms as they were written, and the floats of their readers multiplied to match."""
    shutil.copytree(source, folder)
    tensors, written = tensors_of(source), tensors_of(out)
    for norm, linears in names.items():
        factors = tensors[f"{norm}.weight"].float() / written[f"{norm}.weight"].float()
        for linear in linears:
            weight = tensors[f"{linear}.weight"]
            kept = torch.float32 if weight.dtype == torch.float16 else weight.dtype
            tensors[f"{linear}.weight"] = (weight.float() * factors).to(kept)
        tensors |= {name: written[name] for name in (f"{norm}.weight", f"{norm}.bias") if name in written}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "stored", "computed"),
    [
        ("qwen2-300m", "float32", torch.float32),
        ("qwen2-300m", "bfloat16", torch.bfloat16),
        ("internlm2-300m", "float16", torch.float32),
        ("internlm2-300m", "bfloat16", torch.bfloat16),
        ("qwen3moe-300m-head", "bfloat16", torch.bfloat16),
    ],
)
def test_before_rounding_the_model_is_the_same_bit_by_bit(tmp_path, name, stored, computed):
    spec = SPECS[name]
    write = write_hf if spec.decoder == "qwen3_moe" else write_original
    source = write(tmp_path / "source", spec, dtype=stored)
    vision = write is write_original
    prefix = "language_model.model.layers" if vision else "model.language_model.layers"
    out = smoothed(tmp_path, source, vision=vision)
    folded = folded_floats(source, out, readers(name, prefix, vision), tmp_path / "folded")
    assert not torch.equal(*(tensors_of(f)[f"{next(iter(readers(name, prefix)))}.weight"] for f in (source, folded)))
    ids, pixels = prompt_of(spec, [2]), random_tiles(spec, 2)
    ours, theirs = (
        all_logits(load(folder, Ops(), dtype=computed), ids, pixels, spec.image_id) for folder in (folded, source)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", ["compressed-tensors", "modelslim"])
def test_static_scales_are_those_of_smoothed_inputs(tmp_path, form):
    source, hf, prefix, _ = source_of(tmp_path, "internlm2-300m")
    out = smoothed(tmp_path, source, scheme="w8a8-static", format=form)
    outputs, floats, found = norm_outputs(source, hf, prefix), tensors_of(source), tensors_of(out)
    for norm, names in readers("internlm2-300m", prefix).items():
        divided = outputs[norm] * (found[f"{norm}.weight"] / floats[f"{norm}.weight"])
        scale = float(divided.max().clamp(min=0) - divided.min().clamp(max=0)) / 255
        offset = round(-128 - float(divided.min().clamp(max=0)) / scale)
        for reader in names:
            assert float(found[f"{reader}.input_scale"]) == pytest.approx(scale, rel=1e-4)
            key = "input_zero_point" if form == "compressed-tensors" else "input_offset"
            assert abs(float(found[f"{reader}.{key}"]) - offset) <= 1
    plain = tensors_of(smoothed(tmp_path, source, "plain", smooth=None, scheme="w8a8-static", format=form))
    name = f"{prefix}.1.attention.wo.input_scale"
    assert torch.equal(found[name], plain[name])


def with_outliers(source: Path, spec: str, times: float) -> None:
    """The same function, with three inputs of every layer as many times as large, as large models have them."""

    def change(tensors: dict[str, Tensor]) -> None:
        for norm, names in readers(spec, "language_model.model.layers").items():
            tensors[f"{norm}.weight"][[3, 11, 20]] *= times
            for reader in names:
                tensors[f"{reader}.weight"][:, [3, 11, 20]] /= times

    change_tensors(source, change)


@pytest.mark.parametrize(("name", "scheme"), [("qwen2-300m", "w8a8"), ("internlm2-300m", "w8a8-static")])
def test_outliers_no_longer_cost_what_they_did(tmp_path, name, scheme):
    spec: TinySpec = SPECS[name]
    source = write_original(tmp_path / "source", spec)
    with_outliers(source, name, 128)
    ids, pixels = prompt_of(spec, [2]), random_tiles(spec, 2)
    calibration: dict[str, Any] = {} if scheme == "w8a8-static" else {"calibration_samples": None}
    folders = [
        source,
        smoothed(tmp_path, source, "plain", scheme=scheme, smooth=None, **calibration),
        smoothed(tmp_path, source, "smooth", scheme=scheme),
    ]
    exact, plain, smooth = (all_logits(load(f, Ops()), ids, pixels, spec.image_id) for f in folders)
    assert (smooth - exact).norm() < 0.1 * (plain - exact).norm()
    assert (smooth - exact).norm() < 0.05 * exact.norm()


def test_factors_of_inputs_and_weights():
    nan, inf = float("nan"), float("inf")
    inputs = torch.tensor([4.0, 0.0, 1.0, nan, inf, 1e9, 1e-9, 1.0])
    weights = torch.tensor([0.25, 1.0, 0.0, 1.0, 1.0, 1e-9, 1e9, 0.1])
    assert powers(balanced(inputs, weights, 0.5)).tolist() == [4, 1, 1, 1, 1, 2**10, 2**-10, 4]
    assert powers(balanced(inputs, weights, 1)).tolist() == [4, 1, 1, 1, 1, 2**10, 2**-10, 1]
    assert powers(balanced(inputs, weights, 0)).tolist() == [4, 1, 1, 1, 1, 2**10, 2**-10, 8]


def test_a_factor_that_would_lose_digits_is_left_out(tmp_path):
    """float16 has nothing below 2^-24; an input that no weight multiplies has no factor either."""
    source = write_original(tmp_path / "source", SPECS["qwen2-300m"], dtype="float16")
    norm, *others = "language_model.model.layers.0.input_layernorm.weight", *QKV

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[norm][4] = 3 * 2.0**-16
        for reader in others:
            tensors[f"language_model.model.layers.0.{reader}.weight"][:, 4] *= 2.0**-12
            tensors[f"language_model.model.layers.0.{reader}.weight"][:, 5] = 0

    change_tensors(source, change)
    factors = tensors_of(source)[norm] / tensors_of(smoothed(tmp_path, source, smooth=0))[norm]
    assert factors[[4, 5]].tolist() == [1, 1]
    assert (factors[6:] > 1).any()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("source"), SPECS["qwen2-300m"])


def test_the_card_and_the_journal_tell_it(wide, tmp_path):
    out = smoothed(tmp_path, wide, smooth=0.75)
    journal = json.loads((out / "quantize.json").read_text())
    assert journal["asked"]["smooth"] == 0.75
    floats, found = tensors_of(wide), tensors_of(out)
    expected = {norm: floats[f"{norm}.weight"] / found[f"{norm}.weight"] for norm in journal["norms"]}
    assert set(expected) == set(readers("qwen2-300m", "language_model.model.layers"))
    for norm, (mean, largest) in journal["norms"].items():
        assert (mean, largest) == pytest.approx((float(expected[norm].mean()), float(expected[norm].max())))
    card = " ".join((out / "README.md").read_text().split())
    mean = sum(float(factors.mean()) for factors in expected.values()) / 4
    largest = max(float(factors.max()) for factors in expected.values())
    assert "strength 0.75, folded into 4 norms" in card
    assert f"{mean:.3g} in the mean, the largest {largest:g}" in card


@pytest.mark.parametrize("reader", ["1.mlp.up_proj", "0.self_attn.k_proj"])
def test_a_reader_that_is_not_finite(tmp_path, reader):
    name = f"language_model.model.layers.{reader}.weight"
    source = write_original(tmp_path / "source", SPECS["qwen2-300m"])
    change_tensors(source, lambda tensors: tensors[name].__setitem__((0, 0), float("nan")))
    refused(InvalidCheckpoint, lambda: smoothed(tmp_path, source), name, "not finite")
    assert not (tmp_path / "out" / "config.json").exists()
