"""The contract with a KV cache of 8 bits: keys and values are rounded as they are written, each by itself, so that it
matters to no token how a request is run.

A number that lies between two steps may be rounded either way where it was summed up in another order: then logits
differ by more than float32's rounding. Batch-invariant runs differ in no bit.
"""

from __future__ import annotations

import pytest
import torch

from tests.equal.contract import assert_same
from tests.equal.driver import Engine
from tests.equal.test_batch_invariant import differing
from tests.equal.test_equal import requests
from tests.guesses import drafting, lookup
from tests.tiny import SPECS, write_original
from tilewise import LLM
from tilewise.errors import InvalidConfig
from tilewise.platforms.ops import Ops

KINDS = ("int8", "fp8")
A_STEP = {"int8": 2e-3, "fp8": 2e-2}
"""What another rounding of a few numbers may change."""
WAYS = {
    "batched": {},
    "chunks of 13": {"max_num_batched_tokens": 13},
    "blocks of 5": {"block_size": 5, "num_blocks": 410},
    "preempted": {"block_size": 4, "num_blocks": 27},
    "overlapped": {"overlap": True, "max_num_batched_tokens": 37},
    "op by op": {"graphs": False},
    "reference": {"ops": Ops()},
    "lookup": {"speculation": lookup(3, 1, 2)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


def run_alone(folder, **changes):
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for request in requests():
            found |= Engine(folder, **changes).run([request], patch)
    return found


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def alone(folder, kind):
    return run_alone(folder, kv_cache_dtype=kind)


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_how_a_request_is_run_changes_none_of_its_tokens(folder, kind, alone, monkeypatch, changes):
    engine = Engine(folder, kv_cache_dtype=kind, **changes)
    assert_same(engine.run(requests(), monkeypatch), alone, A_STEP[kind])
    engine.core.close()


def test_cold_equals_cached(folder, kind, alone, monkeypatch):
    """What is found in the prefix cache was rounded when it was computed."""
    engine = Engine(folder, kv_cache_dtype=kind, block_size=4, num_blocks=513)
    assert_same(engine.run(requests(), monkeypatch), alone, A_STEP[kind])
    assert_same(engine.run_more(requests(), monkeypatch), alone, A_STEP[kind])
    assert engine.cached["text"] == 20


def test_a_draft_model_has_a_cache_of_the_same_kind(folder, kind, alone, monkeypatch):
    engine = Engine(folder, kv_cache_dtype=kind, draft=folder, speculation=drafting(3))
    assert_same(engine.run(requests(), monkeypatch), alone, A_STEP[kind])
    drafter = engine.runner._runner._drafter
    assert drafter._forward._caches[0].numbers.itemsize == 1
    assert engine.core.counters.accepted_tokens > 0


def test_batch_invariant_runs_differ_in_no_bit(folder, kind, monkeypatch):
    changes = {"kv_cache_dtype": kind, "batch_invariant": True}
    expected = run_alone(folder, **changes)
    for way in ({}, {"max_num_batched_tokens": 13}, {"block_size": 4, "num_blocks": 20}):
        assert not differing(Engine(folder, **changes, **way).run(requests(), monkeypatch), expected)
    cached = Engine(folder, **changes, block_size=4, num_blocks=513)
    for run in (cached.run, cached.run_more):
        assert not differing(run(requests(), monkeypatch), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_near_those_of_a_float_cache(folder, kind, monkeypatch, dtype):
    """Of prompts, whose tokens are the same; and the cache does take part in them."""
    floats = Engine(folder, dtype=dtype).run(requests(max_tokens=1), monkeypatch)
    found = Engine(folder, dtype=dtype, kv_cache_dtype=kind).run(requests(max_tokens=1), monkeypatch)
    for name, (_, expected) in floats.items():
        off = (found[name][1] - expected).float().norm() / expected.float().norm()
        assert 0 < off < {"int8": 0.02, "fp8": 0.1}[kind]


def test_the_log_says_what_is_kept_and_a_token_takes_what_it_says(folder, kind, caplog):
    with caplog.at_level("INFO", "tilewise"):
        llm = LLM(str(folder), dtype="float32", kv_cache_dtype=kind, max_model_len=128, kv_cache_memory_bytes=2**20)
    caches, limits = llm._core._runner._forward._caches, llm.resolved.limits
    taken = sum(cache.numbers.nbytes + cache.scales.nbytes for cache in caches)
    a_token = taken // (limits.num_blocks * limits.block_size)
    lines = "\n".join(record.message for record in caplog.records)
    assert f"kv_cache_dtype: {kind} with a scale for each token and head, {a_token} bytes a token" in lines
    tokens = (limits.num_blocks - 1) * limits.block_size
    assert f"{tokens} tokens of KV cache in {kind}: " in lines
    llm.close()


def test_floats_that_activations_do_not_have_are_refused(folder):
    LLM(
        str(folder), dtype="bfloat16", kv_cache_dtype="bfloat16", max_model_len=128, kv_cache_memory_bytes=2**20
    ).close()
    with pytest.raises(InvalidConfig, match=r"kv_cache_dtype='bfloat16'.* keeps float32, .*use auto, int8 or fp8"):
        LLM(str(folder), dtype="float32", kv_cache_dtype="bfloat16", max_model_len=128)
