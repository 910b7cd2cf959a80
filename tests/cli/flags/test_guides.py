"""Every serving command of the guides is read, and either done, or explained in a line, or refused by name."""

from __future__ import annotations

import pytest

from tests.called import read_settings
from tests.cli.flags import commands
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import serve_flags
from tilewise.errors import InvalidConfig


def without(words: tuple[str, ...], flag: str, values: int = 1) -> tuple[str, ...]:
    at = words.index(flag)
    return words[:at] + words[at + 1 + values :]


@pytest.mark.parametrize("words", [commands.QUANTISED_38B, commands.QUANTISED_241B])
def test_the_quantised_models_of_several_devices(words):
    values = CommandLine.read(words, serve_flags()).values
    assert values["served_model_name"] == ("internvl3_5",)
    assert values["async_scheduling"] is True
    assert values["compilation_config"]["cudagraph_capture_sizes"][-1] == 512
    assert values["additional_config"] == {"enable_weight_nz_layout": True, "enable_cpu_binding": True}
    assert values["gpu_memory_utilization"] == 0.9
    assert read_settings(words, {}).engine.tensor_parallel_size == values["tensor_parallel_size"]


def test_all_that_cannot_be_is_named_at_once():
    with pytest.raises(InvalidConfig, match=r"node_rank=1 .*ray start.*enable_sleep_mode=True "):
        read_settings((*commands.QUANTISED_241B, "--node-rank", "1", "--enable-sleep-mode"), {})


def test_on_one_device_the_command_runs_and_says_what_became_of_the_rest():
    settings = read_settings(without(commands.QUANTISED_38B, "--tensor-parallel-size"), commands.ASCEND)
    engine, server = settings.engine, settings.server
    assert (engine.max_model_len, engine.max_num_batched_tokens, engine.max_num_seqs) == (40960, 16384, 32)
    assert (engine.mm_processor_cache_gb, engine.allowed_local_media_path) == (0, "/")
    assert engine.safetensors_load_strategy == "prefetch"
    assert (server.port, server.served_model_name) == (2002, ("internvl3_5",))
    for about in (
        *("cudagraph_capture_sizes became max_graph_size=", "sizes 64, 128, 192, 256, 512 would nowhere be used"),
        *(
            "enable_weight_nz_layout: an NPU keeps matrices of int8 in the NZ layout",
            "enable_cpu_binding: cpu_binding, unless",
        ),
        *("--enable-chunked-prefill", "--trust-remote-code: code of a checkpoint is never run"),
        *("VLLM_USE_V1: ", "VLLM_ASCEND_ENABLE_FUSED_MC2: "),
    ):
        assert sum(about in line for line in settings.lines) == 1, about
    assert not any("HCCL" in line or "TASK_QUEUE" in line for line in settings.lines)
    assert settings.warnings == []


@pytest.mark.parametrize(("words", "size"), [(commands.PLAIN_38B, 2), (commands.PLAIN_241B, 16)])
def test_the_plain_models_of_several_devices(words, size):
    engine = read_settings(words, {"VLLM_USE_V1": "1"}).engine
    assert engine.tensor_parallel_size == size
    assert engine.model == words[0]
    assert engine.dtype == "bfloat16"
    assert engine.enable_prefix_caching is ("--no-enable-prefix-caching" not in words)


def test_internvl2_2b():
    engine = read_settings(commands.INTERNVL2_2B, {"VLLM_USE_MODELSCOPE": "True"}).engine
    assert (engine.model, engine.dtype, engine.max_model_len) == ("OpenGVLab/InternVL2-2B", "bfloat16", 32768)
    assert engine.enforce_eager is True


def test_internvl3_8b():
    settings = read_settings(commands.INTERNVL3_8B, {"PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:256"})
    assert settings.engine.max_model_len == 8192
    assert settings.engine.limit_mm_per_prompt == {"image": 4}
    assert settings.engine.disable_log_stats is False
    assert settings.lines == ["--trust-remote-code: code of a checkpoint is never run, nor is it needed"]
