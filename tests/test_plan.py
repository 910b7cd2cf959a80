"""resolve: sizes of caches from wishes and free memory, and refusals that name what would fit."""

from __future__ import annotations

import pytest

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.plan import GIB, DeviceFacts, ModelFacts, resolve

INTERNVL3_1B = ModelFacts(
    trained_length=32768,
    tokens_per_tile=256,
    kv_bytes_per_token=2 * 24 * 2 * 64 * 2,
    bytes_per_tile=256 * 896 * 2,
    weight_bytes=938_200_000 * 2,
)


def resolved(free: float = 16, **options):
    return resolve(EngineConfig.of(**options), INTERNVL3_1B, DeviceFacts(int(free * GIB)))


def test_the_context_is_the_trained_one_unless_asked():
    assert resolved().limits.max_model_len == 32768
    assert resolved(max_model_len=4096).limits.max_model_len == 4096


def test_a_longer_context_than_trained_needs_the_switch(monkeypatch):
    with pytest.raises(InvalidConfig, match="max_model_len=40000 is longer than the 32768 tokens"):
        resolved(max_model_len=40000)
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert resolved(max_model_len=40000).limits.max_model_len == 40000


def test_a_cache_too_small_for_one_sequence_names_the_longest_that_fits():
    one_sequence = 32768 * INTERNVL3_1B.kv_bytes_per_token
    with pytest.raises(InvalidConfig, match="lower max_model_len to 16384"):
        resolved(kv_cache_memory_bytes=one_sequence // 2)
    assert resolved(kv_cache_memory_bytes=one_sequence).limits.num_blocks == 32768 // 16 + 1


def test_the_cache_is_never_larger_than_the_sequences_can_use():
    limits = resolved(max_model_len=160, max_num_seqs=2).limits
    assert limits.num_blocks == 2 * 160 // 16 + 1


def test_the_environment_may_size_the_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert (resolved().limits.num_blocks - 1) * 16 * INTERNVL3_1B.kv_bytes_per_token <= GIB


def test_weights_that_do_not_fit_are_refused_before_they_are_read():
    with pytest.raises(InvalidConfig, match=r"weights take 1.7 GiB, 1.0 GiB are free"):
        resolved(free=1)


def test_a_tile_cache_smaller_than_a_tile_is_refused():
    with pytest.raises(InvalidConfig, match="holds no tile of 458752 bytes: raise encoder_cache_gb"):
        resolved(encoder_cache_gb=0.0001)


def test_every_choice_has_its_reason():
    assert set(resolved().reasons) == {"max_model_len", "tile_pages", "num_blocks", "async_scheduling"}


def test_batch_invariance_is_asked_for_by_option_or_environment(monkeypatch):
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    assert not resolved().limits.batch_invariant
    asked = resolved(batch_invariant=True)
    assert asked.limits.batch_invariant
    assert "asked for; decoding costs" in asked.reasons["batch_invariant"]
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert resolved().limits.batch_invariant
    assert "VLLM_BATCH_INVARIANT;" in resolved().reasons["batch_invariant"]
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")
    assert not resolved().limits.batch_invariant


@pytest.mark.parametrize(
    ("asked", "beside_host", "expected"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_steps_overlap_where_the_device_computes_beside_the_host_or_as_asked(asked, beside_host, expected):
    found = resolve(EngineConfig(async_scheduling=asked), INTERNVL3_1B, DeviceFacts(64 * GIB, beside_host))
    assert found.overlap is expected
    assert ("async_scheduling" in found.reasons) is (asked is None)
