"""Every published size from its config.json alone: parameters against the published numbers, tokens a tile, shapes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from tests.published_sizes import PUBLISHED
from tests.tiny import full_size, original_config
from tilewise.inputs.media.tiling import choose_grid, count_tiles
from tilewise.inputs.spec import InputSpec, tokens_per_tile
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.config import ExpertConfig
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.twin.tensors import flash_shapes
from tilewise.twin.vocabularies import VOCABULARIES, tokenizer
from tilewise.weights.family import MEMBERS, FamilyMember
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.sources import dense
from tilewise.weights.view import StoredLinear

every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=lambda member: member.name)


@pytest.mark.parametrize("name", [name for name, sizes in PUBLISHED.items() if sizes.billions])
def test_parameters_are_those_published(name: str) -> None:
    published = PUBLISHED[name].billions
    assert published is not None
    assert parameters_of(name) == pytest.approx(published * 1e9, rel=0.01, abs=rounding(published))


@pytest.mark.parametrize("name", [name for name, sizes in PUBLISHED.items() if sizes.parts])
def test_parameters_of_the_parts_are_those_published(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name].parts
    assert published is not None
    architecture, counts = architecture_of(name, tmp_path), PartSource()
    architecture.build(counts, Ops(), context=1)
    assert counts.parameters.total() == parameters_of(name)
    for part, billions in zip(("vision", "language"), published, strict=True):
        assert counts.parameters[part] == pytest.approx(billions * 1e9, rel=0.01, abs=rounding(billions))


def rounding(billions: float) -> float:
    """Half of the last digit given: 0.05 billion for 2.3."""
    return 0.5 * 10 ** (9 - len(str(billions).partition(".")[2]))


@pytest.mark.parametrize("name", [name for name, sizes in PUBLISHED.items() if sizes.gigabytes])
def test_weights_take_the_bytes_published(name: str) -> None:
    """Within 7 %, since the pages mix GB and GiB."""
    size = PUBLISHED[name].gigabytes
    assert size is not None
    assert 2 * parameters_of(name) == pytest.approx(size * 1e9, rel=0.07)


def test_every_size_has_a_published_number_to_meet() -> None:
    assert all(sizes.billions or sizes.gigabytes for sizes in PUBLISHED.values())
    assert PUBLISHED.keys() == {member.name for member in MEMBERS.values() if not member.flash}


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.flash])
def test_flash_adds_no_more_than_its_router_and_projector(name: str) -> None:
    """Its files hold stages of the router that are not in use."""
    added = sum(math.prod(shape) for shape in flash_shapes(full_size(MEMBERS[name])).values())
    ordinary, found = parameters_of(name.removesuffix("-Flash")), parameters_of(name)
    assert ordinary <= found <= ordinary + added


def test_a_tied_head_is_counted_once(tmp_path: Path) -> None:
    architecture = architecture_of("InternVL3_5-1B", tmp_path)
    untied, tied = (architecture.count_parameters(Ops(), tied=tied) for tied in (False, True))
    assert untied - tied == 151936 * 1024


@every_member
def test_a_tile_is_256_tokens_and_thirteen_are_3328(member: FamilyMember, tmp_path: Path) -> None:
    folder = write_config(tmp_path, member.name)
    assert tokens_per_tile(folder) == Architecture.of(folder).config.tokens_per_tile == 256
    theirs = tokenizer(VOCABULARIES[member.language.series.tokenizer])
    spec = InputSpec.of(folder, Tokenizer(theirs.to_str()))
    assert count_tiles(choose_grid(448 * 4, 448 * 3, spec.tiling), spec.tiling.thumbnail) == 13
    assert spec.tokens_per_tile == 256


@every_member
def test_shapes_are_read_from_the_config(member: FamilyMember, tmp_path: Path) -> None:
    config, text = architecture_of(member.name, tmp_path).config, member.language
    backbone, decoder = text.series.backbone, config.decoder
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (text.heads, text.kv_heads, text.head_dim)
    assert decoder.qkv_bias == (backbone in ("qwen2", "gpt_oss"))
    assert decoder.head_norm == (backbone in ("qwen3", "qwen3_moe"))
    assert decoder.output_bias == (backbone == "gpt_oss")
    assert decoder.window == text.series.window
    experts = text.experts and ExpertConfig(text.experts.count, text.experts.per_token, text.inner)
    assert decoder.experts == experts
    assert (decoder.rope.theta, decoder.rope.kind) == (text.series.rope.theta, text.series.rope.kind)
    assert decoder.rope.factor == text.series.rope.factor
    assert (config.vision.norm, config.vision.qkv_bias, config.vision.qk_norm) == (
        ("rms_norm", False, True) if member.vision == "6b" else ("layer_norm", True, False)
    )
    assert (config.shuffle_block, config.shuffle_version) == (2, "v2")


@dataclass
class PartSource:
    """Shapes without data, counted by the part of the model they belong to."""

    dtype: torch.dtype = torch.bfloat16
    parameters: Counter[str] = field(default_factory=Counter)

    def has(self, name: str) -> bool:
        return True

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.parameters[name.partition(".")[0]] += math.prod(shape)
        return torch.empty(*shape, dtype=self.dtype, device="meta")

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        return dense(self, module, outputs, inputs, bias)


@cache
def parameters_of(name: str) -> int:
    with TemporaryDirectory() as folder:
        return architecture_of(name, Path(folder)).count_parameters(Ops())


def architecture_of(name: str, folder: Path) -> Architecture:
    return Architecture.of(write_config(folder, name))


def write_config(folder: Path, name: str) -> CheckpointFolder:
    """config.json as the original checkpoint has it, without the keys that say nothing."""
    config = original_config(full_size(MEMBERS[name]), "bfloat16")
    (folder / "config.json").write_text(json.dumps(config))
    return CheckpointFolder.open(folder)
