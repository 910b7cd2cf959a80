"""ModelSlim: the kinds of layers that a description can name, both layouts of files, and what is wrong with some.

Files are written here number by number with numpy, after the source of msmodelslim's savers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.tiny import SPECS, TinySpec, write_original
from tests.weights.broken import damaged, load, refused
from tests.weights.hub_server import HubServer
from tests.weights.quantization.written import SPEC
from tilewise.errors import InvalidCheckpoint
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Form, Grouped, Int8
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Store, Use, Weight, plain_weight
from tilewise.weights.checkpoint import find_model
from tilewise.weights.checkpoint_source import FileTensors
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import layouts_of
from tilewise.weights.quantization.stored import StoredModule

MOE = replace(SPECS["qwen3moe-300m-head"])
DESCRIPTION, WEIGHTS = "quant_model_description.json", "quant_model_weights.safetensors"
Q = "language_model.model.layers.1.self_attn.q_proj"
QKV = "vision_model.encoder.layers.0.attn.qkv"
STATIC = ("W8A8", "W8A8_MIX")

Kind = Callable[[str], str | None]
"""A module -> its type in the description, None = in floats."""


def everywhere(kind: str) -> Kind:
    """All matrices of the decoder's layers, but for routers."""
    return lambda module: kind if "language_model.model.layers" in module and module[-9:] != ".mlp.gate" else None


def as_published(module: str) -> str | None:
    """As `lab_practice/internvl3_5*` of msmodelslim has it: what stays in floats there does so here."""
    if "vision_model" in module:
        return "W8A8" if ".attn." in module else None
    if "language_model.model.layers" not in module or module.endswith((".mlp.gate", "layers.0.mlp.down_proj")):
        return None
    return "W8A8_DYNAMIC" if ".experts." in module or module.endswith("down_proj") else "W8A8"


def rounded(matrix: np.ndarray, bits: int, group: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], and float32 scales and offsets [out, groups]: a number is (code - offset) * scale."""
    parts, most = matrix.reshape(len(matrix), -1, group), 2 ** (bits - 1) - 1
    low, high = np.minimum(parts.min(2), 0), np.maximum(parts.max(2), 0)
    if symmetric:
        scales, offsets = np.maximum(-low, high) / most, np.zeros_like(low)
    else:
        scales = (high - low) / (2**bits - 1)
        offsets = np.round(-low / scales) - most - 1
    scales = scales.astype(np.float32)
    codes = np.clip(np.round(parts / scales[..., None]) + offsets[..., None], -most - 1, most)
    return codes.reshape(matrix.shape).astype(np.int8), scales, offsets.astype(np.float32)


def nibbles(codes: np.ndarray, axis: int) -> np.ndarray:
    """Two codes a byte, neighbours along an axis, the first in the low half."""
    first, second = (np.take(codes, range(start, codes.shape[axis], 2), axis) for start in (0, 1))
    return ((first & 15) | (second << 4)).astype(np.int8)


def float_codes(kind: str, matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Layers of E4M3 with a scale for each output, and of the MX kinds, with an exponent for each 32 inputs."""
    if "MX" not in kind:
        scales = matrix.abs().amax(1, keepdim=True) / 448
        codes = (matrix / scales).to(torch.float8_e4m3fn)
        ends = {"weight": codes, "weight_scale": scales, "weight_offset": torch.zeros_like(scales)}
        return ends, codes.float() * scales
    blocks = matrix.view(len(matrix), -1, 32)
    exponents = blocks.abs().amax(2).log2().floor() - (2 if "W4" in kind else 8)
    parts = blocks / 2 ** exponents[..., None]
    if "W4" in kind:
        halves = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        numbers = torch.cat((halves, -halves))
        found = (parts[..., None] - numbers).abs().argmin(-1)
        rounded_parts, codes = numbers[found], torch.from_numpy(nibbles(found.flatten(1).numpy(), 1)).view(torch.uint8)
    else:
        codes = parts.clamp(-448, 448).to(torch.float8_e4m3fn).flatten(1)
        rounded_parts = codes.float().view_as(parts)
    meant = (rounded_parts * 2 ** exponents[..., None]).flatten(1)
    return {"weight": codes, "weight_scale": (exponents + 127).to(torch.uint8)}, meant


