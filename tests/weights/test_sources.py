"""Sources without a checkpoint's files: views of them, noise in any form, and counts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import SPECS, TWINS, TinySpec, hf_tensors, original_config, write_hf, write_original
from tilewise import LLM, SamplingParams
from tilewise.capacity.files import described
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.sources import RandomSource, ShapeSource, drawn
from tilewise.weights.view import View


class Recorder:
    """A source that remembers the names it was asked for."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.asked: list[str] = []

    def has(self, name: str) -> bool:
        self.asked.append(name)
        return False

    def read(self, name: str, shape: object) -> Tensor:
        self.asked.append(name)
        return torch.arange(24.0).view(6, 4)


def test_view_adds_its_modules_to_the_name() -> None:
    source = Recorder()
    view = View(source).at("layers").at(3).at("mlp")
    view.tensor("up.weight", 6, 4)
    view.has("bias")
    assert source.asked == ["layers.3.mlp.up.weight", "layers.3.mlp.bias"]


def test_random_source_depends_on_seed_and_name_alone() -> None:
    first, again, other = RandomSource(torch.float32), RandomSource(torch.float32), RandomSource(torch.float32, seed=5)
    first.read("something.else", (3,))
    assert torch.equal(first.read("a.weight", (4, 5)), again.read("a.weight", (4, 5)))
    assert not torch.equal(first.read("a.weight", (4, 5)), first.read("b.weight", (4, 5)))
    assert not torch.equal(first.read("a.weight", (4, 5)), other.read("a.weight", (4, 5)))


def test_random_norms_are_around_one() -> None:
    source = RandomSource(torch.bfloat16)
    assert source.read("norm.weight", (1000,)).mean().item() == pytest.approx(1, abs=0.01)
    assert source.read("norm.bias", (1000,)).mean().item() == pytest.approx(0, abs=0.01)
    assert source.read("x.weight", (2,)).dtype == torch.bfloat16


def test_absent_tensors_are_absent() -> None:
    for source in (
        RandomSource(torch.float32, absent=frozenset({"a"})),
        ShapeSource(torch.float32, absent=frozenset("a")),
    ):
        assert not source.has("a")
        assert source.has("b")


def test_shape_source_counts_without_allocating() -> None:
    source = ShapeSource(torch.bfloat16)
    huge = View(source).tensor("x", 10**9, 10**6)
    assert huge.is_meta
    assert (huge.shape, huge.dtype) == ((10**9, 10**6), torch.bfloat16)
    View(source).tensor("y", 7)
    assert source.parameters == 10**15 + 7


@pytest.mark.parametrize("name", SPECS)
def test_counted_parameters_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    architecture = Architecture.of(CheckpointFolder.open(write_hf(tmp_path, spec)))
    stored = sum(tensor.numel() for tensor in hf_tensors(spec).values())
    assert architecture.count_parameters(Ops(), tied=spec.tied) == stored


@pytest.mark.parametrize("name", ["qwen3-300m-head", "internlm2-300m", "phi3-300m", "qwen3moe-300m-head"])
@pytest.mark.parametrize("write", [write_hf, write_original], ids=["hf", "original"])
def test_every_tensor_is_read_once_and_its_bytes_are_told(
    name: str, write: Callable[[Path, TinySpec], Path], tmp_path: Path
) -> None:
    spec, told = SPECS[name], list[int]()
    architecture = Architecture.of(CheckpointFolder.open(write(tmp_path, spec)))
    architecture.load(torch.float32, Ops(), context=16, on_read=told.append)
    assert sum(told) == sum(tensor.nbytes for tensor in hf_tensors(spec).values())


def test_two_random_models_agree(tmp_path: Path) -> None:
    architecture = Architecture.of(CheckpointFolder.open(write_hf(tmp_path, SPECS["qwen2-300m"])))
    pixels = torch.full((1, 56, 56, 3), 90, dtype=torch.uint8)
    first, second = (
        architecture.build(RandomSource(torch.float32), Ops(), context=16).encoder(pixels).rows for _ in range(2)
    )
    assert torch.equal(first, second)


def shape_of(kind: Codes, shifts: bool = False) -> Grouped:
    codes = torch.empty(64, 96 * kind.bits // 8, dtype=torch.uint8, device="meta")
    scales = torch.empty(64, 3, device="meta")
    return Grouped(kind, codes, scales, torch.empty_like(scales) if shifts else None, 32)


FORMS: dict[str, Form] = {
    "floats": Dense(torch.empty(64, 96, device="meta")),
    "int8": Int8(torch.empty(64, 96, dtype=torch.int8, device="meta"), torch.empty(64, device="meta")),
    **{kind.name: shape_of(kind, shifts=kind.name.startswith("UINT")) for kind in Codes},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_numbers_of_all_forms_are_as_far_from_zero_as_asked(form: Form) -> None:
    found = drawn(form, torch.Generator().manual_seed(3), torch.float32, scale=0.5)
    again = drawn(form, torch.Generator().manual_seed(3), torch.float32, scale=0.5)
    numbers = found.dequantised()
    assert numbers.shape == (64, 96)
    assert numbers.isfinite().all()
    assert numbers.std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(numbers.mean().item()) < 0.06  # codes of 4 bits are not centred
    assert torch.equal(numbers, again.dequantised())


@pytest.mark.parametrize("kind", [Codes.UINT4, Codes.UINT8])
def test_shifts_are_those_of_whole_zero_points(kind: Codes) -> None:
    found = drawn(FORMS[kind.name], torch.Generator(), torch.float32)
    assert isinstance(found, Grouped)
    assert found.shifts is not None
    zeros = (found.shifts / -found.scales).round()
    assert torch.equal(-zeros * found.scales, found.shifts)


def test_numbers_of_floats_on_the_cpu_stay_what_they_were() -> None:
    generator = torch.Generator().manual_seed(4 + zlib.crc32(b"a.weight"))
    expected = torch.randn(4, 5, generator=generator) * 0.02
    assert torch.equal(RandomSource(torch.float32, seed=4).read("a.weight", (4, 5)), expected)


@pytest.fixture
def quantised_folder(tmp_path: Path) -> Path:
    """A folder that says it has codes of 4 bits; there are no weights."""
    spec = TWINS["InternVL3-8B"]
    write_original(tmp_path, spec)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(described(original_config(spec, "bfloat16"), "w4a16")))
    return tmp_path


def test_dummy_weights_have_the_forms_of_the_checkpoint(quantised_folder: Path) -> None:
    source = Architecture.of(CheckpointFolder.open(quantised_folder)).noise(torch.bfloat16, torch.device("cpu"))
    decoder = source.linear("language.model.layers.0.mlp.gate_proj", 52, 36, bias=False)
    tower = source.linear("vision.layers.0.mlp.fc1", 44, 24, bias=True)
    assert isinstance(decoder.matrix, Grouped)
    assert decoder.matrix.kind.bits == 4
    assert isinstance(tower.matrix, Dense)


def test_an_engine_answers_with_dummy_weights_of_four_bits(quantised_folder: Path) -> None:
    with LLM(str(quantised_folder), load_format="dummy", max_model_len=128, max_num_seqs=1) as llm:
        output = llm.generate({"prompt_token_ids": [20, 30]}, SamplingParams(max_tokens=3, ignore_eos=True))[0]
    assert len(output.outputs[0].token_ids) == 3
