"""Writes tiny checkpoints: for one spec and seed both formats hold the same numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tilewise.errors import InvalidRequest
from tilewise.twin.configs import Dtype, Spelling, generation_config, hf_config, original_config, processor_config
from tilewise.twin.specs import TinySpec, tiny
from tilewise.twin.tensors import Tensors, experts_apart, hf_tensors, old_name, original_tensors
from tilewise.twin.vocabularies import TwinVocabulary, tokenizer, tokenizer_config
from tilewise.weights.family import RelatedCheckpoint


def write_original(folder: Path, spec: TinySpec, seed: int = 0, shards: int = 1, dtype: Dtype = "float32") -> Path:
    """Write a checkpoint in OpenGVLab's own format."""
    _write_common(folder, spec, original_tensors(spec, seed), shards, dtype)
    _write_json(folder / "config.json", original_config(spec, dtype))
    return folder


def write_hf(
    folder: Path,
    spec: TinySpec,
    seed: int = 0,
    spelling: Spelling = "new",
    shards: int = 1,
    fused_experts: bool = False,
    dtype: Dtype = "float32",
) -> Path:
    """Write a checkpoint in transformers' format. `old` has no `model.` in front, and rope as before transformers 5.

    Published files keep experts apart; `fused_experts` keeps them as transformers has them in memory.
    """
    tensors = hf_tensors(spec, seed)
    if spec.decoder == "qwen3_moe" and not fused_experts:
        tensors = experts_apart(tensors)
    if spelling == "old":
        tensors = {old_name(name): tensor for name, tensor in tensors.items()}
    _write_common(folder, spec, tensors, shards, dtype)
    _write_json(folder / "config.json", hf_config(spec, spelling, dtype))
    _write_json(folder / "preprocessor_config.json", processor_config(spec))
    return folder


def write_relative(
    folder: Path, relative: RelatedCheckpoint, seed: int = 0, shards: int = 1, dtype: Dtype = "float32"
) -> Path:
    """Write the twin of a relative, which has the numbers of the twin of the member that it is like."""
    spec = tiny(relative.like)
    spec = spec if relative.template is None else replace(spec, template=relative.template)
    if relative.renamed:
        write_hf(folder, spec, seed, shards=shards, dtype=dtype)
    else:
        write_original(folder, spec, seed, shards, dtype)
    config = hf_config(spec, "new", dtype) if relative.transformers else original_config(spec, dtype)
    config |= {"architectures": [relative.architecture], "model_type": relative.model_type}
    if relative.transformers:
        config["vision_config"]["model_type"] = f"{relative.model_type}_vision"
    elif relative.template is None:
        del config["template"]
    _write_json(folder / "config.json", config | {"_name_or_path": relative.id})
    return folder


def _write_common(folder: Path, spec: TinySpec, tensors: Tensors, shards: int, dtype: Dtype) -> None:
    if not 1 <= shards <= len(tensors):
        raise InvalidRequest(f"shards must be between 1 and the number of tensors, {len(tensors)}, got {shards}.")
    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(torch, dtype)
    # Blocks of codes and their scales are whole numbers, and stay so.
    _write_shards(folder, {name: t.to(kind) if t.is_floating_point() else t for name, t in tensors.items()}, shards)
    _write_json(folder / "generation_config.json", generation_config(spec))
    (folder / "tokenizer.json").write_text(_tokenizer_json(spec.vocabulary), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", tokenizer_config(spec.vocabulary))


@cache
def _tokenizer_json(vocabulary: TwinVocabulary) -> str:
    return tokenizer(vocabulary).to_str(pretty=True)


def _write_shards(folder: Path, tensors: Tensors, shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    names = sorted(tensors)
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(mine, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