class Writer:
    """Writes one kind of layer after the other, and what numbers their codes stand for."""

    def __init__(
        self, group: int = 0, version: str | None = "1.0.0", symmetric: bool = True, wide: bool = False
    ) -> None:
        self.group, self.version, self.symmetric, self.wide = group, version, symmetric, wide
        """`wide`: scales of products as int64, as for models in float16."""

    def layer(self, kind: str, matrix: Tensor, bias: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        if "FP" in kind:
            return float_codes(kind, matrix)
        floats, bits = matrix.numpy(), 4 if kind.startswith("W4") else 8
        group = self.group if self.group and kind not in ("W8A8", "W8A8_MIX", "W8A8_DYNAMIC") else floats.shape[1]
        codes, scales, offsets = rounded(floats, bits, group, self.symmetric or "A8" in kind)
        found: dict[str, np.ndarray] = {"weight": self._packed(kind, codes, group)}
        meant = (codes.reshape(len(codes), -1, group) - offsets[..., None]) * scales[..., None]
        if kind != "W8A8":
            found |= {"weight_scale": scales, "weight_offset": offsets}
        if kind in STATIC:
            found |= self._static(codes, scales[:, 0], bias)
        if kind == "W4A8_DYNAMIC":
            found |= self._twice(scales) if group < floats.shape[1] else {}
            if self.version:
                found["scale_bias"] = np.ones((len(codes), 1), dtype=np.float32)
        stored = {end: torch.from_numpy(np.ascontiguousarray(array)) for end, array in found.items()}
        if "weight_scale_second" in stored:
            scales = (stored["weight_scale"] * stored["weight_scale_second"]).numpy()
            meant = codes.reshape(len(codes), -1, group) * scales[..., None]
        return stored, torch.from_numpy(meant.astype(np.float32).reshape(codes.shape))

    def _packed(self, kind: str, codes: np.ndarray, group: int) -> np.ndarray:
        if not kind.startswith("W4") or self.version is None:
            return codes
        return nibbles(codes, 1 if kind == "W4A16" and group == codes.shape[1] else 0)

    def _static(self, codes: np.ndarray, scales: np.ndarray, bias: Tensor | None) -> dict[str, np.ndarray]:
        row_scale, row_offset = np.float32([24 / 255]), np.float32([-11])
        products = row_scale * scales
        floats = np.zeros(len(codes), dtype=np.float32) if bias is None else bias.numpy()
        quant_bias = np.round(floats / products - codes.astype(np.float32).sum(1) * row_offset)
        stored = products.view(np.int32).astype(np.int64) if self.wide else products
        return {
            "quant_bias": quant_bias.astype(np.int32),
            "deq_scale": stored,
            "input_scale": row_scale,
            "input_offset": row_offset,
        }

    def _twice(self, scales: np.ndarray) -> dict[str, np.ndarray]:
        """A first scale of each output, and a second of each group for what it leaves."""
        first = scales.max(1, keepdims=True)
        zeros = np.zeros_like(scales)
        return {
            "weight_scale": first,
            "weight_offset": zeros[:, :1],
            "weight_scale_second": scales / first,
            "weight_offset_second": zeros,
        }


def write_pair(folder: Path, kind_of: Kind, writer: Writer = Writer(), spec: TinySpec = SPEC) -> tuple[Path, Path]:
    """The twin as ModelSlim writes it, and the same with the numbers that its codes stand for, in floats."""
    stored, floats = write_original(folder / "stored", spec), write_original(folder / "floats", spec)
    tensors = load_file(stored / "model.safetensors")
    written, meant, kinds = dict(tensors), dict(tensors), dict[str, Any]()
    for name, tensor in tensors.items():
        kinds.setdefault(name, "FLOAT")
        module = name.removesuffix(".weight")
        kind = kind_of(module) if tensor.dim() == 2 and name != module else None
        if kind is not None:
            ends, meant[name] = writer.layer(kind, tensor, tensors.get(f"{module}.bias"))
            written |= {f"{module}.{end}": found for end, found in ends.items()}
            kinds |= {f"{module}.{end}": kind for end in ends}
    rest = {"model_quant_type": "W8A8", "metadata": {}, "group_size": writer.group, "optional": {"quarot": {"map": {}}}}
    if writer.version:
        rest["version"] = writer.version
    save_file(written, stored / WEIGHTS)
    (stored / "model.safetensors").unlink()
    (stored / DESCRIPTION).write_text(json.dumps(kinds | rest))
    save_file({name: tensor.contiguous() for name, tensor in meant.items()}, floats / "model.safetensors")
    return stored, floats


def logits(folder: Path, spec: TinySpec = SPEC) -> Tensor:
    return all_logits(load(folder), prompt_of(spec, (1,)), random_tiles(spec, 1), spec.image_id)


def form_of(folder: Path, module: str, inputs: int) -> Form:
    layouts = layouts_of(CheckpointFolder.open(folder))
    assert layouts is not None
    layout = layouts(module)
    assert layout is not None
    tensors = FileTensors(SafetensorFiles(folder), lambda _: None, described=True)
    return layout.read(StoredModule(tensors, module), None, inputs)


def change(folder: Path, action: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    description = json.loads((folder / DESCRIPTION).read_text())
    action(tensors, description)
    save_file(tensors, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description))


ROUNDED = {
    "W8A16": ("W8A16", Writer()),
    "W8A16 with offsets": ("W8A16", Writer(symmetric=False)),
    "W8A16 in groups": ("W8A16", Writer(group=16, symmetric=False)),
    "W4A16": ("W4A16", Writer()),
    "W4A16 with offsets": ("W4A16", Writer(symmetric=False)),
    "W4A16 in groups": ("W4A16", Writer(group=16)),
    "W4A16 of older files": ("W4A16", Writer(group=16, version=None)),
    "W4A8_DYNAMIC": ("W4A8_DYNAMIC", Writer()),
    "W4A8_DYNAMIC in groups": ("W4A8_DYNAMIC", Writer(group=16)),
    "W4A8_DYNAMIC of older files": ("W4A8_DYNAMIC", Writer(group=16, version=None)),
    "WFP8AFP8_DYNAMIC": ("WFP8AFP8_DYNAMIC", Writer()),
    "W8A8_MXFP8": ("W8A8_MXFP8", Writer()),
    "W4A8_MXFP": ("W4A8_MXFP", Writer()),
    "W4A4_MXFP4": ("W4A4_MXFP4", Writer()),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_rounded_weights_are_the_numbers_that_codes_stand_for(tmp_path: Path, case: str) -> None:
    kind, writer = ROUNDED[case]
    stored, floats = write_pair(tmp_path, everywhere(kind), writer)
    meant = load_file(floats / "model.safetensors")[f"{Q}.weight"]
    form = form_of(stored, Q, meant.shape[1])
    assert isinstance(form, Grouped)
    assert form.kind.bits == (4 if kind.startswith("W4") else 8)
    close = {"atol": 0.0, "rtol": 0.0} if writer.symmetric else {"atol": 2e-7, "rtol": 2e-6}
    torch.testing.assert_close(form.dequantised(), meant, **close)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "int64"])
