"""compressed-tensors: schemes as numbers and as logits, which layers a description is about, and what is refused."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.models.test_int8 import bytes_kept
from tests.tiny import SPECS, TinySpec, write_hf
from tests.weights.broken import change_config, change_tensors, damaged, load, refused
from tests.weights.quantization.scaled import Scheme, compressed
from tests.weights.quantization.written import SPEC, Written, write_pair
from tilewise.errors import InvalidCheckpoint
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8
from tilewise.platforms.ops import TorchOps
from tilewise.platforms.weights import as_it_came
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization.compressed_tensors import layouts

LAYER = "language_model.model.layers.1.mlp.down_proj"
IGNORED = ("re:vision_model.*", "re:mlp1.*", "language_model.lm_head")
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
TENSOR = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
FP8_ROWS = {**TOKEN, "type": "float"}

WEIGHT_ONLY = {
    "w4a16": Scheme((1, 32), bits=4, packed=True),
    "w4a16-asymmetric": Scheme((1, 32), bits=4, packed=True, symmetric=False),
    "w4a16-channel": Scheme((1, 0), bits=4, packed=True),
    "w4a16-channel-asymmetric": Scheme((1, 0), bits=4, packed=True, symmetric=False),
    "w4a16-tensor-asymmetric": Scheme((0, 0), bits=4, packed=True, symmetric=False),
    "w4a16-scattered": Scheme((1, 32), bits=4, packed=True, scattered=True),
    "w4a16-scattered-asymmetric": Scheme((1, 32), bits=4, packed=True, scattered=True, symmetric=False),
    "w4a16-odd-groups": Scheme((1, 5), bits=4, packed=True),
    "w8a16": Scheme((1, 32), packed=True),
    "w8a16-asymmetric": Scheme((1, 32), packed=True, symmetric=False),
    "w8a16-scattered": Scheme((1, 32), packed=True, scattered=True),
    "w8a16-channel": Scheme((1, 0), packed=True),
    "w2a16": Scheme((1, 32), bits=2, packed=True, symmetric=False),
    "w3a16": Scheme((1, 32), bits=3, packed=True),
    "w3a16-asymmetric": Scheme((1, 32), bits=3, packed=True, symmetric=False),
    "w6a16": Scheme((1, 32), bits=6, packed=True),
    "w5a16-asymmetric": Scheme((1, 32), bits=5, packed=True, symmetric=False),
    "naive-int8": Scheme((1, 0)),
    "naive-int8-asymmetric": Scheme((1, 0), symmetric=False),
    "naive-int4-groups": Scheme((1, 32), bits=4),
    "fp8-tensor": Scheme((0, 0), floating=True),
    "fp8-channel": Scheme((1, 0), floating=True),
    "fp8-groups": Scheme((1, 32), floating=True),
    "fp8-block": Scheme((24, 40), floating=True),
}


def config(scheme: Scheme, rows: Any = None, targets: tuple[str, ...] = ("Linear",), **more: Any) -> dict[str, Any]:
    kind = "float-quantized" if scheme.floating else "int-quantized"
    group = {"targets": targets, "weights": scheme.weights, "input_activations": rows, "output_activations": None}
    found = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if scheme.packed else kind if rows else "naive-quantized",
        "config_groups": {"group_0": group},
        "ignore": IGNORED,
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.1",
    }
    return {"quantization_config": found | more}


def logits(folder: Path, spec: TinySpec = SPEC) -> Tensor:
    return all_logits(load(folder), prompt_of(spec, (1,)), random_tiles(spec, 1), spec.image_id)


def form_of(folder: Path, module: str, outputs: int, inputs: int) -> Form:
    """A layer by the name that the files have for it, with whatever the description says of it."""
    found = layouts(CheckpointFolder.open(folder))
    source = CheckpointSource(SafetensorFiles(folder), TensorRef, torch.float32, layouts=found)
    return source.linear(module, outputs, inputs, False).matrix


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_the_numbers_are_those_that_the_codes_stand_for(tmp_path: Path, name: str) -> None:
    """Bit by bit, and in every cut; then the logits of the whole model."""
    scheme = WEIGHT_ONLY[name]
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme))
    form, meant = form_of(stored, LAYER, 64, 96), SafetensorFiles(floats).tensor(f"{LAYER}.weight")
    assert isinstance(form, Grouped)
    assert form.kind.bits == (4 if scheme.bits <= 4 and scheme.block[1] != 5 else 8)
    assert torch.equal(form.dequantised(), meant)
    for start, stop in ((0, 20), (20, 64)):
        assert torch.equal(form.rows(slice(start, stop)).dequantised(), meant[start:stop])
    for start, length in ((0, 48), (48, 48), (32, 64), (6, 10)):
        assert torch.equal(form.columns(start, length).dequantised(), meant[:, start : start + length])
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scales", [torch.float16, torch.float32])
def test_scales_of_every_type(tmp_path: Path, scales: torch.dtype) -> None:
    scheme = replace(WEIGHT_ONLY["w4a16-asymmetric"], scales=scales)
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["w4a16-asymmetric", "fp8-block"])
@pytest.mark.parametrize("spelling", ["new", "old"])
def test_the_hf_format_with_names_as_transformers_has_them_in_memory(tmp_path: Path, name: str, spelling: Any) -> None:
    """Files of both spellings, and a description of the newer one."""
    scheme = WEIGHT_ONLY[name]
    ignored = ("re:model.vision_tower.*", "model.multi_modal_projector.linear_1", "re:.*linear_2$", "lm_head")
    stored, floats = write_pair(
        tmp_path,
        compressed(scheme),
        config(scheme, ignore=ignored),
        write=lambda folder, spec: write_hf(folder, spec, spelling=spelling),
    )
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_experts_and_a_router_in_floats(tmp_path: Path) -> None:
    """The router is no linear layer to transformers, so descriptions do not name it."""
    spec, scheme = replace(SPECS["qwen3moe-300m-head"], hidden=64, expert_intermediate=32), WEIGHT_ONLY["w4a16"]
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme), spec)
    torch.testing.assert_close(logits(stored, spec), logits(floats, spec), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["w8a16-channel", "fp8-block"])
def test_the_tower_and_all_the_rest_may_be_quantised_too(tmp_path: Path, name: str) -> None:
    """The tower's fused matrix is cut into queries, keys and values; blocks lie across the cuts."""
    scheme = WEIGHT_ONLY[name]

    def linear(module: str) -> bool:
        norms = ("norm", "norm1", "norm2", "mlp1.0", "embed_tokens", "patch_embedding")
        return not module.endswith(norms)

    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme, ignore=[]), which=linear)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("block", "rows"),
    [((1, 0), TOKEN), ((0, 0), TOKEN), ((1, 0), TENSOR), ((0, 0), TENSOR), ((1, 0), {**TENSOR, "symmetric": False})],
)
def test_int8_by_int8_has_the_exact_sums(tmp_path: Path, block: tuple[int, int], rows: dict[str, Any]) -> None:
    """Against whole numbers of 64 bits; rows rounded as the formulas of the format say."""
    offset = None if rows["dynamic"] else 0 if rows["symmetric"] else -7
    scheme = Scheme(block, static=offset)
    stored, _ = write_pair(tmp_path, compressed(scheme), config(scheme, rows))
    form, files = form_of(stored, LAYER, 64, 96), SafetensorFiles(stored)
    assert isinstance(form, Int8)
    weights = files.tensor(f"{LAYER}.weight").numpy().astype(np.int64)
    scales = files.tensor(f"{LAYER}.weight_scale").float().numpy().reshape(-1) + np.zeros(64, dtype=np.float32)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    if offset is None:
        row_scales = np.abs(x.numpy()).max(1, keepdims=True) / np.float32(127)
        rounded = np.round(x.numpy() * (np.float32(127) / np.abs(x.numpy()).max(1, keepdims=True))).astype(np.int64)
        expected = (rounded @ weights.T).astype(np.float32) * (row_scales * scales)
    else:
        step = files.tensor(f"{LAYER}.input_scale").float().numpy()
        rounded = np.clip(np.round(x.numpy() / step) + offset, -128, 127).astype(np.int64)
        assert np.array_equal(rounded @ weights.T + form.addend.numpy(), (rounded - offset) @ weights.T)
        expected = ((rounded - offset) @ weights.T).astype(np.float32) * (step * scales)
    assert torch.equal(as_it_came([form], None).apply(x, TorchOps()), torch.from_numpy(expected))
    halves = [as_it_came([form.rows(slice(a, a + 32))], None).apply(x, TorchOps()) for a in (0, 32)]
    assert torch.equal(torch.cat(halves, 1), torch.from_numpy(expected))
    assert torch.isfinite(logits(stored)).all()


