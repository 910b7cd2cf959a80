"""Released sizes from their config.json alone: parameters against the published numbers, tokens a tile, shapes read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.tiny import ARCHITECTURES, tokenizer
from tilewise.inputs.prepare import count_image_tokens
from tilewise.inputs.spec import InputSpec, tokens_per_tile
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.config import ExpertConfig
from tilewise.models.load import Architecture
from tilewise.platforms.reference import ReferenceOps
from tilewise.weights.folder import CheckpointFolder


class Text(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int = 151674
    family: str = "qwen2"
    """Its inner width is that of one expert where the family has experts."""
    theta: float = 1e6
    scaling: dict[str, Any] | None = None


DYNAMIC = {"type": "dynamic", "factor": 2.0}
TEXTS = {
    "Qwen2-0.5B": Text(896, 24, 14, 2, 64, 4864, 151655),
    "Qwen2.5-0.5B": Text(896, 24, 14, 2, 64, 4864),
    "Qwen2.5-1.5B": Text(1536, 28, 12, 2, 128, 8960),
    "Qwen2.5-3B": Text(2048, 36, 16, 2, 128, 11008),
    "Qwen2.5-7B": Text(3584, 28, 28, 4, 128, 18944),
    "Qwen2.5-14B": Text(5120, 48, 40, 8, 128, 13824),
    "Qwen2.5-32B": Text(5120, 64, 40, 8, 128, 27648),
    "Qwen2.5-72B": Text(8192, 80, 64, 8, 128, 29568),
    "Qwen3-0.6B": Text(1024, 28, 16, 8, 128, 3072, 151936, "qwen3"),
    "Qwen3-1.7B": Text(2048, 28, 16, 8, 128, 6144, 151936, "qwen3"),
    "Qwen3-4B": Text(2560, 36, 32, 8, 128, 9728, 151936, "qwen3"),
    "Qwen3-8B": Text(4096, 36, 32, 8, 128, 12288, 151936, "qwen3"),
    "Qwen3-14B": Text(5120, 40, 40, 8, 128, 17408, 151936, "qwen3"),
    "Qwen3-32B": Text(5120, 64, 64, 8, 128, 25600, 151936, "qwen3"),
    "Qwen3-30B-A3B": Text(2048, 48, 32, 4, 128, 768, 151936, "qwen3_moe"),
    "Qwen3-235B-A22B": Text(4096, 94, 64, 4, 128, 1536, 151936, "qwen3_moe"),
    "InternLM2-1.8B": Text(2048, 24, 16, 8, 128, 8192, 92553, "internlm2", scaling=DYNAMIC),
    "InternLM2.5-7B": Text(4096, 32, 32, 8, 128, 14336, 92553, "internlm2", scaling=DYNAMIC),
    "InternLM2-20B": Text(6144, 48, 48, 8, 128, 16384, 92553, "internlm2"),
    "InternLM3-8B": Text(4096, 48, 32, 2, 128, 10240, 128512, "internlm3", 5e7, {"type": "dynamic", "factor": 6.0}),
    "Yi-34B": Text(7168, 60, 56, 8, 128, 20480, 64000, "llama", 5e6),  # without the few rows of added tokens
    "Llama3-70B": Text(8192, 80, 64, 8, 128, 28672, 128265, "llama", 5e5),
    "Phi-3-mini": Text(
        *(3072, 32, 32, 32, 96, 8192, 32020, "phi3", 1e4),
        {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},  # as many as published, other values
    ),
}
"""Of each language model's own config.json."""


@dataclass(frozen=True)
class Release:
    text: str
    large_vision: bool = False
    billions: tuple[float, float, float] | None = None
    """Published vision, language and total parameters, rounded to a tenth."""
    gigabytes: float | None = None
    """Published size of the folder, GB or GiB."""


