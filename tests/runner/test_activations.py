"""The formula of activation memory against the most that torch allocates during the largest step."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.tiny import SPECS, TinySpec, original_config
from tilewise.models.load import Architecture
from tilewise.plan.memory import LargestStep
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.ops import Ops, TorchOps
from tilewise.runner.activations import DecoderStep, EncoderBatch, activation_bytes
from tilewise.runner.runner import LocalRunner
from tilewise.sampling_params import SamplingParams
from tilewise.step import Admission, BlockGrant, EncodeJob, Limits, StepPlan, Work
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.sources import RandomSource

BLOCK = 16
MANY_TOKENS = LargestStep(tokens=512, sequences=8, rows=8, context=1024, logprobs=20, tiles=16)
MANY_ROWS = LargestStep(tokens=300, sequences=300, rows=300, context=320, logprobs=20, tiles=16)
WIDE = {
    "hidden": 384,
    "intermediate": 1024,
    "expert_intermediate": 512,
    "vocab": 500,
    "tile_size": 112,
    "vision_hidden": 240,
    "vision_intermediate": 960,
}
"""Wide enough that tensors of the model, not integers, are what memory is taken for."""


def wide(name: str, **changes: int) -> TinySpec:
    spec = replace(SPECS[name], **{**WIDE, **changes})
    return replace(spec, head_dim=spec.head_dim and spec.hidden // spec.heads)


def architecture_of(spec: TinySpec, folder) -> Architecture:
    (folder / "config.json").write_text(json.dumps(original_config(spec, "float32")))
    return Architecture.of(CheckpointFolder.open(folder))


class Bench:
    """A runner that is asked for the most that `step` allows."""

    def __init__(
        self, architecture: Architecture, ops: Ops, dtype: torch.dtype, step: LargestStep, kv: str | None = None
    ) -> None:
        self.step = step
        blocks = step.context // BLOCK
        self.size = architecture.config.tile_size
        self.vocabulary = architecture.config.decoder.vocab_size
        sizes = (step.sequences, step.context, step.tokens, BLOCK, step.sequences * blocks + 1)
        tiles = architecture.config.tokens_per_tile, step.tiles, step.tiles, step.tiles
        limits = Limits(*sizes, *tiles, tile_batches=(step.tiles,), kv_cache_dtype=kv)
        model = architecture.build(RandomSource(dtype, torch.device("cpu")), ops, step.context)
        self.runner = LocalRunner(model, limits, torch.device("cpu"))
        self._numbers = itertools.count()

    def plan(self, count: int, sampling: SamplingParams, masked: bool = False, scored: bool = False) -> StepPlan:
        """`count` sequences, as long as can be, share the tokens of a step, which are their last."""
        length = self.step.context
        blocks, tokens = length // BLOCK, self.step.tokens // count
        grants = tuple(
            BlockGrant(slot + 1, 0, tuple(range(slot * blocks + 1, (slot + 1) * blocks + 1))) for slot in range(count)
        )
        ids = tuple(number % 400 for number in range(length))
        prompt = length if scored else length - tokens
        admissions = tuple(Admission(slot + 1, ids, prompt, sampling, slot, frozenset()) for slot in range(count))
        mask = np.full((self.vocabulary + 31) // 32, -1, np.int32) if masked else None
        work = tuple(
            Work(slot + 1, length - tokens, tokens, True, masks=None if mask is None else mask[None])
            for slot in range(count)
        )
        return StepPlan(next(self._numbers), admissions, grants, (), work)

    def tiles(self) -> StepPlan:
        pixels = np.random.default_rng(0).integers(0, 256, (self.step.tiles, self.size, self.size, 3), np.uint8)
        jobs = tuple(EncodeJob(bytes([page]), tile, page) for page, tile in enumerate(pixels))
        return StepPlan(next(self._numbers), (), (), jobs, ())

    def peak(self, plan: StepPlan) -> int:
        """Most bytes of tensors at one time during a step, beyond those that were there before."""
        self.runner.launch(plan)  # once, since libraries allocate for good at their first call
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.runner.launch(plan)
        changes = sorted(
            (event.start_ns(), event.nbytes())
            for event in found.profiler.kineto_results.events()
            if event.name() == "[memory]"
        )
        return max(itertools.accumulate(change for _, change in changes))


CASES = [
    ("qwen2-300m", CpuPlatform().ops(), torch.float32),
    ("qwen3-6b-tied", CpuPlatform().ops(), torch.bfloat16),
    ("gptoss-300m-head", CpuPlatform().ops(), torch.bfloat16),
    ("qwen2-300m", TorchOps(), torch.float32),
    ("qwen2-300m", TorchOps(), torch.bfloat16),
    ("qwen2-300m", Ops(), torch.float32),
    ("qwen2-300m", Ops(), torch.bfloat16),
    ("qwen3-6b-tied", TorchOps(), torch.bfloat16),
    ("gptoss-300m-head", TorchOps(), torch.float32),
    ("qwen3moe-300m-head", TorchOps(), torch.bfloat16),
]
every_case = pytest.mark.parametrize(("name", "ops", "dtype"), CASES)


@every_case
def test_the_largest_chunk_and_batch_of_tiles_take_what_the_formula_says(name, ops, dtype, tmp_path):
    architecture = architecture_of(wide(name), tmp_path)
    bench = Bench(architecture, ops, dtype, MANY_TOKENS)
    decoder = DecoderStep(architecture.config.decoder, dtype.itemsize, ops, MANY_TOKENS).bytes
    chunk = bench.peak(bench.plan(1, SamplingParams(temperature=0)))
    encoder, tiles = (
        EncoderBatch(architecture.config, dtype.itemsize, ops, MANY_TOKENS.tiles).bytes,
        bench.peak(bench.tiles()),
    )
    assert chunk <= decoder <= 2 * chunk
    assert tiles <= encoder <= 2 * tiles


@pytest.mark.parametrize("ops", [CpuPlatform().ops(), TorchOps(), Ops()], ids=lambda ops: type(ops).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cache_of_8_bits_takes_what_the_formula_says(ops, dtype, tmp_path):
    architecture = architecture_of(wide("qwen2-300m"), tmp_path)
    bench = Bench(architecture, ops, dtype, MANY_TOKENS, kv="fp8")
    formula = DecoderStep(architecture.config.decoder, dtype.itemsize, ops, MANY_TOKENS, quantised_kv=True).bytes
    chunk = bench.peak(bench.plan(1, SamplingParams(temperature=0)))
    assert chunk <= formula <= 2 * chunk


class ManyDrawn(TorchOps):
    drawn_at_once = 300


SAMPLED = {
    "drawn": {"sampling": SamplingParams(top_p=0.9, repetition_penalty=1.1, logprobs=20)},
    "masked": {"sampling": SamplingParams(temperature=0), "masked": True},
    "scored": {"sampling": SamplingParams(prompt_logprobs=20), "scored": True},
}


@pytest.mark.parametrize("name", ["qwen3moe-300m-head", "gptoss-300m-head"])
def test_experts_that_all_tokens_choose_take_what_the_formula_says(name, tmp_path):
    architecture = architecture_of(wide(name, experts=1, experts_per_token=1, expert_intermediate=4096), tmp_path)
    bench = Bench(architecture, TorchOps(), torch.float32, MANY_TOKENS)
    decoder = DecoderStep(architecture.config.decoder, 4, TorchOps(), MANY_TOKENS)
    assert decoder.mlp > decoder.attention
    peak = bench.peak(bench.plan(1, SamplingParams(temperature=0)))
    assert peak <= decoder.bytes <= 2 * peak


@pytest.mark.parametrize("ops", [TorchOps(), ManyDrawn()], ids=["few rows drawn at once", "all rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_take_what_the_formula_says(ops, dtype, tmp_path):
    architecture = architecture_of(wide("qwen2-300m", vocab=6000), tmp_path)
    bench = Bench(architecture, ops, dtype, MANY_ROWS)
    formula = DecoderStep(architecture.config.decoder, dtype.itemsize, ops, MANY_ROWS)
    peaks = {
        kind: bench.peak(bench.plan(1 if kind == "scored" else MANY_ROWS.sequences, **options))
        for kind, options in SAMPLED.items()
    }
    assert max(peaks.values()) <= formula.bytes <= 2 * max(peaks.values())


def test_the_larger_of_decoder_and_encoder_counts_and_tables_come_on_top(tmp_path):
    config = architecture_of(wide("qwen2-300m"), tmp_path).config
    tiles = EncoderBatch(config, 4, TorchOps(), 16).bytes
    few = LargestStep(tokens=8, sequences=8, rows=8, context=16, logprobs=0, tiles=16)
    tables = 9 * 16 * 16 + 16 * config.decoder.head_dim * 4
    assert activation_bytes(config, 4, TorchOps(), few) == tiles + tables
    assert (
        activation_bytes(config, 4, TorchOps(), MANY_TOKENS)
        > DecoderStep(config.decoder, 4, TorchOps(), MANY_TOKENS).bytes
    )