@pytest.mark.parametrize("rows", [FP8_ROWS, {**FP8_ROWS, "strategy": "tensor", "dynamic": False}])
def test_rows_of_fp8_stay_floats(tmp_path: Path, rows: dict[str, Any]) -> None:
    """The static scale of rows is read, checked and used for nothing."""
    scheme = replace(WEIGHT_ONLY["fp8-channel"], static=None if rows["dynamic"] else 0)
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme, rows))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("bits", "rows"), [(8, {**TOKEN, "symmetric": False}), (4, {**TOKEN, "num_bits": 4}), (8, {**TOKEN, "num_bits": 4})]
)
def test_rows_whose_rounding_has_no_exact_sums_stay_floats(tmp_path: Path, bits: int, rows: dict[str, Any]) -> None:
    scheme = Scheme((1, 0), bits=bits)
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme, rows))
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_several_groups_in_one_checkpoint(tmp_path: Path) -> None:
    """Layers of one product in different forms, and some that stay in floats without being ignored."""
    four, eight = WEIGHT_ONLY["w4a16-asymmetric"], WEIGHT_ONLY["fp8-channel"]

    def quantise(module: str, matrix: Tensor) -> Written:
        if ".layers.0.self_attn." in module:
            return {".weight": matrix}, matrix
        return compressed(eight if module.endswith(("v_proj", "down_proj")) else four)(module, matrix)

    groups = {
        "group_0": {"targets": ["Linear"], "weights": four.weights, "format": "pack-quantized"},
        "group_1": {
            "targets": ["re:.*v_proj$", "re:.*down_proj"],
            "weights": eight.weights,
            "input_activations": FP8_ROWS,
            "format": "float-quantized",
        },
    }
    described = config(four, format="mixed-precision", config_groups=groups)
    stored, floats = write_pair(tmp_path, quantise, described)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


