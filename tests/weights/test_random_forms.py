"""Random weights in the forms of quantised checkpoints."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch

from tests.tiny import TWINS, original_config, write_original
from tilewise import LLM, SamplingParams
from tilewise.capacity.published import described
from tilewise.models.load import Architecture
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.random_forms import drawn
from tilewise.weights.sources import RandomSource


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
