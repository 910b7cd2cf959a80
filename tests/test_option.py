"""One validator: a value of the wrong type is refused by name, in both configurations."""

from __future__ import annotations

import numpy as np
import pytest

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.server.config import ServerConfig

WRONG = [
    ("block_size", 16.5, "a whole number or None"),
    ("block_size", "16", "a whole number or None"),
    ("max_num_seqs", 2.5, "a whole number"),
    ("max_num_seqs", True, "a whole number"),
    ("num_frames", 1.5, "a whole number"),
    ("max_logprobs", 1.0, "a whole number"),
    ("kv_cache_memory_bytes", 1.5, "a whole number or None"),
    ("enable_prefix_caching", "false", "True or False"),
    ("enable_prefix_caching", 0, "True or False"),
    ("flash_router", "off", "True or False"),
    ("async_scheduling", "no", "True or False or None"),
    ("gpu_memory_utilization", "0.9", "a number or None"),
    ("fps", True, "a number or None"),
    ("model", 3, "a text"),
    ("dtype", 16, "one of auto, bfloat16, float16, half, float32, float"),
    ("speculative_config", "ngram", "a dict or None"),
    ("allowed_media_domains", "example.org", "a tuple of texts or None"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_a_value_of_another_type_is_refused_with_what_it_must_be(name, value, wanted):
    for build in (EngineConfig, EngineConfig.of):
        with pytest.raises(InvalidConfig) as caught:
            build(**{name: value})
        assert str(caught.value) == f"{name} must be {wanted}, got {value!r}."


@pytest.mark.parametrize(
    ("name", "value"), [("port", True), ("port", 80.0), ("max_body_mb", "64"), ("disable_fastapi_docs", "false")]
)
def test_a_server_refuses_them_too(name, value):
    with pytest.raises(InvalidConfig, match=rf"^{name} must be "):
        ServerConfig(**{name: value})


def test_scalars_of_numpy_are_the_numbers_that_they_hold():
    config = EngineConfig(
        block_size=np.int64(32), gpu_memory_utilization=np.float32(0.5), flash_router=np.bool_(False)
    )  # fmt: skip
    assert (config.block_size, config.gpu_memory_utilization, config.flash_router) == (32, 0.5, False)
    assert [type(value) for value in (config.block_size, config.gpu_memory_utilization)] == [int, float]
    assert config.flash_router is False


def test_a_list_is_taken_for_a_tuple():
    assert EngineConfig(allowed_media_domains=["a.example"]).allowed_media_domains == ("a.example",)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0])
def test_no_number_outside_its_range(value):
    with pytest.raises(InvalidConfig, match=r"^fps must be "):
        EngineConfig(fps=value)


def test_no_rank_is_refused_before_anything_is_fetched():
    with pytest.raises(InvalidConfig, match="tensor_parallel_size must be above 0, got 0"):
        EngineConfig(model="nobody/such-model", tensor_parallel_size=0)
