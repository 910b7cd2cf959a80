"""The whole engine over the ops of an NPU, each of whose calls meets torch_npu's interface.

In float32 and with small heads, which kernels do not take, answers are compared within rounding; in halves, with heads
and blocks that a card takes, every call is one that its documentation allows.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.equal.contract import assert_same
from tests.equal.driver import Engine, few_requests
from tests.platforms.ascend.device import FakeNpu, capturer, interface, lenient_ops, strict, strict_ops
from tests.tiny import SPECS, write_original
from tilewise.platforms.ops import Ops

SIZES = (1, 2, 4)
MODELS = ("qwen2-300m", "qwen3-6b-tied", "internlm2-300m", "phi3-300m", "qwen3moe-300m-head", "gptoss-300m-head")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_original(tmp_path_factory.mktemp(name), SPECS[name]) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_reference(folders, monkeypatch, name):
    folder = folders[name]
    expected = Engine(folder, Ops(), graphs=False).run(few_requests(), monkeypatch)
    npu = FakeNpu()
    engine = Engine(folder, lenient_ops(), capturer=capturer(npu), graph_sizes=SIZES, block_size=128, num_blocks=17)
    assert_same(engine.run(few_requests(), monkeypatch), expected, 5e-5)
    assert npu.captured, "steps of one token are captured"


@pytest.mark.parametrize("changes", [{"overlap": True}, {"max_num_batched_tokens": 13}], ids=str)
def test_overlapped_steps_and_chunks(folders, monkeypatch, changes):
    folder = folders["qwen2-300m"]
    expected = Engine(folder, Ops(), graphs=False).run(few_requests(), monkeypatch)
    options = {"capturer": capturer(FakeNpu()), "graph_sizes": SIZES, "block_size": 128, "num_blocks": 17}
    assert_same(Engine(folder, lenient_ops(), **options, **changes).run(few_requests(), monkeypatch), expected, 2e-5)


def test_all_sizes_are_captured_before_anything_is_asked(folders, monkeypatch):
    npu = FakeNpu()
    engine = Engine(folders["qwen2-300m"], lenient_ops(), capturer=capturer(npu), graph_sizes=SIZES)
    engine.run([], monkeypatch)
    engine.runner._runner.capture_graphs()
    assert npu.captured == len(SIZES)
    expected = Engine(folders["qwen2-300m"], Ops(), graphs=False).run(few_requests(), monkeypatch)
    assert_same(engine.run_more(few_requests(), monkeypatch), expected, 2e-5)


CARD = {"head_dim": 64, "heads": 4, "kv_heads": 2, "hidden": 64, "vision_hidden": 128, "vision_heads": 2}
"""Sizes of heads that a card takes: 64 numbers in decoder and tower."""
KINDS = {
    "dense": ("qwen3-300m-head", "store"),
    "dense in int8": ("qwen3-300m-head", "store_int8"),
    "experts": ("qwen3moe-300m-head", "store"),
    "experts in int8": ("qwen3moe-300m-head", "store_int8"),
    "windows and sinks": ("gptoss-300m-head", "store"),
}


@pytest.mark.parametrize(("name", "store"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_card_takes_every_call(tmp_path, monkeypatch, name, store, dtype):
    """Logits are near those of the reference in the same dtype, as far as the first token, behind the same prompt."""
    folder = write_original(tmp_path / "model", replace(SPECS[name], **CARD))
    sizes = {"block_size": 128, "num_blocks": 17}
    found = {}
    for ops in (Ops(), strict_ops()):
        with strict():
            engine = Engine(folder, ops, dtype=dtype, store=getattr(ops, store), graphs=False, **sizes)
            found[type(ops) is Ops] = engine.run(few_requests(), monkeypatch)
    for request, (_, logits) in found[True].items():
        difference = (found[False][request][1][0] - logits[0]).abs().max()
        assert difference < 0.1 * logits[0].abs().max(), request
    used = set(interface().calls)
    assert "npu_fused_infer_attention_score" in used
    assert "npu_scatter_pa_kv_cache" in used
