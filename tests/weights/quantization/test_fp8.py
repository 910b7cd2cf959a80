"""FP8 in DeepSeek's blocks and by tensor: the numbers, which layers stay in floats, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.models.test_int8 import bytes_kept
from tests.tiny import write_hf
from tests.weights.broken import change_tensors, damaged, load, refused
from tests.weights.quantization.scaled import Scheme, in_fp8
from tests.weights.quantization.written import SPEC, Written, of_the_decoder, write_pair
from tilewise.errors import InvalidCheckpoint
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Codes, Dense, Form, Grouped
from tilewise.platforms.ops import TorchOps
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization.fp8 import layouts

LAYER = "language_model.model.layers.1.mlp.down_proj"
FLOATS = ("vision_model", "mlp1", "lm_head")
BLOCK = (24, 40)
SCALE_INV = "weight_scale_inv"
KINDS = {
    "blocks": (Scheme(BLOCK, scales=torch.float32), SCALE_INV, None),
    "blocks-bfloat16": (Scheme(BLOCK), SCALE_INV, None),
    "one-scale": (Scheme((0, 0), scales=torch.float32), "weight_scale", ()),
    "one-scale-in-a-row": (Scheme((0, 0), scales=torch.float32, static=0), "weight_scale", (1,)),
    "one-scale-of-transformers": (Scheme((0, 0)), SCALE_INV, ()),
    "a-scale-for-each-output": (Scheme((1, 0)), "weight_scale", (-1, 1)),
}


def config(scheme: Scheme, floats: tuple[str, ...] = FLOATS, **more: Any) -> dict[str, Any]:
    found = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic" if scheme.static is None else "static",
        "weight_block_size": list(scheme.block) if scheme.block[0] > 1 else None,
        "modules_to_not_convert": floats,
    }
    return {"quantization_config": found | more}


def logits(folder: Path) -> Tensor:
    return all_logits(load(folder), prompt_of(SPEC, (1,)), random_tiles(SPEC, 1))


def form_of(folder: Path) -> Form:
    found = layouts(CheckpointFolder.open(folder))
    source = CheckpointSource(SafetensorFiles(folder), TensorRef, torch.float32, layouts=found)
    return source.linear(LAYER, 64, 96, False).matrix


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_that_the_codes_stand_for(tmp_path: Path, kind: str) -> None:
    scheme, name, shape = KINDS[kind]
    stored, floats = write_pair(tmp_path, in_fp8(scheme, name, shape), config(scheme))
    form, meant = form_of(stored), SafetensorFiles(floats).tensor(f"{LAYER}.weight")
    assert isinstance(form, Grouped)
    assert form.kind is Codes.FP8
    assert torch.equal(form.dequantised(), meant)
    assert torch.equal(form.rows(slice(20, 50)).dequantised(), meant[20:50])
    assert torch.equal(form.columns(24, 48).dequantised(), meant[:, 24:72])
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_scales_that_are_powers_of_two_in_a_byte(tmp_path: Path) -> None:
    """`scale_fmt` "ue8m0": an exponent with 127 added."""
    scheme = Scheme(BLOCK, scales=torch.float8_e8m0fnu)
    stored, floats = write_pair(tmp_path, in_fp8(scheme, SCALE_INV), config(scheme, scale_fmt="ue8m0"))
    assert torch.equal(form_of(stored).dequantised(), SafetensorFiles(floats).tensor(f"{LAYER}.weight"))


def test_the_tower_in_blocks_that_lie_across_its_fused_parts(tmp_path: Path) -> None:
    scheme = Scheme(BLOCK)
    stored, floats = write_pair(
        tmp_path,
        in_fp8(scheme, SCALE_INV),
        config(scheme, ("mlp1", "lm_head")),
        which=lambda module: of_the_decoder(module) or module.endswith(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    )
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spelling", ["new", "old"])
def test_the_hf_format(tmp_path: Path, spelling: Any) -> None:
    """With the names of layers in floats that transformers has in memory."""
    scheme = Scheme(BLOCK)
    names = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    stored, floats = write_pair(
        tmp_path,
        in_fp8(scheme, SCALE_INV),
        config(scheme, names),
        write=lambda folder, spec: write_hf(folder, spec, spelling=spelling),
    )
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_gate_in_floats_and_up_in_blocks(tmp_path: Path) -> None:
    """LMDeploy leaves out `mlp.gate_proj`, too, when it leaves out the router `mlp.gate`, and names each layer."""
    scheme = Scheme(BLOCK)
    left = tuple(f"language_model.model.layers.{layer}.mlp.gate_proj" for layer in range(SPEC.layers))

    def quantise(module: str, matrix: Tensor) -> Written:
        return ({".weight": matrix}, matrix) if module in left else in_fp8(scheme, SCALE_INV)(module, matrix)

    stored, floats = write_pair(tmp_path, quantise, config(scheme, (*FLOATS, *left)))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)
    assert told(tmp_path, left[0], (*FLOATS, *left)) is None


def test_a_layer_in_floats_that_is_not_named_is_read(tmp_path: Path) -> None:
    scheme = Scheme(BLOCK)

    def quantise(module: str, matrix: Tensor) -> Written:
        return ({".weight": matrix}, matrix) if module == LAYER else in_fp8(scheme, SCALE_INV)(module, matrix)

    stored, floats = write_pair(tmp_path, quantise, config(scheme))
    assert isinstance(form_of(stored), Dense)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["blocks", "one-scale"])
@pytest.mark.parametrize("written", [True, False], ids=["with-files", "before-the-download"])
def test_bytes_counted_are_those_kept(tmp_path: Path, kind: str, written: bool) -> None:
    scheme, name, shape = KINDS[kind]
    stored, _ = write_pair(tmp_path, in_fp8(scheme, name, shape), config(scheme))
    kept = bytes_kept(Architecture.of(CheckpointFolder.open(stored)), TorchOps(), TorchOps().store)
    if not written:
        (stored / "model.safetensors").unlink()
    assert Architecture.of(CheckpointFolder.open(stored)).count_bytes(TorchOps(), torch.bfloat16) == kept


def told(folder: Path, module: str, floats: tuple[str, ...], **more: Any) -> str | None:
    (folder / "config.json").write_text(json.dumps(config(Scheme(BLOCK), floats, **more)))
    found = layouts(CheckpointFolder.open(folder))(module)
    return None if found is None else str(found)


ATTENTION = "language_model.model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("module", "floats", "quantised"),
    [
        (ATTENTION, (), True),
        (ATTENTION, (ATTENTION,), False),
        (ATTENTION, ("q_proj",), False),
        (ATTENTION, ("proj",), True),
        (ATTENTION, ("self_attn.q",), True),
        (ATTENTION, ("language_model.model.layers.3",), False),
        (ATTENTION, ("model.language_model.layers.3",), False),
        (ATTENTION, ("language_model.model.layers.*.self_attn",), False),
        (ATTENTION, ("language_model.model.layers.*.mlp",), True),
        ("language_model.model.layers.3.mlp.gate_proj", ("mlp.gate",), True),
        ("model.language_model.layers.3.mlp.gate", ("mlp.gate",), False),
        ("vision_model.encoder.layers.0.attn.qkv", ("vision_model",), False),
        ("vision_tower.encoder.layer.0.mlp.fc1", ("model.vision_tower",), False),
        ("model.vision_tower.encoder.layer.0.mlp.fc1", ("vision_tower",), False),
        ("language_model.lm_head", ("lm_head",), False),
        ("language_model.model.embed_tokens", (), False),
    ],
)
def test_which_layers_are_in_floats(tmp_path: Path, module: str, floats: tuple[str, ...], quantised: bool) -> None:
    assert told(tmp_path, module, floats) == ("fp8 in blocks of 24 x 40, rows in floats" if quantised else None)
    assert told(tmp_path, module, (), ignored_layers=list(floats)) == told(tmp_path, module, floats)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fmt": "e5m2"}, ("fmt is 'e5m2'", "'e4m3'")),
        ({"activation_scheme": "random"}, ("activation_scheme is 'random'", "'dynamic', 'static'")),
        ({"scale_fmt": "e5m2"}, ("scale_fmt is 'e5m2'",)),
        ({"expert_dtype": "fp4"}, ("expert_dtype is 'fp4'", "'fp8'")),
        ({"weight_block_size": [128]}, ("weight_block_size is [128]", "two whole numbers above 0")),
        ({"weight_block_size": [128, 0]}, ("weight_block_size is [128, 0]",)),
        ({"weight_block_size": 128}, ("weight_block_size is 128",)),
        ({"weight_block_size": [True, 128]}, ("weight_block_size is [True, 128]",)),
        ({"modules_to_not_convert": "lm_head"}, ("modules_to_not_convert must be a list of names",)),
    ],
)
def test_what_the_config_cannot_say(tmp_path: Path, values: dict[str, Any], said: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(Scheme(BLOCK), **values)))
    refused(InvalidCheckpoint, lambda: layouts(CheckpointFolder.open(tmp_path)), "config.json", *said)


def changed(end: str, change: Any) -> Any:
    name = f"{LAYER}.{end}"
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is wrong with it."""
    scheme = Scheme(BLOCK)
    return write_pair(tmp_path_factory.mktemp("whole"), in_fp8(scheme, SCALE_INV), config(scheme))[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.weight"), ("has no tensor", f"{LAYER}.weight")),
        (lambda t: t.pop(f"{LAYER}.{SCALE_INV}"), ("has no tensor", f"{LAYER}.{SCALE_INV}")),
        (changed(SCALE_INV, lambda x: x * 0), (f"{LAYER}.{SCALE_INV}", "0.0 at [0, 0]")),
        (changed(SCALE_INV, lambda x: x * float("nan")), (f"{LAYER}.{SCALE_INV}", "nan at [0, 0]")),
        (changed(SCALE_INV, lambda x: x[:2]), (f"{LAYER}.{SCALE_INV}", "[2, 3]", "[3, 3]")),
        (changed(SCALE_INV, lambda x: x.int()), (f"{LAYER}.{SCALE_INV}", "I32", "F32")),
        (changed("weight", lambda x: x.view(torch.int8)), (f"{LAYER}.weight", "I8", "F8_E4M3")),
        (changed("weight", lambda x: x.float()), ("no place", f"{LAYER}.{SCALE_INV}")),
        (changed("weight", lambda x: x[:, :40]), (f"{LAYER}.weight", "[64, 40]", "[64, 96]")),
        (lambda t: t.update({"mlp1.1.weight": t["mlp1.1.weight"].to(torch.float8_e4m3fn)}), ("mlp1.1", "F8_E4M3")),
    ],
)
def test_damaged_layers_are_named(whole: Path, tmp_path: Path, change: Any, said: tuple[str, ...]) -> None:
    stored = shutil.copytree(whole, tmp_path / "stored")
    change_tensors(stored, change)
    damaged(stored, *said)


def test_a_static_scale_of_rows_is_checked(tmp_path: Path) -> None:
    scheme, name, shape = KINDS["one-scale-in-a-row"]
    stored, _ = write_pair(tmp_path, in_fp8(scheme, name, shape), config(scheme))
    change_tensors(stored, lambda tensors: tensors[f"{LAYER}.input_scale"].fill_(float("inf")))
    refused(InvalidCheckpoint, lambda: load(stored), f"{LAYER}.input_scale", "inf")


def test_what_is_not_known_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        told(tmp_path, ATTENTION, (), some_new_key=1)
    assert "some_new_key has no effect" in caplog.text