COUNTED = ("w4a16-asymmetric", "w4a16-tensor-asymmetric", "w4a16-scattered", "w8a16", "w3a16", "fp8-block")


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("written", [True, False], ids=["with-files", "before-the-download"])
def test_bytes_counted_are_those_kept(tmp_path: Path, name: str, written: bool) -> None:
    scheme = WEIGHT_ONLY[name]
    stored, _ = write_pair(tmp_path, compressed(scheme), config(scheme))
    kept = bytes_kept(Architecture.of(CheckpointFolder.open(stored)), TorchOps(), TorchOps().store)
    if not written:
        (stored / "model.safetensors").unlink()
    assert Architecture.of(CheckpointFolder.open(stored)).count_bytes(TorchOps(), torch.bfloat16) == kept


def told(folder: Path, scheme: Scheme, module: str, **changed: Any) -> str | None:
    (folder / "config.json").write_text(json.dumps(config(scheme, **changed)))
    found = layouts(CheckpointFolder.open(folder))(module)
    return None if found is None else str(found)


ATTENTION = "language_model.model.layers.3.self_attn.q_proj"
TOWER = "vision_model.encoder.layers.0.attn.qkv"


@pytest.mark.parametrize(
    ("module", "targets", "ignore", "quantised"),
    [
        (ATTENTION, ["Linear"], [], True),
        (ATTENTION, ["Linear"], [ATTENTION], False),
        (ATTENTION, ["Linear"], ["self_attn.q_proj"], True),
        (ATTENTION, ["Linear"], ["re:.*q_proj"], False),
        (ATTENTION, ["Linear"], ["re:q_proj"], True),
        (ATTENTION, ["Linear"], ["re:model.language_model.layers.3"], False),
        (ATTENTION, ["Linear"], ["model.layers.3.self_attn.q_proj"], False),
        (ATTENTION, ["Linear"], ["Linear"], False),
        (ATTENTION, ["re:.*self_attn.*"], [], True),
        (ATTENTION, ["re:.*mlp.*"], [], False),
        (ATTENTION, [ATTENTION], [], True),
        (ATTENTION, ["Embedding"], [], False),
        (ATTENTION, ["Qwen2Attention"], [], False),
        (ATTENTION, [], [], False),
        (TOWER, ["Linear"], ["re:vision_model.*"], False),
        (TOWER, ["Linear"], ["re:.*vision.*"], False),
        (TOWER, ["Linear"], ["model.vision_model.encoder.layers.0.attn.qkv"], False),
        ("mlp1.1", ["Linear"], ["re:mlp1.*"], False),
        ("mlp1.1", ["Linear"], ["mlp1.3"], True),
        ("vision_tower.encoder.layer.0.mlp.fc1", ["Linear"], ["re:model.vision_tower.*"], False),
        ("model.vision_tower.encoder.layer.0.mlp.fc1", ["Linear"], ["re:vision_tower.*"], False),
        ("language_model.lm_head", ["Linear"], ["lm_head"], False),
        ("lm_head", ["Linear"], ["language_model.lm_head"], False),
        ("language_model.output", ["Linear"], ["lm_head"], True),
        ("language_model.model.embed_tokens", ["Linear"], [], False),
        ("language_model.model.embed_tokens", ["Embedding"], [], True),
    ],
)
def test_which_layers_a_description_is_about(
    tmp_path: Path, module: str, targets: list[str], ignore: list[str], quantised: bool
) -> None:
    found = told(tmp_path, WEIGHT_ONLY["w4a16"], module, targets=targets, ignore=ignore)
    assert found == ("int4 in groups of 32, rows in floats" if quantised else None)


