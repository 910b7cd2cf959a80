"""The engine over Triton's kernels, captured steps of a few sizes, and tiles that are encoded beside steps.

On a CPU, kernels run in Triton's interpreter, a captured step is computed anew from what its inputs hold, and the
stream for tiles says later than it could that a batch is done.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.equal.contract import assert_same
from tests.equal.driver import Engine, few_requests, prompt
from tests.guesses import drafting
from tests.tiny import SPECS, write_original
from tilewise.platforms.base import Capture
from tilewise.platforms.cuda import H100
from tilewise.platforms.cuda.triton_ops import TritonOps
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import Ops, TorchOps
from tilewise.platforms.weights import Use, rounded_to_fp8
from tilewise.runner.encoder import EncoderLane
from tilewise.runner.tile_store import CappedFolder, EncodedTileFile, EncodedTileStore
from tilewise.step import EncodeJob

SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Repeated:
    """What a graph is to its caller: the same step, over the inputs that it was captured with."""

    step: Callable[[], Tensor]
    result: Tensor
    first: None = None

    def replay(self, layout: PagedLayout | None = None) -> Tensor:
        self.result.copy_(self.step())
        return self.result


def capturer(_: Ops) -> Capture:
    return lambda step: Repeated(step, torch.full_like(step(), float("nan")))  # nothing is computed meanwhile


class LateEvent:
    """It happens when it has been asked for a few times."""

    def __init__(self, times: int) -> None:
        self._times = times

    def query(self) -> bool:
        self._times -= 1
        return self._times < 0

    def synchronize(self) -> None:
        self._times = 0


class LateStreams:
    """What `Streams` is, of a device that does everything at once and says so late."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.batches = 0

    def steps(self) -> nullcontext[None]:
        return nullcontext()

    tiles = steps

    def follow_steps(self) -> None:
        self.batches += 1

    def tiles_done(self) -> LateEvent:
        return LateEvent(self._random.randint(0, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


@pytest.fixture(scope="module")
def expected(folder):
    with pytest.MonkeyPatch.context() as patch:
        return Engine(folder, Ops(), graphs=False).run(few_requests(), patch)


WAYS = {
    "sizes of captured steps": {"capturer": capturer, "graph_sizes": SIZES},
    "torch's ops in captured steps": {"ops": TorchOps(), "capturer": capturer, "graph_sizes": SIZES},
    "kernels in captured steps": {"ops": TritonOps(H100), "capturer": capturer, "graph_sizes": SIZES},
    "tiles beside steps": {"streams": LateStreams(1), "graphs": False},
    "captured tiles beside steps": {"streams": LateStreams(1), "capturer": capturer, "graph_sizes": SIZES},
    "tiles beside overlapped steps": {"streams": LateStreams(2), "overlap": True, "max_num_batched_tokens": 13},
}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_answers_are_those_of_the_reference(folder, expected, monkeypatch, changes):
    engine, in_kernels = Engine(folder, **changes), isinstance(changes.get("ops"), TritonOps)
    asked = few_requests()[1:3] if in_kernels else few_requests()  # the interpreter takes its time
    found = engine.run(asked, monkeypatch)
    assert_same(found, {name: expected[name] for name in found}, 2e-5)
    assert len(found) == len(asked)
    engine.core.close()
    if in_kernels:
        assert not changes["ops"].left_out


OTHER_MODELS = {
    "experts": ("qwen3moe-300m-head", {}),
    "experts with biases, windows and sinks": ("gptoss-300m-head", {}),
    "cache of int8": ("qwen3-6b-tied", {"kv_cache_dtype": "int8"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "changes"), OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_other_models_in_kernels(tmp_path, monkeypatch, spec, changes):
    folder = write_original(tmp_path / spec, SPECS[spec])
    expected = Engine(folder, Ops(), graphs=False, **changes).run(few_requests(), monkeypatch)
    ops = TritonOps(H100)
    engine = Engine(folder, ops, capturer=capturer, graph_sizes=SIZES, **changes)
    assert_same(engine.run(few_requests(), monkeypatch), expected, 1e-3 if changes else 5e-5)
    assert not ops.left_out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rounded_weights_in_kernels(tmp_path, monkeypatch, kind):
    """Products of plain torch give the same sums, rounded in another order."""
    folder = write_original(tmp_path / "model", SPECS["qwen2-300m"])
    found = {}
    for ops in (Ops(), TritonOps(H100)):
        store = ops.store_int8 if kind == "int8" else fp8_store(ops)
        found[type(ops)] = Engine(folder, ops, store=store, graphs=False).run(few_requests(), monkeypatch)
    assert_same(found[TritonOps], found[Ops], 1e-3)


def fp8_store(ops: Ops):
    def store(parts, bias, use=Use.ALONE):
        return ops.store([rounded_to_fp8(part) for part in parts], bias, use)

    return store


def test_all_sizes_are_captured_before_anything_is_asked(folder, expected, monkeypatch):
    engine = Engine(folder, capturer=capturer, graph_sizes=SIZES, streams=LateStreams(0))
    found = engine.run([], monkeypatch)
    local = engine.runner._runner
    local.capture_graphs()
    assert list(local._lane._encoders[0]._batches) == [8, 4, 2, 1]
    assert [len(counts) for counts in local._forward._captured] == [4, 2, 1]
    found = engine.run_more(few_requests(), monkeypatch)
    assert_same(found, expected, 2e-5)
    assert len(local._forward._captured) == 3, "steps were filled up to these"


def test_a_draft_models_steps_are_captured_before_anything_is_asked(folder, monkeypatch):
    engine = Engine(folder, capturer=capturer, graph_sizes=SIZES, draft=folder, speculation=drafting(2))
    engine.run([], monkeypatch)
    local = engine.runner._runner
    local.capture_graphs()
    assert [len(counts) for counts in local._drafter._forward._captured] == [4, 2, 1]


@pytest.mark.parametrize("models", [1, 2])
@torch.inference_mode()
def test_tiles_for_the_store_are_copied_behind_their_batch(folder, tmp_path, models):
    """Rows that come into their pages later, before the host has heard that they are done, are not theirs."""
    model = Engine(folder, Ops()).model
    form = EncodedTileFile("0" * 32, (model.config.rows_per_page, model.config.decoder.hidden_size), torch.float32)
    store = EncodedTileStore(CappedFolder(tmp_path, 2**20), form)
    lane = EncoderLane([model] * models, 2, (2,), store, streams=LateStreams(3))
    jobs = [EncodeJob(bytes([page]) * 16, np.full((56, 56, 3), 99 * page, np.uint8), page) for page in (0, 1)]
    assert lane.take(jobs) == lane.advance(None, wait=False) == ()
    expected = lane.pools[0].clone()
    lane.pools[0].fill_(7)
    assert len(lane.advance(None)) == 2
    lane.close()
    assert torch.equal(torch.stack([store.read(job.digest).rows for job in jobs]), expected)


def test_tiles_come_late_and_each_in_its_page(folder, monkeypatch):
    asked = [prompt(f"{tiles}", tiles, 6, tiles=tiles, max_tokens=3) for tiles in (1, 5, 3, 9, 2)]
    changes = {"tile_pages": 9, "tile_batches": (2, 1)}
    alone = {}
    for request in asked:
        alone |= Engine(folder, **changes).run([request], monkeypatch)
    for streams in map(LateStreams, range(4)):
        assert_same(Engine(folder, streams=streams, **changes).run(asked, monkeypatch), alone)
        assert streams.batches >= 10