RELEASES = {
    "InternVL2-1B": Release("Qwen2-0.5B"),
    "InternVL2_5-1B": Release("Qwen2.5-0.5B"),
    "InternVL2_5-4B": Release("Qwen2.5-3B"),
    "InternVL2_5-38B": Release("Qwen2.5-32B", True),
    "InternVL2_5-78B": Release("Qwen2.5-72B", True),
    "InternVL3-1B": Release("Qwen2.5-0.5B", gigabytes=1.8),
    "InternVL3-2B": Release("Qwen2.5-1.5B", gigabytes=4.2),
    "InternVL3-8B": Release("Qwen2.5-7B", gigabytes=15.9),
    "InternVL3-14B": Release("Qwen2.5-14B", gigabytes=30.2),
    "InternVL3-38B": Release("Qwen2.5-32B", True, gigabytes=76.8),
    "InternVL3-78B": Release("Qwen2.5-72B", True, gigabytes=152),
    "InternVL3_5-1B": Release("Qwen3-0.6B", billions=(0.3, 0.8, 1.1)),
    "InternVL3_5-2B": Release("Qwen3-1.7B", billions=(0.3, 2.0, 2.3)),
    "InternVL3_5-4B": Release("Qwen3-4B", billions=(0.3, 4.4, 4.7)),
    "InternVL3_5-8B": Release("Qwen3-8B", billions=(0.3, 8.2, 8.5)),
    "InternVL3_5-14B": Release("Qwen3-14B", billions=(0.3, 14.8, 15.1)),
    "InternVL3_5-38B": Release("Qwen3-32B", True, billions=(5.5, 32.8, 38.4)),
    "InternVL2-2B": Release("InternLM2-1.8B", gigabytes=4.2),
    "InternVL2-4B": Release("Phi-3-mini", gigabytes=7.8),
    "InternVL2-8B": Release("InternLM2.5-7B", gigabytes=16),
    "InternVL2-26B": Release("InternLM2-20B", True, gigabytes=48),
    "InternVL2-40B": Release("Yi-34B", True, gigabytes=75),
    "InternVL2-Llama3-76B": Release("Llama3-70B", True, gigabytes=143),
    "InternVL2_5-2B": Release("InternLM2-1.8B", gigabytes=4.2),
    "InternVL2_5-8B": Release("InternLM2.5-7B", gigabytes=16),
    "InternVL2_5-26B": Release("InternLM2-20B", True, gigabytes=48),
    "InternVL3-9B": Release("InternLM3-8B", gigabytes=18.3),
    "InternVL3_5-30B-A3B": Release("Qwen3-30B-A3B", billions=(0.3, 30.5, 30.8)),
    "InternVL3_5-241B-A28B": Release("Qwen3-235B-A22B", True, billions=(5.5, 235.1, 240.7)),
}
"""Published at https://internvl.readthedocs.io, the introductions of each generation."""


@pytest.mark.parametrize("name", [name for name, release in RELEASES.items() if release.billions])
def test_parameters_are_those_published(name: str, tmp_path: Path) -> None:
    published = RELEASES[name].billions
    assert published is not None
    architecture = architecture_of(name, tmp_path)
    parts = PartSource()
    architecture.build(parts, ReferenceOps(), context=1)
    total = architecture.count_parameters(ReferenceOps())
    assert total == parts.parameters.total()
    for found, billions in zip(
        (parts.parameters["vision"], parts.parameters["language"], total), published, strict=True
    ):
        assert found == pytest.approx(billions * 1e9, rel=0.01, abs=0.05e9)


@pytest.mark.parametrize("name", [name for name, release in RELEASES.items() if release.gigabytes])
def test_weights_take_the_bytes_published(name: str, tmp_path: Path) -> None:
    """Within 7 %, since the pages mix GB and GiB."""
    size = RELEASES[name].gigabytes
    assert size is not None
    found = 2 * architecture_of(name, tmp_path).count_parameters(ReferenceOps())
    assert found == pytest.approx(size * 1e9, rel=0.07)


def test_a_tied_head_is_counted_once(tmp_path: Path) -> None:
    architecture = architecture_of("InternVL3_5-1B", tmp_path)
    untied, tied = (architecture.count_parameters(ReferenceOps(), tied=tied) for tied in (False, True))
    assert untied - tied == 151936 * 1024