def test_a_name_is_before_a_pattern_and_a_pattern_before_a_class(tmp_path: Path) -> None:
    def group(bits: int, *targets: str) -> dict[str, Any]:
        return {"targets": targets, "weights": replace(WEIGHT_ONLY["w4a16"], bits=bits).weights}

    groups = {"a": group(8, "Linear"), "b": group(6, "re:.*attn.*"), "c": group(2, ATTENTION)}
    said = [
        told(tmp_path, WEIGHT_ONLY["w4a16"], module, config_groups=groups)
        for module in (ATTENTION, ATTENTION.replace("q_proj", "k_proj"), LAYER)
    ]
    assert [text and text[:4] for text in said] == ["int2", "int6", "int8"]


def weights(**changed: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHT_ONLY["w4a16"].weights | changed}
    return {"config_groups": {"group_0": group}}


def group(**changed: Any) -> dict[str, Any]:
    found = {"targets": ["Linear"], "weights": WEIGHT_ONLY["w4a16"].weights} | changed
    return {"config_groups": {"group_0": found}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "marlin-24"}, ("format is 'marlin-24'", "pack-quantized")),
        ({"format": "nvfp4-pack-quantized"}, ("format is 'nvfp4-pack-quantized'",)),
        ({"format": None}, ("format is None", "int-quantized")),
        ({"format": "float-quantized"}, ("type is 'int'", "float-quantized")),
        ({"config_groups": None}, ("config_groups must be an object",)),
        ({"config_groups": {"W4A16": ["Linear"]}}, ("W4A16 must be an object",)),
        ({"ignore": "lm_head"}, ("ignore must be a list of names",)),
        ({"ignore": ["re:("]}, ("'re:('", "no regular expression")),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, ("sparsity_config is", "sparse-24-bitmask")),
        ({"transform_config": {"config_groups": {"R1": {}}}}, ("transform_config is",)),
        ({"moe_sparsity_config": {"method": "prune"}}, ("moe_sparsity_config is",)),
        (weights(num_bits=9), ("weights: num_bits is 9", "8")),
        (weights(num_bits="4"), ("weights: num_bits is '4'",)),
        (weights(num_bits=True), ("weights: num_bits is True",)),
        (weights(type="posit"), ("weights: type is 'posit'", "'int', 'float'")),
        (weights(strategy="tensor_group"), ("weights: strategy is 'tensor_group'", "'block'")),
        (weights(group_size=0), ("weights: group_size must be a whole number above 0",)),
        (weights(strategy="block", block_structure=[16]), ("block_structure is [16]", "two whole numbers")),
        (weights(strategy="block", block_structure=[math.inf, 16]), ("block_structure is [inf", "two whole numbers")),
        (weights(strategy="block", block_structure="axb"), ("block_structure is 'axb'", "two whole numbers")),
        (weights(dynamic=True), ("weights: dynamic is True",)),
        (weights(actorder="random"), ("weights: actorder is 'random'",)),
        (weights(simetric=True), ("simetric is not known", "Did you mean symmetric?")),
        (group(output_activations=TENSOR), ("output_activations are given",)),
        (group(weights=None, input_activations=TOKEN), ("input_activations are given without weights",)),
        (group(input_activations={**TOKEN, "strategy": "channel"}), ("input_activations: strategy is 'channel'",)),
        (group(input_activations={**TOKEN, "dynamic": "local"}), ("input_activations: dynamic is 'local'",)),
        (group(input_activations={**FP8_ROWS, "dynamic": False}), ("strategy is 'token'",)),
        (group(tragets=["Linear"]), ("tragets is not known", "Did you mean targets?")),
    ],
)
def test_what_the_config_cannot_say(tmp_path: Path, changed: dict[str, Any], said: tuple[str, ...]) -> None:
    found = config(WEIGHT_ONLY["w4a16"])
    found["quantization_config"] |= changed
    (tmp_path / "config.json").write_text(json.dumps(found))
    refused(InvalidCheckpoint, lambda: layouts(CheckpointFolder.open(tmp_path)), "config.json", *said)


