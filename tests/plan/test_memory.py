"""Who gets how much memory, and which length fits."""

from __future__ import annotations

import re

import pytest

from tests.plan.sizes import INTERNVL3_1B, activation_bytes, kv_bytes, resolved
from tilewise.errors import InvalidConfig
from tilewise.plan.memory import LargestStep
from tilewise.units import GIB

WEIGHTS, TOKEN = INTERNVL3_1B.weight_bytes, INTERNVL3_1B.kv_bytes_per_token
BLOCK = 16 * TOKEN


def activations(context: int, tokens: int = 4096) -> int:
    return activation_bytes(LargestStep(tokens, 64, 64, context, 20, 16))


def pages_bytes(found) -> int:
    return found.limits.tile_pages * INTERNVL3_1B.bytes_per_tile


def test_a_cache_too_small_for_one_sequence_names_the_longest_that_fits():
    one_sequence = 32768 * TOKEN
    with pytest.raises(InvalidConfig, match=r"needs 384.00 MiB .* are 192.00 MiB .*lower max_model_len to 16384, or"):
        resolved(kv_cache_memory_bytes=one_sequence // 2)
    assert resolved(kv_cache_memory_bytes=one_sequence).limits.num_blocks == 32768 // 16 + 1


def test_the_cache_is_never_larger_than_the_sequences_can_use():
    limits = resolved(max_model_len=160, max_num_seqs=2).limits
    assert limits.num_blocks == 2 * 160 // 16 + 1


def test_the_environment_may_size_the_cache():
    space = "VLLM_CPU_KVCACHE_SPACE=1"
    assert GIB - BLOCK < kv_bytes(resolved(variable=space)) <= GIB
    assert (
        kv_bytes(resolved(variable=space, gpu_memory_utilization=0.9)) > GIB
    )  # what is asked for wins over the environment


@pytest.mark.parametrize(("free", "expected"), [(64, 4 * GIB), (5, (5 * GIB - WEIGHTS - activations(32768)) // 2)])
def test_on_the_cpu_the_cache_takes_half_of_what_is_left_within_four_gib(free, expected):
    assert expected - BLOCK < kv_bytes(resolved(free=free, max_num_seqs=1024)) <= expected


def test_a_share_leaves_the_cache_what_nothing_else_takes():
    found = resolved(free=15, total=16, gpu_memory_utilization=0.5, max_num_seqs=1024)
    left = 8 * GIB - WEIGHTS - activations(32768) - pages_bytes(found)
    assert left - BLOCK < kv_bytes(found) <= left


def test_a_share_is_never_more_than_is_free():
    found = resolved(free=6, total=16, gpu_memory_utilization=0.9, max_num_seqs=1024)
    assert WEIGHTS + activations(32768) + pages_bytes(found) + kv_bytes(found) <= 6 * GIB
    assert "what is free" in found.reasons["num_blocks"]


def test_a_platform_may_have_a_share_of_its_own():
    found = resolved(share=0.92, max_num_seqs=1024)
    assert kv_bytes(found) == kv_bytes(resolved(gpu_memory_utilization=0.92, max_num_seqs=1024))
    assert "gpu_memory_utilization=0.92" in found.reasons["num_blocks"]


def test_an_explicit_size_wins_over_a_share_and_says_so():
    found = resolved(gpu_memory_utilization=0.5, kv_cache_memory_bytes="1G")
    assert GIB - BLOCK < kv_bytes(found) <= GIB
    assert "kv_cache_memory_bytes, which wins over gpu_memory_utilization" in found.reasons["num_blocks"]


def test_a_number_of_blocks_wins_over_all_sizes():
    found = resolved(num_gpu_blocks_override=3000, kv_cache_memory_bytes=2**20, gpu_memory_utilization=0.5)
    assert found.limits.num_blocks == 3001
    with pytest.raises(InvalidConfig, match=r"num_gpu_blocks_override\): lower max_model_len to 1600"):
        resolved(num_gpu_blocks_override=100)


def test_weights_that_do_not_fit_are_refused_before_they_are_read():
    with pytest.raises(InvalidConfig, match=r"weights take 1.75 GiB, 1.00 GiB are free: use a smaller model"):
        resolved(free=1)
    with pytest.raises(InvalidConfig, match=r"1.60 GiB are allowed by gpu_memory_utilization=0.1"):
        resolved(free=16, gpu_memory_utilization=0.1)


def test_activations_that_do_not_fit_name_what_to_lower():
    with pytest.raises(InvalidConfig, match=r"one step takes 4.00 GiB.*lower max_num_batched_tokens, max_num_seqs, or"):
        resolved(free=4, max_num_batched_tokens=65536)


@pytest.mark.parametrize("options", [{}, {"gpu_memory_utilization": 0.98}, {"kv_cache_memory_bytes": 2**26}])
def test_the_length_that_a_refusal_names_fits_and_a_block_more_does_not(options):
    with pytest.raises(InvalidConfig) as refusal:
        resolved(free=2.1, total=2.1, **options)
    named = re.search(r"lower max_model_len to (\d+)", str(refusal.value))
    assert named is not None
    longest = int(named[1])
    assert 0 < longest < 32768
    assert resolved(free=2.1, max_model_len=longest, **options).limits.max_model_len == longest
    with pytest.raises(InvalidConfig):
        resolved(free=2.1, max_model_len=longest + 16, **options)
    assert resolved(free=2.1, max_model_len="auto", **options).limits.max_model_len == longest


def test_where_no_length_fits_none_is_named():
    with pytest.raises(InvalidConfig) as refusal:
        resolved(kv_cache_memory_bytes=BLOCK - 1, max_model_len="auto")
    assert "lower max_model_len, or give it more memory" in str(refusal.value)


def test_a_tile_cache_smaller_than_a_tile_is_refused():
    with pytest.raises(InvalidConfig, match="holds no tile of 458752 bytes: raise encoder_cache_gb"):
        resolved(encoder_cache_gb=0.0001)


@pytest.mark.parametrize("name", ["int8", "int8_per_token_head", "fp8", "fp8_e4m3", "fp8_per_token_head"])
def test_a_cache_of_8_bits_says_so(name):
    found, kind = resolved(kv_cache_dtype=name), name.partition("_")[0]
    assert found.limits.kv_cache_dtype == kind
    assert found.reasons["kv_cache_dtype"] == f"{kind} with a scale for each token and head, {TOKEN} bytes a token"
    assert f"tokens of KV cache in {kind}: " in found.reasons["num_blocks"]
    assert "kv_cache_dtype" not in resolved().reasons
    assert resolved(kv_cache_dtype="bfloat16").limits.kv_cache_dtype is None


def test_every_part_says_what_it_takes():
    reasons = resolved(free=64).reasons
    parts = {name: reasons[name].split(",")[0].split(" for")[0] for name in ("weights", "activations")}
    assert parts == {"weights": "1.75 GiB", "activations": "256.00 MiB"}
    assert reasons["tile_pages"] == "255.94 MiB, 585 encoded tiles: a quarter GiB, or an eighth of what is left"
    assert reasons["num_blocks"].startswith("4.00 GiB, 349520 tokens of KV cache: 4 GiB, or half of what is left")