def test_static_layers_sum_exactly_and_have_the_bias_within(tmp_path: Path, wide: bool) -> None:
    stored, _ = write_pair(tmp_path, everywhere("W8A8"), Writer(wide=wide))
    tensors = {name.removeprefix(f"{Q}."): tensor for name, tensor in load_file(stored / WEIGHTS).items() if Q in name}
    weight, scales = tensors["weight"].numpy().astype(np.int64), tensors["deq_scale"].numpy()
    form = form_of(stored, Q, weight.shape[1])
    assert isinstance(form, Int8)
    x = 4 * torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(5))
    rows = np.clip(np.round(x.numpy() / tensors["input_scale"].numpy()) - 11, -128, 127).astype(np.int64)
    sums = rows @ weight.T + tensors["quant_bias"].numpy()
    products = scales.astype(np.int32).view(np.float32) if wide else scales
    expected = torch.from_numpy(sums.astype(np.float32) * products)
    assert torch.equal(plain_weight([form], None).apply(x, Ops()), expected)
    near = x @ form.dequantised().T + tensors["bias"]
    assert (expected - near).abs().max() < 0.02 * near.abs().max()


@pytest.mark.parametrize("kind", ["W8A8_DYNAMIC", "W8A8_MIX"])
def test_dynamic_layers_round_rows_as_they_come(tmp_path: Path, kind: str) -> None:
    stored, floats = write_pair(tmp_path, everywhere(kind))
    meant = load_file(floats / "model.safetensors")[f"{Q}.weight"]
    form = form_of(stored, Q, meant.shape[1])
    assert isinstance(form, Int8)
    assert form.static is None
    assert torch.equal(form.dequantised(), meant)
    near = logits(floats)
    assert (logits(stored) - near).abs().max() < 0.1 * near.abs().max()


