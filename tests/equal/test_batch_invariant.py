"""The contract of `--batch-invariant`: however a request is run, its logits are the same to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.equal import contract
from tests.equal.driver import Engine
from tests.equal.test_equal import requests
from tests.guesses import drafting, lookup
from tests.tiny import SPECS, TWINS, TinySpec, write_original
from tilewise import LLM, SamplingParams
from tilewise.platforms.cpu.invariant import InvariantCpuOps
from tilewise.platforms.ops import INVARIANT_ROWS, TorchOps

WIDE = replace(
    SPECS["qwen2-300m"], hidden=384, intermediate=1024, vision_hidden=192, vision_heads=3, vision_intermediate=768
)
"""Wide enough for a library to sum up in several ways."""
TORCH = "wide, without kernels"
"""Kernels of our own sum up in one order whatever the batch, so that they would hide what the mode does for torch."""
MODELS: dict[str, tuple[TinySpec, torch.dtype]] = {
    "wide": (WIDE, torch.float32),
    TORCH: (WIDE, torch.float32),
    "bfloat16": (SPECS["qwen3-300m-head"], torch.bfloat16),
    "flash": (TWINS["InternVL3_5-1B-Flash"], torch.float32),
    **{
        name: (SPECS[name], torch.float32)
        for name in ("qwen2-300m", "qwen3-6b-tied", "qwen3moe-300m-head", "gptoss-300m-head")
    },
}
WAYS = {
    "batched": {},
    "chunks of 8": {"max_num_batched_tokens": 8},
    "chunks of 13": {"max_num_batched_tokens": 13},
    "chunks of 37": {"max_num_batched_tokens": 37},
    "blocks of 1": {"block_size": 1, "num_blocks": 2049},
    "blocks of 5": {"block_size": 5, "num_blocks": 410},
    "blocks of 64": {"block_size": 64, "num_blocks": 33},
    "two at once": {"max_num_seqs": 2},
    "tiles one by one": {"tile_pages": 1},
    "tiles by four": {"tile_pages": 4},
    "overlapped": {"overlap": True},
    "overlapped in chunks": {"overlap": True, "max_num_batched_tokens": 13},
}
MET = [
    pytest.param(name, changes, id=f"{name}-{way}")
    for place, name in enumerate(MODELS)
    for number, (way, changes) in enumerate(WAYS.items())
    if place < 2 or number % 3 == place % 3
]
"""Every way with the wide models, on which sums may differ; the others meet four each, and every way two of them."""
TIGHT = {"block_size": 4, "num_blocks": 20}


@dataclass(frozen=True)
class Model:
    folder: Path
    dtype: torch.dtype
    kernels: bool = True

    def engine(self, batch_invariant: bool = True, **changes) -> Engine:
        if not self.kernels:
            changes = {"ops": InvariantCpuOps() if batch_invariant else TorchOps(), **changes}
        return Engine(self.folder, dtype=self.dtype, batch_invariant=batch_invariant, **changes)

    def alone(self, **changes):
        """Every request by itself."""
        found = {}
        with pytest.MonkeyPatch.context() as monkeypatch:
            for request in requests():
                found |= self.engine(**changes).run([request], monkeypatch)
        return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Models by their names, each written once."""

    @cache
    def write(name):
        spec, dtype = MODELS[name]
        return Model(write_original(tmp_path_factory.mktemp("model"), spec), dtype, kernels=name != TORCH)

    return write


@pytest.fixture(params=MODELS)
def model(request, written):
    return written(request.param)


@cache
def answered_alone(model):
    """Not a fixture of the module, which would be made anew for each row of MET."""
    return model.alone()


@pytest.fixture
def alone(model):
    return answered_alone(model)


def note(found, expected) -> list[str]:
    """`differing`, told to the equality table."""
    for name in expected:
        for watch in contract.watchers:
            watch(found[name][1], expected[name][1], 0.0)
    return differing(found, expected)


def differing(found, expected) -> list[str]:
    """Requests whose tokens or logits are not the same bits."""
    assert found.keys() == expected.keys()
    return [
        name
        for name, (tokens, logits) in expected.items()
        if found[name][0] != tokens or not torch.equal(found[name][1], logits)
    ]


