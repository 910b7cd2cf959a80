"""EngineConfig: wrong values and unknown names are refused with value, limit and remedy."""

from __future__ import annotations

import pytest

from tilewise import EngineConfig
from tilewise.errors import InvalidConfig, UnknownOption


def test_an_unknown_engine_option_offers_the_nearest():
    with pytest.raises(UnknownOption, match=r"no option 'max_model_length'. Did you mean max_model_len\?"):
        EngineConfig.of(max_model_length=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_logprobs": -2}, r"max_logprobs must be -1 \(no limit\) or above, got -2"),
        ({"max_model_len": 0}, "max_model_len must be above 0, got 0"),
        ({"max_model_len": -2}, "max_model_len must be above 0, got -2"),
        ({"max_model_len": "1.5K"}, "max_model_len must be a whole number, or one such as 40K .* got '1.5K'"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization must be above 0 and at most 1, got 0"),
        ({"gpu_memory_utilization": 90}, "gpu_memory_utilization must be above 0 and at most 1, got 90"),
        (
            {"device_memory_utilization": 0.5, "gpu_memory_utilization": 0.5},
            "device_memory_utilization is another name of gpu_memory_utilization: give one",
        ),
        ({"num_gpu_blocks_override": 0}, "num_gpu_blocks_override must be above 0, got 0"),
        ({"mm_processor_cache_gb": -1}, r"mm_processor_cache_gb must be 0 \(nothing is kept\) or above, got -1"),
        ({"dtype": "bfloat1"}, "dtype must be one of .*Did you mean bfloat16?"),
        (
            {"load_format": "dumy"},
            "load_format must be one of auto, safetensors, dummy, got 'dumy'. Did you mean dummy?",
        ),
        (
            {"max_num_batched_tokens": 8, "max_num_seqs": 16},
            "max_num_batched_tokens=8 must be at least max_num_seqs=16",
        ),
        (
            {"limit_mm_per_prompt": {"images": 2}},
            "limit_mm_per_prompt knows image and video, got 'images'. Did you mean",
        ),
        ({"limit_mm_per_prompt": {"image": -1}}, "must be a whole number from 0 on, got -1"),
        ({"allowed_local_media_path": "/no/such/folder"}, "The path /no/such/folder does not exist"),
        ({"allowed_local_media_path": __file__}, "must be a directory"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "must be one of .*int8, .*fp8_e4m3, .* got 'fp8_e5m2'"),
        ({"kv_cache_dtype_skip_layers": ["0"]}, "KV blocks of all layers hold the same"),
    ],
)
def test_a_wrong_engine_option_is_refused(options, message):
    with pytest.raises(InvalidConfig, match=message):
        EngineConfig.of(**options)


def test_amounts_may_be_written_as_people_do():
    config = EngineConfig.of(max_model_len="40K", max_num_batched_tokens="8k", kv_cache_memory_bytes="2G")
    assert (config.max_model_len, config.max_num_batched_tokens, config.kv_cache_memory_bytes) == (40960, 8000, 2**31)
    assert EngineConfig.of(max_model_len="auto").max_model_len == EngineConfig.of(max_model_len=-1).max_model_len == -1


def test_an_option_may_have_another_name():
    assert EngineConfig.of(device_memory_utilization=0.5).gpu_memory_utilization == 0.5
