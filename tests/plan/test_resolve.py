"""resolve: the context, overlap and graphs, each with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.plan.sizes import INTERNVL3_1B, resolved
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.plan import resolve
from tilewise.plan.memory import DeviceFacts, MemoryPlan, with_draft
from tilewise.units import GIB


def test_the_context_is_the_trained_one_unless_asked():
    assert resolved().limits.max_model_len == 32768
    assert resolved(max_model_len=4096).limits.max_model_len == 4096
    assert resolved(max_model_len="4K").limits.max_model_len == 4096


@pytest.mark.parametrize("asked", ["auto", -1, "-1"])
def test_the_longest_that_fits_is_at_most_the_trained_one(asked):
    found = resolved(max_model_len=asked)
    assert found.limits.max_model_len == 32768
    assert found.reasons["max_model_len"] == "32768: the longest that fits, up to the 32768 the model was trained for"


def test_a_longer_context_than_trained_needs_the_switch():
    with pytest.raises(InvalidConfig, match="max_model_len=40000 is longer than the 32768 tokens"):
        resolved(max_model_len=40000)
    found = resolved(max_model_len=40000, variable="VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    assert found.limits.max_model_len == 40000


def test_every_choice_has_its_reason():
    parts = {"weights", "activations", "tile_pages", "num_blocks"}
    assert set(resolved().reasons) == {"max_model_len", "async_scheduling"} | parts


@pytest.mark.parametrize(
    ("asked", "beside_host", "expected"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_steps_overlap_where_the_device_computes_beside_the_host_or_as_asked(asked, beside_host, expected):
    device = DeviceFacts(64 * GIB, 64 * GIB, beside_host=beside_host)
    found = resolve(EngineConfig(async_scheduling=asked), INTERNVL3_1B, device)
    assert found.overlap is expected
    assert ("async_scheduling" in found.reasons) is (asked is None)


def test_sizes_of_graphs_are_told_where_they_have_no_effect():
    asked = EngineConfig(max_graph_size=8, lazy_graphs=True)
    found = resolve(asked, INTERNVL3_1B, DeviceFacts(64 * GIB, 64 * GIB, captures_graphs=True))
    assert "without effect" in found.reasons["max_graph_size"]
    assert "without effect" in found.reasons["lazy_graphs"]
    gpu = DeviceFacts(64 * GIB, 64 * GIB, captures_graphs=True, graph_sizes=(1, 2, 4, 8))
    assert not {"max_graph_size", "lazy_graphs"} & set(resolve(asked, INTERNVL3_1B, gpu).reasons)


@pytest.mark.parametrize(
    ("eager", "captures", "graphs", "reason"),
    [
        (False, True, True, None),
        (True, True, False, "eager: no graphs are captured"),
        (False, False, False, None),
        (True, False, False, "eager: nothing here captures graphs"),
    ],
)
def test_graphs_are_captured_where_the_device_can_unless_eager(eager, captures, graphs, reason):
    device = DeviceFacts(64 * GIB, 64 * GIB, captures_graphs=captures)
    found = resolve(EngineConfig(enforce_eager=eager), INTERNVL3_1B, device)
    assert found.graphs is graphs
    assert found.reasons.get("enforce_eager") == reason
    assert ("graphs" in found.reasons) is graphs


def test_batch_invariant_steps_are_not_captured():
    """Their rows stand in panels, by their places in their sequences."""
    device = DeviceFacts(64 * GIB, 64 * GIB, captures_graphs=True)
    assert not resolve(EngineConfig(batch_invariant=True), INTERNVL3_1B, device).graphs


def test_batch_invariance_is_asked_for_by_option_or_environment():
    assert not resolved().limits.batch_invariant
    asked = resolved(batch_invariant=True)
    assert asked.limits.batch_invariant
    assert "asked for; decoding costs" in asked.reasons["batch_invariant"]
    on = resolved(variable="VLLM_BATCH_INVARIANT=1")
    assert on.limits.batch_invariant
    assert "VLLM_BATCH_INVARIANT;" in on.reasons["batch_invariant"]
    off = resolved(variable="VLLM_BATCH_INVARIANT=1", batch_invariant=False)
    assert not off.limits.batch_invariant, "an option wins over the environment"
    assert not resolved(variable="VLLM_BATCH_INVARIANT=0").limits.batch_invariant


def test_tiles_are_batched_as_the_device_likes():
    device = DeviceFacts(64 * GIB, 64 * GIB, tile_batches=(2, 1))
    assert resolve(EngineConfig.of(), INTERNVL3_1B, device).limits.tile_batches == (2, 1)


def test_activations_are_those_of_the_largest_batch_of_tiles():
    model = replace(INTERNVL3_1B, activation_bytes=lambda step: step.tiles * GIB)
    reasons = (
        resolve(EngineConfig.of(), model, DeviceFacts(64 * GIB, 64 * GIB, tile_batches=sizes)).reasons["activations"]
        for sizes in ((2, 1), (8, 4, 1))
    )
    assert [reason.split(" for ")[0] for reason in reasons] == ["2.00 GiB", "8.00 GiB"]


@pytest.mark.parametrize(
    ("beside", "options", "gib"),
    [
        (False, {}, (8, 3)),  # a batch takes turns with steps, and is not captured
        (True, {}, (4, 3 + 8)),
        (True, {"enforce_eager": True}, (4 + 8, 0)),
        (True, {"vision_workers": 1}, (8, 3)),  # the device encodes nothing
        (True, {"tensor_parallel_size": 2}, (8, 0)),
    ],
    ids=str,
)
def test_tiles_beside_steps_have_memory_beside_them(beside, options, gib):
    """A step takes 4 GiB and 3 in graphs, a batch of tiles 8 in either."""
    model = replace(
        INTERNVL3_1B,
        activation_bytes=lambda step: max(4 * (step.tokens > 64), step.tiles) * GIB,
        pool_bytes=lambda step: max(3 * (step.tokens > 1), step.tiles) * GIB,
    )
    device = DeviceFacts(
        *(64 * GIB, 64 * GIB), captures_graphs=True, graph_sizes=(64,), tile_batches=(8, 1), tiles_beside=beside
    )
    memory = MemoryPlan(EngineConfig.of(max_num_seqs=64, **options), model, device, 32768)
    assert (memory.activations / GIB, memory.graphs / GIB) == gib


def test_graphs_of_a_draft_model_have_memory_of_their_own():
    model = replace(INTERNVL3_1B, pool_bytes=lambda step: step.tokens)
    draft = replace(INTERNVL3_1B, pool_bytes=lambda step: 100 * step.tokens)
    device = DeviceFacts(64 * GIB, 64 * GIB, captures_graphs=True, graph_sizes=(1, 2, 4))
    memory = MemoryPlan(EngineConfig.of(max_num_seqs=4), with_draft(model, draft), device, 32768)
    assert memory.graphs == 4 + 400


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"max_num_seqs": 64}, (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)),
        ({"max_num_seqs": 5}, (1, 2, 4, 8)),
        ({"max_num_seqs": 1}, (1,)),
        ({"max_graph_size": 4}, (1, 2, 4)),
        ({"compilation_config": {"cudagraph_capture_sizes": [1, 2, 16]}}, (1, 2, 4, 8, 16)),
        ({"compilation_config": {"cudagraph_capture_sizes": []}}, ()),
        ({"enforce_eager": True}, ()),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, ()),
        ({"tensor_parallel_size": 2}, ()),
    ],
    ids=str,
)
def test_steps_are_captured_in_sizes_up_to_the_first_that_holds_all_sequences(options, sizes):
    device = DeviceFacts(64 * GIB, 64 * GIB, captures_graphs=True, graph_sizes=(1, 2, 4, *range(8, 513, 8)))
    config = EngineConfig.of(**options)
    found = resolve(config, INTERNVL3_1B, device)
    assert found.limits.graph_sizes == sizes
    memory = MemoryPlan(config, INTERNVL3_1B, device, 32768)
    assert (memory.graphs > 0) == bool(sizes)
    without = MemoryPlan(config, INTERNVL3_1B, replace(device, graph_sizes=()), 32768)
    assert memory.left == without.left - memory.graphs


def test_tiles_come_a_few_layers_at_a_time_beside_streams_and_whole_where_answers_are_read_whole():
    device = DeviceFacts(64 * GIB, 64 * GIB)
    for asked, streams, batches in ((None, 0.25, 16), (1.5, 1.5, 1.5)):
        config = EngineConfig(encode_budget=asked)
        assert resolve(config, INTERNVL3_1B, device).limits.encode_budget == streams
        assert resolve(config.for_whole_answers(), INTERNVL3_1B, device).limits.encode_budget == batches