@pytest.mark.parametrize("spec", [SPEC, MOE], ids=["dense", "experts"])
def test_a_mix_as_published(tmp_path: Path, spec: TinySpec, caplog: pytest.LogCaptureFixture) -> None:
    """Rows are rounded, so logits are only near those of the floats, and another expert may be taken for a token."""
    stored, floats = write_pair(tmp_path, as_published, spec=spec)
    with caplog.at_level("INFO", logger="tilewise"):
        found, near = logits(stored, spec), logits(floats, spec)
    assert "vision: 8 in int8 (rows by calibration), 4 in floats; projector: 2 in floats" in caplog.text
    assert torch.nn.functional.cosine_similarity(found, near, dim=1).mean() > 0.99


def test_parts_of_a_fused_layer_are_slices_of_the_whole(tmp_path: Path) -> None:
    stored, _ = write_pair(tmp_path, as_published)
    found, size = dict[str, Tensor](), SPEC.vision_hidden
    architecture = Architecture.of(CheckpointFolder.open(stored))
    architecture.load(torch.float32, Ops(), 64, watch=found.__setitem__)
    whole = load_file(stored / WEIGHTS)
    for number, letter in enumerate("qkv"):
        for end, theirs in (("", "weight"), (".1", "deq_scale"), (".2", "quant_bias")):
            expected = whole[f"{QKV}.{theirs}"][number * size : (number + 1) * size]
            assert torch.equal(found[f"vision.layers.0.attn.{letter}_proj.weight{end}"], expected)
        assert f"vision.layers.0.attn.{letter}_proj.bias" not in found


@pytest.mark.parametrize("kind", ["W8A8", "W8A8_DYNAMIC", "W8A16", "W4A16", "W4A8_DYNAMIC"])
def test_slices_of_a_form_are_those_of_its_numbers(tmp_path: Path, kind: str) -> None:
    stored, _ = write_pair(tmp_path, everywhere(kind), Writer(group=16))
    form = form_of(stored, Q, SPEC.hidden)
    whole = form.dequantised()
    assert torch.equal(form.rows(slice(8, 24)).dequantised(), whole[8:24])
    assert torch.equal(form.columns(16, 40).dequantised(), whole[:, 16:56])


