"""Answers outlive their process, belong to a model, and a file that is none of ours is refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.evals.client import ANSWER_OPTIONS, AnswerStore, identity
from tilewise.evals.question import ModelAnswer

ANSWER = ModelAnswer("八边形", (5, 6, 7), "stop", 40, 0.25)
NO_MATTER = {
    "model", "revision", "hub", "download_dir", "trust_remote_code", "safetensors_load_strategy",
    "max_model_len", "enforce_eager", "block_size", "gpu_memory_utilization", "kv_cache_memory_bytes",
    "num_gpu_blocks_override", "enable_prefix_caching", "encoder_cache_gb", "encoder_cache_dir",
    "encoder_cache_dir_gb", "max_num_seqs", "max_num_batched_tokens", "encode_budget", "scheduling_policy",
    "async_scheduling", "speculative_config", "disable_log_stats", "tensor_parallel_size", "data_parallel_size",
    "pipeline_parallel_size", "enable_expert_parallel", "expert_placement_strategy", "distributed_executor_backend",
    "mm_encoder_tp_mode", "vision_workers", "sequence_parallel_tokens", "cpu_binding", "nnodes",
    "max_graph_size", "lazy_graphs",
    "max_logprobs",
    "limit_mm_per_prompt", "mm_processor_cache_gb", "num_frames", "fps", "allowed_local_media_path",
    "allowed_media_domains", "enable_mm_embeds", "hf_token", "use_tqdm_on_load", "mmproj", "adapter",
}  # fmt: skip
"""Options that change no answer, count in another way (the files, the context as it came out), or are not used here."""


def test_an_answer_comes_back_whole(tmp_path):
    AnswerStore(tmp_path / "new", "m").keep("q", ANSWER)
    assert AnswerStore(tmp_path / "new", "m").find("q") == ANSWER


def test_a_score_comes_back_whole(tmp_path):
    score = ModelAnswer(logprob=-1.25, greedy=True, prompt_tokens=3)
    store = AnswerStore(tmp_path, "m")
    store.keep("q", score)
    assert store.find("q") == score


def test_another_model_has_other_answers(tmp_path):
    AnswerStore(tmp_path, "m").keep("q", ANSWER)
    assert AnswerStore(tmp_path, "other").find("q") is None


def test_what_was_kept_survives_a_kill(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from tilewise.evals.question import ModelAnswer\nfrom tilewise.evals.client import AnswerStore\n"
        "AnswerStore(Path(sys.argv[1]), 'm').keep('q', ModelAnswer('kept'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    found = AnswerStore(tmp_path, "m").find("q")
    assert found is not None
    assert found.text == "kept"


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "answers.sqlite").write_text("these are notes, not a database " * 40)
    with pytest.raises(InvalidConfig, match="file is not a database"):
        AnswerStore(tmp_path, "m")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match="name a folder that can be written to"):
        AnswerStore(tmp_path / "file" / "below", "m")


def test_every_option_is_decided():
    """Whether a new option can change an answer has to be said in one of the two places."""
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    assert fields == set(ANSWER_OPTIONS) | NO_MATTER
    assert not set(ANSWER_OPTIONS) & NO_MATTER


def test_identity_follows_options_context_and_files(tmp_path):
    from tests.tiny import SPECS, write_original

    folder = write_original(tmp_path / "model", SPECS["qwen3-300m-head"])
    plain = identity(EngineConfig(model=str(folder)), 2048)
    assert identity(EngineConfig(model=str(folder), max_num_seqs=3), 2048) == plain
    assert identity(EngineConfig(model=str(folder), quantization="int8"), 2048) != plain
    assert identity(EngineConfig(model=str(folder)), 1024) != plain
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))
    assert identity(EngineConfig(model=str(folder)), 2048) != plain
