"""Reading ahead reads every byte of every shard, and nothing but the time depends on it."""

from __future__ import annotations

import pytest

from tests.tiny import SPECS, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidConfig
from tilewise.weights import files as files_module
from tilewise.weights.files import shard_files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen3-300m-head"], shards=2)


@pytest.mark.parametrize(("strategy", "whole"), [(None, False), ("lazy", False), ("eager", True), ("prefetch", True)])
def test_all_of_the_shards_is_read(model, monkeypatch, strategy, whole):
    counted = []
    read_through = files_module.read_through
    monkeypatch.setattr(files_module, "read_through", lambda files: counted.append(read_through(files)))
    files = shard_files(model)
    assert len(files) == 2
    thread = files_module.read_ahead(files, strategy)
    if thread:
        thread.join()
    assert counted == ([sum(path.stat().st_size for path in files)] if whole else [])


@pytest.mark.parametrize("strategy", ["eager", "prefetch"])
def test_answers_stay_the_same(model, strategy):
    sampling = SamplingParams(temperature=0, max_tokens=4)
    answers = [
        llm.generate("the hen", sampling, use_tqdm=False)[0].outputs[0].token_ids
        for llm in (LLM(str(model)), LLM(str(model), safetensors_load_strategy=strategy))
    ]
    assert answers[0] == answers[1]


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InvalidConfig, match="Did you mean prefetch"):
        LLM("demo", safetensors_load_strategy="prefech")
