"""What other projects' libraries write: every form equals what the library makes of its own codes, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tests.clients import environments
from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.platforms.ascend.device import strict_ops
from tests.tiny import SPECS, TinySpec, write_original
from tests.weights.broken import load
from tests.weights.quantization.test_compressed_tensors import logits
from tests.weights.quantization.written import SPEC
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Form, Grouped, Int8
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import plain_weight
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization import layouts_of

pytestmark = pytest.mark.clients
PROGRAMS = Path(__file__).parent / "programs"
LAYER = "language_model.model.layers.0.self_attn.q_proj"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}


def run_program(library: str, folder: Path, *arguments: object) -> str:
    """Run a library's program in its own environment; return what it printed."""
    if (why := environments.failure(library)) is not None:
        pytest.fail(f"{library} is not installed: {why}", pytrace=False)
    command = [environments.python(library), PROGRAMS / f"with_{library}.py", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def write_with(library: str, folder: Path, *arguments: object) -> tuple[Path, Path, str]:
    """A twin that the library has quantised, the same in floats, and what its program printed."""
    stored, floats = write_original(folder / "stored", SPEC), write_original(folder / "floats", SPEC)
    return stored, floats, run_program(library, folder, stored, floats, *arguments)


DECODER_ALONE = ("re:vision_model.*", "re:mlp1.*", "language_model.lm_head")
SCHEMES = (
    *("W2A16", "W3A16", "W4A16", "W5A16", "W6A16", "W7A16", "W8A16"),
    *("W4A16_ASYM", "W4A16_CHANNEL_ASYM", "W8A16_ASYM", "W4A8", "W4AFP8", "W8A8", "W8A8_STATIC_ASYM"),
    *("FP8", "FP8_DYNAMIC", "FP8_BLOCK"),
)


@pytest.mark.parametrize(
    ("scheme", "ignored"),
    [
        *((scheme, DECODER_ALONE) for scheme in SCHEMES),
        *((scheme, ()) for scheme in ("W8A8", "FP8_DYNAMIC", "W4A16_CHANNEL_ASYM")),
    ],
)
def test_compressed_tensors(tmp_path: Path, scheme: str, ignored: tuple[str, ...]) -> None:
    stored, floats, told = write_with("compressed_tensors", tmp_path, scheme, *ignored)
    names = json.loads(told.splitlines()[-1])
    assert len(names) == (14 if ignored else 25)
    meant = SafetensorFiles(floats)
    source = CheckpointSource(
        SafetensorFiles(stored), TensorRef, torch.float32, layouts=layouts_of(CheckpointFolder.open(stored))
    )
    forms = {name: source.linear(name, *meant.stored(f"{name}.weight").get_shape(), False).matrix for name in names}
    assert all(isinstance(form, Int8) == (scheme in ("W8A8", "W8A8_STATIC_ASYM")) for form in forms.values())
    for name, form in forms.items():
        expected = meant.tensor(f"{name}.weight")
        if scheme == "W8A8_STATIC_ASYM":  # whose scale of rows is multiplied in, and divided out again
            torch.testing.assert_close(form.dequantised(), expected, atol=0, rtol=1e-6)
        else:
            assert torch.equal(form.dequantised(), expected)
    load(stored)
    if not scheme.startswith("W8A8"):
        torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("packing", "bits", "symmetric"),
    [
        ("auto_awq", 4, False),
        ("auto_awq", 4, True),
        ("auto_gptq", 2, False),
        ("auto_gptq", 3, True),
        ("auto_gptq", 8, True),
        ("auto_round", 4, True),
    ],
)
def test_auto_round(tmp_path: Path, packing: str, bits: int, symmetric: bool) -> None:
    """Scales of its symmetric codes are negative where the largest number is positive."""
    stored, floats, _ = write_with("auto_round", tmp_path, packing, bits, symmetric)
    meant, packed = SafetensorFiles(floats), SafetensorFiles(stored)
    assert bool((packed.tensor(f"{LAYER}.scales") < 0).any()) == symmetric
    find = layouts_of(CheckpointFolder.open(stored))
    source = CheckpointSource(packed, TensorRef, torch.float32, layouts=find)
    for name in (LAYER, "language_model.model.layers.1.mlp.down_proj"):
        expected = meant.tensor(f"{name}.weight")
        form = source.linear(name, *expected.shape, False).matrix
        assert isinstance(form, Grouped)
        assert (form.shifts is None) == symmetric
        assert torch.equal(form.dequantised(), expected)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


WIDE = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 96, "expert_intermediate": 32}
"""Widths that can be rotated by parts of 32."""
DENSE, MOE = (replace(SPECS[name], **WIDE) for name in ("qwen3-300m-head", "qwen3moe-300m-head"))


def write_with_modelslim(folder: Path, spec: TinySpec, *arguments: str) -> tuple[Path, Path]:
    """A twin that msmodelslim has quantised, and the same in floats: in bfloat16, its norms (26.1.0) fail on a CPU."""
    floats, stored = write_original(folder / "floats", spec, shards=2), folder / "stored"
    model = "InternVL3_5-38B" if spec is DENSE else "InternVL3_5-241B-A28B"
    run_program("modelslim", folder, floats, stored, model, *arguments)
    return stored, floats