def changed(end: str, change: Any) -> Any:
    """One tensor of the layer, made anew."""
    name = f"{LAYER}.{end}"
    return lambda tensors: tensors.update({name: change(tensors[name])})


def with_value(value: float) -> Any:
    def change(tensor: Tensor) -> Tensor:
        tensor[5, 1] = value
        return tensor

    return change


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is wrong with it."""
    scheme = WEIGHT_ONLY["w4a16-scattered-asymmetric"]
    return write_pair(tmp_path_factory.mktemp("whole"), compressed(scheme), config(scheme))[0]


@pytest.fixture(scope="module")
def whole_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheme = Scheme((1, 0), static=0)
    return write_pair(tmp_path_factory.mktemp("whole"), compressed(scheme), config(scheme, TENSOR))[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_packed"), ("has no tensor", f"{LAYER}.weight")),
        (lambda t: t.pop(f"{LAYER}.weight_scale"), ("has no tensor", f"{LAYER}.weight_scale")),
        (changed("weight_scale", with_value(0.0)), (f"{LAYER}.weight_scale", "0.0 at [5, 1]")),
        (changed("weight_scale", with_value(float("nan"))), (f"{LAYER}.weight_scale", "nan at [5, 1]")),
        (changed("weight_scale", with_value(float("-inf"))), (f"{LAYER}.weight_scale", "-inf at [5, 1]")),
        (changed("weight_scale", lambda x: x[:, :2]), (f"{LAYER}.weight_scale", "[64, 2]", "[64, 3]")),
        (changed("weight_packed", lambda x: x[:, :4]), (f"{LAYER}.weight_packed", "[64, 4]", "[64, 12]")),
        (changed("weight_packed", lambda x: x.float()), (f"{LAYER}.weight_packed", "F32", "I32")),
        (changed("weight_shape", lambda x: x + 1), (f"{LAYER}.weight_shape", "[65, 97]", "[64, 96]")),
        (lambda t: t.pop(f"{LAYER}.weight_zero_point"), ("has no tensor", f"{LAYER}.weight_zero_point")),
        (changed("weight_zero_point", lambda x: x[1:]), (f"{LAYER}.weight_zero_point", "[7, 3]", "[8, 3] or [64, 3]")),
        (changed("weight_g_idx", lambda x: x * 0), (f"{LAYER}.weight_g_idx", "32 inputs to each of 3 groups")),
        (lambda t: t.update({f"{LAYER}.what": torch.ones(1)}), ("no place", f"{LAYER}.what")),
        (lambda t: t.update({"mlp1.1.weight": t["mlp1.1.weight"].char()}), ("mlp1.1.weight", "I8", "F32")),
    ],
)
def test_damaged_layers_are_named(whole: Path, tmp_path: Path, change: Any, said: tuple[str, ...]) -> None:
    stored = shutil.copytree(whole, tmp_path / "stored")
    change_tensors(stored, lambda tensors: (change(tensors), contiguous(tensors)))
    damaged(stored, *said)


def contiguous(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: tensor.contiguous() for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), ("has no tensor", f"{LAYER}.weight_scale")),
        (lambda t: t.pop(f"{LAYER}.input_scale"), ("has no tensor", f"{LAYER}.input_scale")),
        (changed("input_scale", lambda x: x * 0), (f"{LAYER}.input_scale", "0.0 at [0]")),
        (
            lambda t: t.update({f"{LAYER}.input_zero_point": torch.tensor([1013], dtype=torch.int32)}),
            (f"{LAYER}.input_zero_point", "1013", "from -128 to 127"),
        ),
        (changed("input_scale", lambda x: x.repeat(2)), (f"{LAYER}.input_scale", "[2]", "[1] or []")),
        (changed("weight", lambda x: x.float()), ("no place", f"{LAYER}.weight_scale")),
        (changed("weight", lambda x: x.int()), (f"{LAYER}.weight", "I32", "I8")),
        (lambda t: t.update({f"{LAYER}.weight_zero_point": torch.ones(64, 1).char()}), ("weight_zero_point", "zero")),
    ],
)
def test_damaged_layers_of_int8_are_named(whole_int8: Path, tmp_path: Path, change: Any, said: tuple[str, ...]) -> None:
    stored = shutil.copytree(whole_int8, tmp_path / "stored")
    change_tensors(stored, change)
    damaged(stored, *said)


def test_codes_out_of_their_bits_are_named(tmp_path: Path) -> None:
    scheme = WEIGHT_ONLY["naive-int4-groups"]
    stored, _ = write_pair(tmp_path, compressed(scheme), config(scheme))
    change_tensors(stored, changed("weight", lambda x: x.fill_(8)))
    damaged(stored, f"{LAYER}.weight has numbers from 8 to 8", "none outside [-8, 7]", "num_bits is 4")


def test_a_layer_in_floats_that_the_description_does_not_name_is_read(tmp_path: Path) -> None:
    scheme = Scheme((1, 0))
    stored, floats = write_pair(
        tmp_path,
        lambda module, matrix: ({".weight": matrix}, matrix) if module == LAYER else compressed(scheme)(module, matrix),
        config(scheme),
    )
    assert isinstance(form_of(stored, LAYER, 64, 96), Dense)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


def test_a_matrix_in_floats_that_is_said_to_be_quantised_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without anything in `ignore`, tower, projector and head are among the layers that the description means."""
    scheme = WEIGHT_ONLY["w4a16"]
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme, ignore=[]))
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)
    assert f"{stored}/config.json (compressed-tensors) has 11 matrices as quantised that stay floats" in caplog.text
    assert "vision_model.encoder.layers.0.attn.qkv, " in caplog.text


