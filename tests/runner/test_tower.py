"""TileTower: rows of the model's own tower, from files of which nothing else is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import SPECS, write_hf, write_original
from tilewise import LLM, ImageAsset, SamplingParams
from tilewise.config import EngineConfig
from tilewise.errors import InvalidRequest
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.models.load import Architecture
from tilewise.platforms.cpu import CpuPlatform
from tilewise.runner.tower import TileTower, build_tower
from tilewise.types import Tile
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.checkpoint_source import FileTensors


def tower_of(**options: object) -> tuple[TileTower, EngineConfig]:
    config = EngineConfig.of(**options)
    return build_tower(config, Checkpoint.of(config))[0], config


def tiles_of(config: EngineConfig) -> list[Tile]:
    found = ModelInputs.of(config)
    preparer = found.plain_preparer(1024)
    (image,) = preparer.encoding([ImageAsset("stop_sign").pil_image], None, 13).images
    return list(image.tiles)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("write", [write_original, write_hf])
def test_rows_are_those_of_the_whole_model(tmp_path, write, dtype):
    folder = write(tmp_path / "model", SPECS["qwen2-300m"])
    tower, config = tower_of(model=str(folder), dtype=dtype)
    tiles = tiles_of(config)[:1]
    found = torch.from_numpy(tower.encode(tiles)[0])
    model = Architecture.of(Checkpoint.of(config).folder).load(getattr(torch, dtype), CpuPlatform().ops(), context=1)
    with torch.inference_mode():
        expected = model.encoder(torch.from_numpy(tiles[0].pixels.copy())[None]).rows[0]
    assert torch.equal(found.view(torch.bfloat16) if dtype == "bfloat16" else found, expected)


def test_of_the_decoder_nothing_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        FileTensors, "mark_read", lambda self, name, mark=FileTensors.mark_read: (read.append(name), mark(self, name))
    )
    tower_of(model=str(write_original(tmp_path / "model", SPECS["qwen2-300m"], shards=3)))
    assert read
    assert {name.partition(".")[0] for name in read} == {"vision_model", "mlp1"}


def test_tiles_are_shared_with_engines_by_a_folder(tmp_path):
    """What the tower has written an engine of the same model reads, and the other way round."""
    options = {"model": "demo", "dtype": "float32", "encoder_cache_dir": str(tmp_path / "tiles")}
    tower, config = tower_of(**options)
    tiles = tiles_of(config)
    rows = {tile.digest: array for tile in tiles for array in tower.encode([tile])}
    tower.close()
    with LLM(**options, max_model_len=512) as llm:
        llm.generate({"prompt": "<image>", "multi_modal_data": {"image": ImageAsset("stop_sign").pil_image}},
                     SamplingParams(max_tokens=1), use_tqdm=False)  # fmt: skip
        assert llm._core._runner._lane._store.counts.hits == len(rows)
    again, _ = tower_of(**options)
    for digest, array in rows.items():
        assert np.array_equal(again.recall(digest), array)
    assert again.recall(bytes(16)) is None


def test_batches_are_those_of_the_platform_unless_each_tile_comes_alone():
    tower, _ = tower_of(model="demo")
    assert tower.sizes == CpuPlatform().tile_batches
    assert tower_of(model="demo", batch_invariant=True)[0].sizes == (1,)


def test_a_dummy_tower_needs_no_weights(tmp_path: Path):
    folder = write_original(tmp_path / "model", SPECS["qwen2-300m"])
    (folder / "model.safetensors").unlink()
    tower, config = tower_of(model=str(folder), load_format="dummy")
    assert len(tower.encode(tiles_of(config)[:1])) == 1


def test_more_tiles_than_a_request_may_have_are_not_cut():
    found = ModelInputs.of(EngineConfig())
    preparer = found.plain_preparer(1024)
    pictures = [ImageAsset("stop_sign").pil_image] * 2
    assert preparer.encoding(pictures, None, 26).num_tiles == 26
    with pytest.raises(InvalidRequest, match="have 26 tiles, the limit of a request is 25: send several requests"):
        preparer.encoding(pictures, None, 25)