@pytest.mark.parametrize(("model", "changes"), MET, indirect=["model"])
def test_logits_do_not_depend_on_the_way(model, alone, monkeypatch, changes):
    engine = model.engine(**changes)
    assert not note(engine.run(requests(), monkeypatch), alone)
    engine.core.close()


@pytest.mark.parametrize("draft", [False, True], ids=["lookup", "draft model"])
def test_guesses_change_no_bit(model, alone, monkeypatch, draft):
    speculation = drafting(3) if draft else lookup(3, 1, 2)
    engine = model.engine(speculation=speculation, draft=model.folder if draft else None, max_num_batched_tokens=40)
    assert not note(engine.run(requests(), monkeypatch), alone)
    assert engine.core.counters.draft_tokens or not draft, "a lookup may find nothing"


@pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlapped"])
def test_preempted_equals_undisturbed(model, alone, monkeypatch, overlap):
    engine = model.engine(overlap=overlap, **TIGHT)
    assert not note(engine.run(requests(), monkeypatch), alone)
    assert engine.core.counters.preemptions
    engine.core.close()


def test_cold_equals_cached(model, alone, monkeypatch):
    engine = model.engine(block_size=4, num_blocks=513)
    assert not note(engine.run(requests(), monkeypatch), alone)
    assert not note(engine.run_more(requests(), monkeypatch), alone)
    assert engine.cached["text"] == 20  # its last chunk begins in the middle of a panel


SHAPED = ("linear", "rms_norm", "layer_norm", "gelu", "silu_mul", "dense_attention")
"""Ops that a library may compute otherwise for more rows."""


def test_no_op_sees_more_or_fewer_rows_in_another_batch(model, monkeypatch):
    """By construction, not because one library happens to round alike: a panel, one tile, or one row of logits."""
    seen: dict[str, set[int]] = {}
    for name in SHAPED:
        monkeypatch.setattr(TorchOps, name, watched(getattr(TorchOps, name), seen.setdefault(name, set())))
    # Without kernels, whose sums have one order whatever the shape (tests/platforms/test_weights.py).
    model.engine(ops=InvariantCpuOps(), max_num_batched_tokens=70).run(requests(), monkeypatch)
    assert seen.pop("linear") == {1, INVARIANT_ROWS}
    assert all(rows <= {1, INVARIANT_ROWS} for rows in seen.values()), seen


def watched(op, rows: set[int]):
    """The op, which notes how long its input's first axis is."""

    def call(self, x, *rest):
        rows.add(len(x))
        return op(self, x, *rest)

    return call


def test_the_ordinary_mode_differs(tmp_path, monkeypatch):
    """Guards the rest of this file: rounding of this model does depend on the batch."""
    model = Model(write_original(tmp_path, WIDE), torch.float32, kernels=False)
    alone = model.alone(batch_invariant=False)
    assert differing(model.engine(batch_invariant=False).run(requests(), monkeypatch), alone)


PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=5, prompt_logprobs=3)
PROMPTS = ["A red circle", "How many squares are there? " * 9, "Which one is larger? " * 4]


def scores(output):
    """Every log-probability of prompt and answer."""
    steps = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    return [{token: one.logprob for token, one in step.items()} for step in steps]


@pytest.mark.parametrize("by_environment", [False, True], ids=["option", "environment"])
def test_log_probabilities_that_a_caller_sees(monkeypatch, by_environment):
    """Of prompts too, whose logits are computed many at a time."""
    options = {"device": "cpu"} if by_environment else {"device": "cpu", "batch_invariant": True}
    if by_environment:
        monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with LLM("demo", **options) as llm, LLM("demo", max_num_batched_tokens=64, **options) as chunked:
        alone = [scores(llm.generate(prompt, PARAMS, use_tqdm=False)[0]) for prompt in PROMPTS]
        assert [scores(output) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)] == alone
        assert [scores(output) for output in chunked.generate(PROMPTS, PARAMS, use_tqdm=False)] == alone
