"""Names of tensors in the formats: what tiles are encoded with is told from the language model by them alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models.flash import write_flash
from tests.tiny import SPECS, write_hf, write_original
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import as_it_came
from tilewise.weights.checkpoint_source import FileTensors
from tilewise.weights.file_names import listed_shards
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.formats import is_of_encoder

WRITERS: dict[str, Callable[[Path], Path]] = {
    **{
        f"original, {name}": lambda path, name=name: write_original(path, SPECS[name])
        for name in ("qwen2-300m", "qwen3-6b-tied")
    },
    **{f"hf, {name}": lambda path, name=name: write_hf(path, SPECS[name]) for name in ("qwen2-300m", "qwen3-6b-tied")},
    "flash": write_flash,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_tensors_of_the_encoder_are_those_that_it_reads(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = write(tmp_path), set[str]()
    monkeypatch.setattr(FileTensors, "mark_read", lambda self, name: read.add(name))
    architecture = Architecture.of(CheckpointFolder.open(folder))
    architecture.load_encoder(torch.float32, Ops(), torch.device("cpu"), None, as_it_came)
    assert read == set(filter(is_of_encoder, SafetensorFiles(folder).names))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vision_model.encoder.layers.11.attn.qkv.weight_packed", True),
        ("model.vision_tower.encoder.layer.11.attention.q_proj.weight_scale", True),
        ("mlp1.3.qweight", True),
        ("language_model.model.layers.0.mlp.up_proj.qweight", False),
        ("model.language_model.embed_tokens.weight", False),
        ("lm_head.weight", False),
        ("llm.blocks.0.mlp.up_proj.weight", False),
    ],
)
def test_a_shard_is_needed_for_what_its_tensors_are_whatever_form_they_have(
    name: str, expected: bool, tmp_path: Path
) -> None:
    """However a format calls the language model, its shards are none that tiles need."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "model-1.safetensors"}}))
    assert listed_shards(index) == ["model-1.safetensors"]
    assert listed_shards(index, language=False) == (["model-1.safetensors"] if expected else [])