@pytest.mark.parametrize(
    "case", ["as published", "W8A8_MIX", *(case for case, (_, writer) in ROUNDED.items() if writer.symmetric)]
)
def test_what_is_kept_is_known_before_there_are_weights(tmp_path: Path, case: str) -> None:
    kind, writer = ROUNDED.get(case, (case, Writer()))
    stored, _ = write_pair(tmp_path, as_published if case == "as published" else everywhere(kind), writer)
    ops, architecture = Ops(), Architecture.of(CheckpointFolder.open(stored))

    def noting(sizes: list[int]) -> Store:
        def store(parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
            weight = ops.store(parts, bias, use)
            sizes.append(weight.nbytes)
            return weight

        return store

    kept, counted, early = list[int](), list[int](), list[int]()
    architecture.load(torch.float32, ops, 64, store=noting(kept))
    with_files = architecture.count_bytes(ops, torch.float32, noting(counted))
    assert counted == kept
    (stored / WEIGHTS).unlink()
    again = Architecture.of(CheckpointFolder.open(stored))
    assert again.count_bytes(ops, torch.float32, noting(early)) == with_files < again.count_parameters(ops) * 4
    assert early == kept


# Where the files are


def in_parts(folder: Path, stem: str, index: bool = True) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, places = sorted(tensors), dict[str, str]()
    for number in (1, 2):
        file = f"{stem}-0000{number}-of-00002.safetensors"
        mine = names[number - 1 :: 2]
        save_file({name: tensors[name] for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (folder / f"{stem}.safetensors.index.json").write_text(text)


def older_names(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "quant_model_weight_w8a8.safetensors")
    (folder / DESCRIPTION).rename(folder / "quant_model_description_w8a8.json")


def older_names_in_parts(folder: Path) -> None:
    in_parts(folder, "quant_model_weight_w8a8")
    (folder / DESCRIPTION).rename(folder / "quant_model_description_w8a8.json")


def in_a_copy_of_the_model(folder: Path) -> None:
    write_original(folder, SPEC, shards=3)


def with_the_rotation(folder: Path) -> None:
    (folder / "optional").mkdir()
    save_file({"global_rotation": torch.eye(4)}, folder / "optional" / "quarot.safetensors")


PLACES: dict[str, Callable[[Path], None]] = {
    "in parts": lambda folder: in_parts(folder, "quant_model_weights"),
    "older names": older_names,
    "older names in parts": older_names_in_parts,
    "parts without an index": lambda folder: in_parts(folder, "quant_model_weights", index=False),
    "in a copy of the model": in_a_copy_of_the_model,
    "with the rotation that was folded in": with_the_rotation,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("modelslim"), as_published)[0]


@pytest.mark.parametrize("place", PLACES)
def test_files_are_found_under_the_names_that_tools_give_them(written: Path, tmp_path: Path, place: str) -> None:
    folder = shutil.copytree(written, tmp_path / "copy")
    PLACES[place](folder)
    assert torch.equal(logits(folder), logits(written))


@pytest.mark.parametrize("place", [place for place in PLACES if "rotation" not in place])
def test_only_the_weights_that_are_described_are_fetched(
    written: Path, tmp_path: Path, hub: HubServer, place: str
) -> None:
    folder = shutil.copytree(written, tmp_path / "copy")
    PLACES[place](folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("tiny/model-w8a8", files | {"optional/quarot.safetensors": b"not needed"})
    find_model("tiny/model-w8a8", None, "huggingface", None, None)
    assert hub.fetched() == sorted(name for name in files if not name.startswith("model-"))


def test_a_missing_part_is_named(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written, tmp_path / "copy")
    in_parts(folder, "quant_model_weights")
    (folder / "quant_model_weights-00002-of-00002.safetensors").unlink()
    refused(InvalidCheckpoint, lambda: load(folder), "quant_model_weights-00002-of-00002", f"{WEIGHTS}.index.json")


def test_scales_for_a_kv_cache_are_left_alone(written: Path, tmp_path: Path) -> None:
    folder, name = shutil.copytree(written, tmp_path / "copy"), Q.replace("q_proj", "k_proj")
    ends = (f"{name}.kv_cache_scale", f"{name}.kv_cache_offset")
    more = {"kv_cache_type": "C8", **dict.fromkeys(ends, "C8")}
    change(folder, lambda tensors, kinds: (tensors.update({end: torch.ones(8) for end in ends}), kinds.update(more)))
    assert torch.equal(logits(folder), logits(written))


# What is wrong


def put(end: str, tensor: Callable[[Tensor], Tensor], module: str = Q) -> Callable[[Any, Any], Any]:
    name = f"{module}.{end}"
    return lambda tensors, kinds: tensors.update({name: tensor(tensors[name])})


def describe(**kinds: Any) -> Callable[[Any, Any], Any]:
    return lambda tensors, description: description.update({name.replace("__", "."): kinds[name] for name in kinds})


def first(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat((tensor.new_tensor([value]), tensor[1:]))


DOWN = "language_model.model.layers.1.mlp.down_proj"
WRONG: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "zero scale": (put("deq_scale", first(0)), (f"{Q}.deq_scale", "0.0")),
    "NaN scale": (put("deq_scale", first(float("nan"))), (f"{Q}.deq_scale", "nan")),
    "scale of rows": (put("input_scale", first(-1)), (f"{Q}.input_scale", "-1.0")),
    "half an offset": (put("input_offset", first(0.5)), (f"{Q}.input_offset", "0.5", "-128 to 127")),
    "offset too large": (put("input_offset", first(200)), (f"{Q}.input_offset", "200.0")),
    "shape of scales": (put("deq_scale", lambda x: x[1:].clone()), (f"{Q}.deq_scale", "[63]", "[64]")),
    "int64 that is no float": (put("deq_scale", lambda x: torch.full((64,), 2**40)), (f"{Q}.deq_scale", "32 bits")),
    "offset of weights": (put("weight_offset", lambda x: x + 3, DOWN), (f"{DOWN}.weight_offset", "3.0")),
    "scales in uneven groups": (
        put("weight_scale", lambda x: x.repeat(1, 7), DOWN),
        (f"{DOWN}.weight_scale", "7 scales"),
    ),
    "type of weights": (put("weight", lambda x: x.float()), (f"{Q}.weight", "F32", "I8")),
    "no quant_bias": (lambda tensors, kinds: tensors.pop(f"{Q}.quant_bias"), (f"{Q}.quant_bias",)),
    "no weight": (lambda tensors, kinds: tensors.pop(f"{Q}.weight"), (f"{Q}.weight", "W8A8", DESCRIPTION)),
    "not described": (lambda tensors, kinds: kinds.pop(f"{Q}.weight"), (f"{Q}.weight", "I8")),
    "described as floats": (lambda tensors, kinds: kinds.update({f"{Q}.weight": "FLOAT"}), (f"{Q}.weight", "I8")),
    "unknown type": (
        lambda tensors, kinds: kinds.update({f"{Q}.weight": "W4A4_FLATQUANT_DYNAMIC"}),
        (DESCRIPTION, f"{Q}.weight", "W4A4_FLATQUANT_DYNAMIC", "W8A8_DYNAMIC"),
    ),
    "a type that is none": (lambda tensors, kinds: kinds.update({f"{Q}.weight": 8}), (f"{Q}.weight", "8")),
    "rotations while it runs": (describe(metadata={"quarot": {"max_tp_size": 4}}), ("metadata.quarot", "rotations")),
    "a group that is none": (describe(group_size="many"), (DESCRIPTION, "group_size", "'many'")),
    "an empty description": (lambda tensors, kinds: kinds.clear(), (DESCRIPTION, "no weights")),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(written: Path, tmp_path: Path, case: str) -> None:
    folder, (action, said) = shutil.copytree(written, tmp_path / "copy"), WRONG[case]
    change(folder, action)
    message = refused(InvalidCheckpoint, lambda: load(folder), *said, str(folder))
    assert ".json" in message or ".safetensors" in message


def test_codes_beyond_four_bits(tmp_path: Path) -> None:
    stored, _ = write_pair(tmp_path, everywhere("W4A16"), Writer(version=None))
    change(stored, put("weight", lambda tensor: tensor + 9))
    damaged(stored, f"{Q}.weight", "-8 to 7")


def test_groups_other_than_described(tmp_path: Path) -> None:
    stored, _ = write_pair(tmp_path, everywhere("W8A16"), Writer(group=16))
    change(stored, describe(group_size=32))
    damaged(stored, ".weight_scale", "4 scales for 64 inputs", "groups of 32")


def test_a_config_that_promises_a_description(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"model_type": "W8A8"}}))
    (folder / DESCRIPTION).unlink()
    refused(InvalidCheckpoint, lambda: load(folder), DESCRIPTION, "quant_method")