def forms_of(folder: Path, widths: Mapping[str, tuple[int, int]]) -> dict[str, Form]:
    find = layouts_of(CheckpointFolder.open(folder))
    source = CheckpointSource(SafetensorFiles(folder), TensorRef, torch.float32, layouts=find)
    return {name: source.linear(name, *size, False).matrix for name, size in widths.items()}


def logits_by(ops: Ops, folder: Path, spec: TinySpec) -> Tensor:
    model = Architecture.of(CheckpointFolder.open(folder)).load(torch.bfloat16, ops, 256)
    return all_logits(model, prompt_of(spec, (1,)), random_tiles(spec, 1), spec.image_id).float()


def products_of(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """By module: rows, and what msmodelslim's own arithmetic makes of them."""
    found = load_file(folder.with_suffix(".safetensors"))
    names = [name.removesuffix(".rows") for name in found if name.endswith(".rows")]
    return {name: (found[f"{name}.rows"], found[f"{name}.product"]) for name in names}


@pytest.mark.parametrize("spec", [DENSE, MOE], ids=["dense", "experts"])
def test_modelslim_as_published(tmp_path: Path, spec: TinySpec) -> None:
    """Its recipes for InternVL3.5 rotate, smooth and round by calibration, in the tower's attention, too."""
    stored, floats = write_with_modelslim(tmp_path, spec)
    products = products_of(stored)
    forms = forms_of(stored, {name: (y.shape[1], x.shape[1]) for name, (x, y) in products.items()})
    static = {name: form for name, form in forms.items() if isinstance(form, Int8) and form.static is not None}
    assert len(static) == (16 if spec is DENSE else 12)
    assert len(forms) - len(static) == (0 if spec is DENSE else 3 * spec.experts * spec.layers)
    for name, form in forms.items():
        rows, product = products[name]
        assert isinstance(form, Int8)
        if form.static is None:
            torch.testing.assert_close(form.dequantised().T, product, atol=1e-8, rtol=1e-6)
            continue
        codes = (torch.round(rows / form.static.scale) + form.static.offset).clamp(-128, 127).long()
        sums = codes @ form.matrix.long().T + form.addend
        found = plain_weight([form], None).apply(rows, Ops())
        assert torch.equal(found, sums.float() * form.scales)
        assert ((found - product).abs() < 0.5 * form.scales + 1e-5).all()  # the addend is a whole number
    near = logits_by(Ops(), floats, spec)
    found, on_npu = (logits_by(ops, stored, spec) for ops in (Ops(), strict_ops()))
    for other in (found, on_npu):
        assert cosine_similarity(other, near, dim=1).median() > 0.98
    assert cosine_similarity(found, on_npu, dim=1).median() > 0.995


def how(scope: str, dtype: str, method: str = "minmax", symmetric: bool = True, **more: object) -> str:
    return json.dumps({"scope": scope, "dtype": dtype, "method": method, "symmetric": symmetric, "ext": more})


IN_FLOATS = how("per_tensor", "float", "none")
TOKENS = how("per_token", "int8")
MXFP8, MXFP4 = (how("per_block", kind, axes=-1) for kind in ("mxfp8", "mxfp4"))
RECIPES = {
    "W8A8_DYNAMIC": (how("per_channel", "int8"), TOKENS),
    "W8A8_DYNAMIC in groups": (how("per_group", "int8", "gptq", group_size=32), TOKENS),
    "W8A8_MIX": (how("per_channel", "int8"), how("pd_mix", "int8", symmetric=False)),
    "W8A16": (how("per_channel", "int8"), IN_FLOATS),
    "W8A16 with offsets": (how("per_channel", "int8", "gptq", symmetric=False), IN_FLOATS),
    "W8A16 in groups": (how("per_group", "int8", "gptq", symmetric=False, group_size=32), IN_FLOATS),
    "W4A8_DYNAMIC": (how("per_channel", "int4", "ssz"), TOKENS),
    "WFP8AFP8_DYNAMIC": (how("per_channel", "fp8_e4m3"), how("per_token", "fp8_e4m3")),
    "W8A8_MXFP8": (MXFP8, MXFP8),
    "W4A8_MXFP": (MXFP4, MXFP8),
    "W4A4_MXFP4": (MXFP4, MXFP4),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_modelslim(tmp_path: Path, recipe: str) -> None:
    """Its arithmetic of int8 in groups has the matrix the wrong way round (26.1.0), so its input is compared there."""
    stored, floats = write_with_modelslim(tmp_path, DENSE, *RECIPES[recipe])
    products = products_of(stored)
    forms = forms_of(stored, {name: (y.shape[1], x.shape[1]) for name, (x, y) in products.items()})
    assert len(forms) == 14
    meant = {name: tensor for file in floats.glob("*.safetensors") for name, tensor in load_file(file).items()}
    kinds = json.loads((stored / "quant_model_description.json").read_text())
    for name, form in forms.items():
        assert kinds[f"{name}.weight"] == recipe.split()[0]
        if recipe == "W8A8_DYNAMIC in groups":
            assert (form.dequantised() - meant[f"{name}.weight"]).abs().mean() < 0.001
        else:
            assert torch.allclose(form.dequantised().T, products[name][1], atol=1e-7, rtol=1e-5)
    assert cosine_similarity(logits(stored, DENSE), logits(floats, DENSE), dim=1).median() > 0.9
