"""From an id on a hub to an answer: the same as from the folder that the hub serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from tests.weights.hub_server import HubServer
from tilewise import LLM, SamplingParams
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.runner.tower import build_tower
from tilewise.weights.checkpoint import Checkpoint

PROMPT = "<|im_start|>user\nthe rain in<|im_end|>\n<|im_start|>assistant\n"
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_an_id_answers_as_its_folder_does(
    where: str, hub: HubServer, checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in checkpoint.items():
        (folder / name).write_bytes(content)
    hub.add("tiny/model", checkpoint)
    options = {"max_model_len": 64, "dtype": "float32"}
    with LLM(str(folder), **options) as local, LLM("tiny/model", hub=where, **options) as downloaded:
        expected, found = (llm.generate(PROMPT, GREEDY)[0].outputs[0] for llm in (local, downloaded))
    assert len(found.token_ids) == 8
    assert found.token_ids == expected.token_ids
    assert found.text == expected.text


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_weights_that_nobody_can_use_are_not_fetched(where: str, hub: HubServer, checkpoint: dict[str, bytes]) -> None:
    """What does not fit is known from the config; random weights need none."""
    hub.add("tiny/model", checkpoint)
    with pytest.raises(InvalidConfig, match="lower max_model_len"):
        LLM("tiny/model", hub=where, kv_cache_memory_bytes=1000)
    LLM("tiny/model", hub=where, load_format="dummy", max_model_len=64).close()
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    LLM("tiny/model", hub=where, max_model_len=64).close()
    assert len([name for name in hub.fetched() if name.endswith(".safetensors")]) == 3


def apart(checkpoint: dict[str, bytes]) -> dict[str, bytes]:
    """The same checkpoint, its language model in a shard of its own."""
    small = {name: content for name, content in checkpoint.items() if not name.endswith(".safetensors")}
    shards = [safetensors.torch.load(content) for name, content in checkpoint.items() if name not in small]
    tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    place = {name: f"model-0000{1 + name.startswith('language_model.')}-of-00002.safetensors" for name in tensors}
    parts = {
        file: safetensors.torch.save({name: tensor for name, tensor in tensors.items() if place[name] == file})
        for file in set(place.values())
    }
    return {**small, **parts, "model.safetensors.index.json": json.dumps({"weight_map": place}).encode()}


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_the_tower_alone_needs_no_shard_of_the_language_model(
    where: str, hub: HubServer, checkpoint: dict[str, bytes]
) -> None:
    """What is there of a model is no hindrance to who wants all of it later."""
    hub.add("tiny/model", apart(checkpoint))
    for _ in range(2):
        config = EngineConfig(model="tiny/model", hub=where)
        build_tower(config, Checkpoint.of(config))
        fetched = [name for name in hub.fetched() if name.endswith(".safetensors")]
        assert fetched == ["model-00001-of-00002.safetensors"]
    LLM("tiny/model", hub=where, max_model_len=64).close()
    assert len([name for name in hub.fetched() if name.endswith(".safetensors")]) == 2
