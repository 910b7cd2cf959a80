"""What backbones make of packed tensors, and the configs that they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.driving import all_logits, load, prompt_of, random_tiles
from tests.tiny import ARCHITECTURES, SPECS, hf_config, hf_tensors, original_config, write_hf
from tests.weights.broken import change_config, refused
from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones import all_backbones
from tilewise.models.backbones.fused import packed
from tilewise.models.backbones.qwen3_moe import ExpertMLP
from tilewise.models.config import ExpertConfig
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.ops import Ops, TorchOps
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import TensorRef
from tilewise.weights.sources import dense
from tilewise.weights.view import StoredLinear, View

CPU = torch.device("cpu")
LLAMA, INTERNLM2, INTERNLM3 = SPECS["llama-6b"], SPECS["internlm2-300m"], SPECS["internlm3-300m-head"]
PHI3, MOE = SPECS["phi3-300m"], SPECS["qwen3moe-300m-head"]


def architecture(folder: Path, config: dict[str, Any]) -> Architecture:
    (folder / "config.json").write_text(json.dumps(config))
    return Architecture.of(CheckpointFolder.open(folder))


def test_tiny_checkpoints_cover_every_backbone() -> None:
    known = {backbone.model_type: backbone.architecture for backbone in all_backbones()}
    assert known == ARCHITECTURES
    assert {spec.decoder for spec in SPECS.values()} == known.keys()


class Numbered:
    """A stored wqkv whose rows say which they are."""

    def __init__(self, count: int) -> None:
        self.data = torch.arange(count)[:, None] * torch.ones(1, 3, dtype=torch.int64)

    def get_shape(self) -> list[int]:
        return list(self.data.shape)

    def __getitem__(self, index: int | slice) -> Tensor:
        return self.data[index]


@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 8), (32, 8), (48, 8), (4, 4), (3, 1)])
def test_each_head_of_wqkv_is_found_in_its_group(heads: int, kv_heads: int, tmp_path: Path) -> None:
    """Query head h is number h mod G of group h div G; the last two heads of a group are its key and its value."""
    config = architecture(tmp_path, original_config(INTERNLM2)).config.decoder
    width, group = 4, heads // kv_heads
    config = dataclasses.replace(config, num_heads=heads, num_kv_heads=kv_heads, head_dim=width)
    stored = Numbered((heads + 2 * kv_heads) * width)
    expected = {
        "q": [(head // group) * (group + 2) + head % group for head in range(heads)],
        "k": [number * (group + 2) + group for number in range(kv_heads)],
        "v": [number * (group + 2) + group + 1 for number in range(kv_heads)],
    }
    for letter, places in expected.items():
        found = TensorRef("wqkv", rows=packed(config, letter)).read(stored)
        assert found.shape == (len(places) * width, 3)
        assert found[:, 0].tolist() == [place * width + row for place in places for row in range(width)]


@pytest.mark.parametrize("spec", [INTERNLM2, INTERNLM3], ids=lambda spec: spec.decoder)
def test_internlm_is_llama_in_the_native_format(spec: Any, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    (tmp_path / "original").mkdir()
    native = architecture(tmp_path / "native", hf_config(spec))
    original = architecture(tmp_path / "original", original_config(spec))
    assert native.backbone.model_type == "llama"
    assert original.backbone.model_type == spec.decoder
    assert native.config.decoder == original.config.decoder


@pytest.mark.parametrize(
    ("spec", "change", "names"),
    [
        (INTERNLM3, {"bias": True}, ("bias",)),
        (MOE, {"mlp_only_layers": [1]}, ("mlp_only_layers",)),
        (MOE, {"decoder_sparse_step": 2}, ("decoder_sparse_step",)),
        (MOE, {"num_experts": None}, ("num_experts", "None")),
        (MOE, {"num_experts_per_tok": 7}, ("num_experts_per_tok", "7", "6")),
        (MOE, {"moe_intermediate_size": 0}, ("moe_intermediate_size", "0")),
        (PHI3, {"original_max_position_embeddings": 0}, ("llm_config",)),
        (PHI3, {"original_max_position_embeddings": 1}, ("llm_config",)),
        (PHI3, {"rope_scaling": {"type": "su", "short_factor": [1.0] * 3}}, ("long_factor",)),
        (
            PHI3,
            {"rope_scaling": {"type": "su", "short_factor": [1.0] * 2, "long_factor": [1.0] * 3}},
            ("short_factor",),
        ),
        (PHI3, {"rope_scaling": {"type": "su", "short_factor": 1.0, "long_factor": [1.0] * 3}}, ("short_factor",)),
        (
            PHI3,
            {"rope_scaling": {"type": "su", "short_factor": ["x"] * 3, "long_factor": [1.0] * 3}},
            ("short_factor",),
        ),
        (PHI3, {"rope_scaling": {"type": "su", "short_factor": [0] * 3, "long_factor": [1.0] * 3}}, ("short_factor",)),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 0}}, ("factor", "0")),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": -3}}, ("factor", "-3")),
        (LLAMA, {"rope_scaling": {"type": ["yarn"]}}, ("['yarn']", "'yarn'")),
    ],
    ids=lambda value: value.decoder if hasattr(value, "decoder") else str(value)[:70],
)
def test_configs_that_cannot_be_run_are_refused(
    spec: Any, change: dict[str, Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    """When the config is read, long before a table of angles or a router trips over it."""
    architecture(tmp_path, original_config(spec))
    change_config(tmp_path, llm_config=change)
    folder = CheckpointFolder.open(tmp_path)
    refused(InvalidCheckpoint, lambda: Architecture.of(folder), "config.json", *names)


WRONG: tuple[Any, ...] = (None, "x", -1, 0, 1.5, True, [], ["x"], {}, [2, 3], 10**400)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("spec", [PHI3, MOE, INTERNLM2, INTERNLM3], ids=lambda spec: spec.decoder)
def test_no_value_in_a_language_config_raises_anything_else(spec: Any, value: object, tmp_path: Path) -> None:
    config = original_config(spec)
    text = config["llm_config"]
    changed = [{**text, key: value} for key in text]
    if text["rope_scaling"]:
        changed += [{**text, "rope_scaling": {**text["rope_scaling"], key: value}} for key in text["rope_scaling"]]
    surprises = []
    for llm_config in changed:
        try:
            architecture(tmp_path, {**config, "llm_config": llm_config})
        except InvalidCheckpoint:
            continue
        except Exception as error:
            surprises.append(repr(error))
    assert surprises == []


def test_an_output_bias_of_llama_and_internlm2_is_asked_for(tmp_path: Path) -> None:
    for spec, key in ((LLAMA, "attention_bias"), (INTERNLM2, "bias")):
        config = original_config(spec)
        config["llm_config"][key] = True
        decoder = architecture(tmp_path, config).config.decoder
        assert (decoder.qkv_bias, decoder.output_bias) == (True, True)


@pytest.mark.parametrize("name", ["qwen3moe-300m-head", "qwen3moe-6b-head"])
@pytest.mark.parametrize("spelling", ["new", "old"])
def test_experts_apart_and_fused_are_the_same_bits(name: str, spelling: Any, tmp_path: Path) -> None:
    """Logits only nearly so: a matrix in a mapped file lies where it lies, and torch adds up accordingly."""
    spec = SPECS[name]
    ids, pixels = prompt_of(spec, (2,)), random_tiles(spec, 2)
    apart = write_hf(tmp_path / "apart", spec, spelling=spelling, shards=2)
    fused = write_hf(tmp_path / "fused", spec, spelling=spelling, fused_experts=True)
    for layer in range(spec.layers):
        together = hf_tensors(spec)[f"model.language_model.layers.{layer}.mlp.experts.gate_up_proj"]
        for expert, both in enumerate(together):
            for module, expected in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                ours = f"language.model.layers.{layer}.mlp.experts.{expert}.{module}.weight"
                for folder in (apart, fused):
                    assert torch.equal(source_of(folder).read(ours, expected.shape), expected)
    logits = [all_logits(load(folder, TorchOps()), ids, pixels) for folder in (apart, fused)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def source_of(folder: Path) -> CheckpointSource:
    architecture, files = Architecture.of(CheckpointFolder.open(folder)), SafetensorFiles(folder)
    locate = architecture.format(files.names, architecture.backbone.names(architecture.config.decoder))
    return CheckpointSource(files, locate, torch.float32, CPU, on_read=lambda _: None)


class Fixed:
    """A source of given tensors."""

    dtype = torch.bfloat16

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def has(self, name: str) -> bool:
        return name in self.tensors

    def read(self, name: str, shape: object) -> Tensor:
        return self.tensors[name]

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        return dense(self, module, outputs, inputs, bias)


def test_router_tells_apart_what_bfloat16_cannot() -> None:
    """Both experts' logits round to 256 in bfloat16; in float32 the second is larger by a half."""
    x = torch.tensor([[128.0, 1.0]], dtype=torch.bfloat16)
    router = torch.tensor([[2.0, 0.0], [2.0, 0.5]], dtype=torch.bfloat16)
    assert len((x @ router.T).unique()) == 1
    experts = {
        "gate.weight": router,
        **{f"experts.{n}.{name}_proj.weight": torch.ones(1, 2).bfloat16() for n in (0, 1) for name in ("gate", "up")},
        "experts.0.down_proj.weight": torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16),
        "experts.1.down_proj.weight": torch.tensor([[0.0], [1.0]], dtype=torch.bfloat16),
    }
    mlp = ExpertMLP(View(Fixed(experts)), 2, ExpertConfig(count=2, per_token=1, intermediate_size=1), Mesh())
    out = mlp(x, Ops())
    assert out.dtype == torch.bfloat16
    assert out[0, 0] == 0
    assert out[0, 1] > 0


@pytest.mark.parametrize("renormalise", [True, False])
def test_weights_of_the_chosen_experts(renormalise: bool) -> None:
    """Three experts that all answer one: their weights add up to one, or to the share that softmax gave them."""
    tensors = {
        "gate.weight": torch.tensor([[2.0], [1.0], [0.0], [3.0]]),
        **{f"experts.{n}.{name}_proj.weight": torch.ones(1, 1) for n in range(4) for name in ("gate", "up", "down")},
    }
    x = torch.ones(1, 1)
    mlp = ExpertMLP(View(Fixed(tensors)), 1, ExpertConfig(4, 3, intermediate_size=1, renormalise=renormalise), Mesh())
    share = 1 - float(torch.tensor([2.0, 1.0, 0.0, 3.0]).softmax(0)[2])
    expected = torch.ones(1).sigmoid() * (1.0 if renormalise else share)
    torch.testing.assert_close(mlp(x, Ops())[0], expected)
