"""Damaged, missing and misleading weight files: each is a typed error that names file and tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import SPECS, write_hf, write_original
from tests.weights.broken import change_tensors, load, refused
from tilewise.errors import InvalidCheckpoint
from tilewise.weights.file_names import NeededFiles
from tilewise.weights.files import SafetensorFiles

SPEC = SPECS["qwen2-300m"]
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_original(tmp_path / "one", SPEC)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_original(tmp_path / "three", SPEC, shards=3)


def point_index_at(folder: Path, shard: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["mlp1.0.weight"] = shard
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a pointer of Git LFS and no weights"),
        ("<!DOCTYPE html>\n<html><body>Not found</body></html>", "a web page and no weights"),
        ("   <html>", "a web page and no weights"),
        ("weights", "is damaged"),
    ],
)
def test_what_downloads_leave_in_place_of_weights_is_named(folder: Path, text: str, said: str) -> None:
    (folder / "model.safetensors").write_text(text)
    refused(InvalidCheckpoint, lambda: load(folder), str(folder / "model.safetensors"), said)


def test_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(InvalidCheckpoint, lambda: load(folder), str(folder), "*.safetensors")


def test_missing_shard(shards: Path) -> None:
    (shards / SHARD).unlink()
    refused(InvalidCheckpoint, lambda: load(shards), str(shards), SHARD, INDEX)


@pytest.mark.parametrize("shard", ["../one/model.safetensors", "/tmp/model.safetensors", "sub/x.safetensors"])
def test_index_that_points_outside_the_folder(shards: Path, folder: Path, shard: str) -> None:
    point_index_at(shards, shard)
    refused(InvalidCheckpoint, lambda: load(shards), INDEX, shard, "outside")


@pytest.mark.parametrize("shard", ["", ".", "..", 7, None, ["a"], {}, "a" * 300])
def test_index_with_something_that_is_no_file_name(shards: Path, shard: object) -> None:
    point_index_at(shards, shard)
    refused(InvalidCheckpoint, lambda: load(shards), INDEX)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "null"])
def test_index_that_is_no_index(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    refused(InvalidCheckpoint, lambda: load(shards), INDEX, "fetch the file again")


def test_an_index_that_has_gone_since_its_folder_was_listed(tmp_path: Path) -> None:
    names = [INDEX, "config.json", "model-00001-of-00002.safetensors"]
    refused(InvalidCheckpoint, lambda: NeededFiles().weight_files("a/b", names, tmp_path), INDEX)


def test_index_without_shards(shards: Path) -> None:
    (shards / INDEX).write_text('{"weight_map": {}}')
    refused(InvalidCheckpoint, lambda: load(shards))


def test_corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[9:40] = b"\x00" * 31
    path.write_bytes(content)
    refused(InvalidCheckpoint, lambda: load(folder), str(path), "damaged", "fetch the file again")


@pytest.mark.parametrize("keep", [0, 7, 100, -1, -1000])
def test_truncated_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(InvalidCheckpoint, lambda: load(folder), str(path), "damaged")


def test_a_missing_shard_of_those_that_no_index_lists(shards: Path) -> None:
    (shards / INDEX).unlink()
    (shards / SHARD).unlink()
    refused(InvalidCheckpoint, lambda: load(shards), f"{shards}: the shard {SHARD} is missing beside model-0000")


def test_truncated_shard_is_named(shards: Path) -> None:
    (shards / SHARD).write_bytes((shards / SHARD).read_bytes()[:-1])
    refused(InvalidCheckpoint, lambda: load(shards), SHARD)


def test_missing_tensor(folder: Path) -> None:
    name = "language_model.model.layers.1.self_attn.k_proj.bias"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    refused(InvalidCheckpoint, lambda: load(folder), name, "model.layers.1.self_attn.k_proj.bias")


def test_left_over_tensors(folder: Path) -> None:
    extra = {f"language_model.model.layers.2.extra.{number}": torch.ones(1) for number in range(7)}
    change_tensors(folder, lambda tensors: tensors.update(extra))
    refused(InvalidCheckpoint, lambda: load(folder), "language_model.model.layers.2.extra.0", "and 2 more")


def test_a_bias_that_the_config_does_not_know_is_left_over(folder: Path) -> None:
    name = "language_model.model.layers.0.self_attn.o_proj.bias"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(36)}))
    refused(InvalidCheckpoint, lambda: load(folder), name)


def test_derived_tensors_of_old_training_code_are_ignored(folder: Path) -> None:
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(3)}))
    load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_tensor(folder: Path, dtype: torch.dtype) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    found = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}.get(dtype, "F8_E4M3")
    refused(InvalidCheckpoint, lambda: load(folder), name, found, "BF16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_read_and_cast(folder: Path, dtype: torch.dtype) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    assert load(folder).decoder.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("language_model.model.embed_tokens.weight", (294, 36), "[295, 36]"),
        ("language_model.model.layers.0.mlp.gate_proj.weight", (36, 52), "[52, 36]"),
        ("language_model.model.norm.weight", (37,), "[36]"),
        ("vision_model.embeddings.position_embedding", (1, 16, 24), "[1, 17, 24]"),
        ("vision_model.embeddings.patch_embedding.weight", (24, 1, 14, 14), "[24, 3, 14, 14]"),
        ("vision_model.encoder.layers.0.attn.qkv.weight", (48, 24), "[24, 24]"),
        ("vision_model.encoder.layers.0.attn.qkv.weight", (73, 24), "[24, 24]"),
        ("mlp1.1.bias", (35,), "[36]"),
    ],
)
def test_wrong_shape(folder: Path, name: str, shape: tuple[int, ...], expected: str) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(shape)}))
    refused(InvalidCheckpoint, lambda: load(folder), name, expected)


def test_wrong_shape_names_what_was_found(folder: Path) -> None:
    name = "language_model.lm_head.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(100, 36)}))
    refused(InvalidCheckpoint, lambda: load(folder), name, "[100, 36]", "[295, 36]")


def test_every_tensor_of_every_shard_is_found(shards: Path, folder: Path) -> None:
    assert SafetensorFiles(shards).names == SafetensorFiles(folder).names


def test_shards_that_the_index_does_not_list_are_not_opened(shards: Path) -> None:
    save_file({"stray": torch.ones(1)}, shards / "training_state.safetensors")
    load(shards)


def test_several_files_without_an_index_are_read_together(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", SPEC, shards=3)
    (folder / INDEX).unlink()
    load(folder)