@pytest.mark.parametrize("name", ["w4a16", "fp8-channel"])
def test_a_description_of_files_in_floats(tmp_path: Path, name: str) -> None:
    scheme = WEIGHT_ONLY[name]
    stored, floats = write_pair(tmp_path, compressed(scheme), config(scheme))
    (floats / "config.json").write_bytes((stored / "config.json").read_bytes())
    damaged(floats, "layers.0.self_attn.q_proj is in floats, and so are all matrices", str(floats / "config.json"))


def test_the_format_of_a_group_is_before_that_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in the library, which looks at the format of the whole file for nothing where a group has one."""
    scheme = WEIGHT_ONLY["w4a16"]
    described = config(scheme, format="int-quantized")
    described["quantization_config"]["config_groups"]["group_0"]["format"] = "pack-quantized"
    stored, floats = write_pair(tmp_path, compressed(scheme), described)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)
    assert "format has no effect: it is 'int-quantized', and group_0 is 'pack-quantized', which counts" in caplog.text


@pytest.mark.parametrize(("name", "kind"), [("w4a16", "int-quantized"), ("w8a8", "pack-quantized")])
def test_a_format_that_the_files_do_not_have(tmp_path: Path, name: str, kind: str) -> None:
    scheme = WEIGHT_ONLY.get(name, Scheme((1, 0)))
    stored, _ = write_pair(tmp_path, compressed(scheme), config(scheme, format=kind))
    damaged(stored, "language_model.model.layers.0.self_attn.q_proj.weight")


def test_a_scheme_of_the_cache_is_named_and_its_scales_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheme = WEIGHT_ONLY["w4a16"]
    stored, _ = write_pair(tmp_path, compressed(scheme), config(scheme, kv_cache_scheme=TENSOR))
    names = [f"language_model.model.layers.{layer}.self_attn.{kind}_scale" for layer in (0, 1) for kind in "kv"]
    change_tensors(stored, lambda tensors: tensors.update({name: torch.ones(1) for name in names}))
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(logits(stored)).all()
    assert "kv_cache_scheme has no effect: --kv-cache-dtype" in caplog.text


def test_four_bits_are_kept_as_the_file_has_them(tmp_path: Path) -> None:
    """No copy is made of codes whose order is that of the form."""
    scheme = WEIGHT_ONLY["w4a16"]
    stored, _ = write_pair(tmp_path, compressed(scheme), config(scheme))
    form = form_of(stored, LAYER, 64, 96)
    assert isinstance(form, Grouped)
    assert form.kind is Codes.INT4
    assert torch.equal(form.codes, SafetensorFiles(stored).tensor(f"{LAYER}.weight_packed").view(torch.uint8))


def test_the_description_may_stand_with_the_language_model(tmp_path: Path) -> None:
    """Names are then its own, without what surrounds it."""
    scheme = WEIGHT_ONLY["w4a16"]
    stored, floats = write_pair(tmp_path, compressed(scheme), {})
    described = config(scheme, ignore=["lm_head", "re:vision_model.*", "re:mlp1.*"])
    change_config(stored, llm_config=described)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)