@pytest.mark.parametrize("name", RELEASES)
def test_a_tile_is_256_tokens_and_thirteen_are_3328(name: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, name)
    assert tokens_per_tile(folder) == Architecture.of(folder).config.tokens_per_tile == 256
    spec = InputSpec.of(folder, Tokenizer(tokenizer().to_str()))
    assert count_image_tokens(448 * 4, 448 * 3, spec) == 13 * 256 == 3328


@pytest.mark.parametrize("name", RELEASES)
def test_shapes_are_read_from_the_config(name: str, tmp_path: Path) -> None:
    config = architecture_of(name, tmp_path).config
    text, large = TEXTS[RELEASES[name].text], RELEASES[name].large_vision
    assert (config.decoder.num_heads, config.decoder.num_kv_heads) == (text.heads, text.kv_heads)
    assert config.decoder.head_dim == text.head_dim
    assert config.decoder.qkv_bias == (text.family == "qwen2")
    assert config.decoder.head_norm == (text.family in ("qwen3", "qwen3_moe"))
    assert config.decoder.output_bias is False
    experts = ExpertConfig(128, 8, text.inner) if text.family == "qwen3_moe" else None
    assert config.decoder.experts == experts
    assert config.decoder.rope.theta == text.theta
    assert config.decoder.rope.kind == {None: "default", "su": "longrope"}.get(kind := rope_type(text), kind)
    assert (config.vision.norm, config.vision.qkv_bias, config.vision.qk_norm) == (
        ("rms_norm", False, True) if large else ("layer_norm", True, False)
    )
    assert (config.shuffle_block, config.shuffle_version) == (2, "v2")


def rope_type(text: Text) -> str | None:
    return text.scaling["type"] if text.scaling else None


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


def architecture_of(name: str, folder: Path) -> Architecture:
    return Architecture.of(write_config(folder, name))


def write_config(folder: Path, name: str) -> CheckpointFolder:
    """config.json as the original checkpoint has it, without the keys that say nothing."""
    release = RELEASES[name]
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template_of(TEXTS[release.text]) if name.startswith("InternVL2-") else "internvl2_5",
        "use_thumbnail": True,
        "torch_dtype": "bfloat16",
        "llm_config": llm_config(TEXTS[release.text]),
        "vision_config": vision_config(release.large_vision),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return CheckpointFolder.open(folder)


def template_of(text: Text) -> str:
    """Of the InternVL2 generation."""
    return {"internlm2": "internlm2-chat", "phi3": "phi3-chat"}.get(text.family, "Hermes-2")


def llm_config(text: Text) -> dict[str, Any]:
    config = {
        "architectures": [next(name for family, name in ARCHITECTURES.items() if family == text.family)],
        "model_type": text.family,
        "hidden_size": text.hidden,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "intermediate_size": text.inner,
        "vocab_size": text.vocab,
        "rms_norm_eps": 1e-6,
        "rope_theta": text.theta,
        "rope_scaling": text.scaling,
        "max_position_embeddings": {"qwen3": 40960, "qwen3_moe": 40960, "phi3": 131072}.get(text.family, 32768),
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
    }
    if text.family == "phi3":
        config |= {"original_max_position_embeddings": 4096, "sliding_window": 262144}
    if text.family == "qwen3_moe":  # whose intermediate_size says nothing
        config |= {"intermediate_size": 3 * text.hidden, "moe_intermediate_size": text.inner, "norm_topk_prob": True}
        config |= {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return {**config, "head_dim": text.head_dim} if text.family in ("qwen3", "qwen3_moe") else config


def vision_config(large: bool) -> dict[str, Any]:
    width, layers, heads = (3200, 45, 25) if large else (1024, 24, 16)
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": 448,
        "patch_size": 14,
        "norm_type": "rms_norm" if large else "layer_norm",
        "layer_norm_eps": 1e-6,
        "qkv_bias": not large,
        "qk_normalization": large,
        "hidden_act": "gelu",
    }
