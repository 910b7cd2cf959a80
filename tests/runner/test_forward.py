"""Forward: which passes are captured, how many are kept, and models of which none can be."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.equal.driver import LIMITS
from tests.guesses import drafting
from tests.models.driving import BLOCK, new_caches
from tests.tiny import SPECS, write_original
from tilewise.models.decoder import InternVL, ModelBatch
from tilewise.models.load import Architecture
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.runner import forward as forward_module
from tilewise.runner.forward import Forward
from tilewise.weights.folder import CheckpointFolder

PLATFORM = CpuPlatform()
pytestmark = pytest.mark.skipif(isinstance(PLATFORM.kernels, NoKernels), reason="kernels cannot be built here")
CONTEXT, SEQUENCES = 8 * BLOCK, 4
WITH_EXPERTS = ("qwen3_moe", "gpt_oss")


def model_of(name: str, folder: Path) -> InternVL:
    architecture = Architecture.of(CheckpointFolder.open(write_original(folder, SPECS[name])))
    return architecture.load(torch.float32, PLATFORM.ops(), CONTEXT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> InternVL:
    return model_of("qwen3-6b-tied", tmp_path_factory.mktemp("model"))


def batch_of(counts: list[int], before: int, image_rows: int = 0) -> ModelBatch:
    """So many tokens of each sequence, behind `before` others; each has blocks of its own."""
    rows, total = torch.arange(len(counts)), sum(counts)
    table = 1 + torch.arange(SEQUENCES * CONTEXT // BLOCK).view(SEQUENCES, -1)[: len(counts)]
    positions = torch.cat([before + torch.arange(count) for count in counts])
    owners = rows.repeat_interleave(torch.tensor(counts))
    layout = PagedLayout(
        query_starts=torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()]),
        seq_lens=before + torch.tensor(counts),
        block_table=table,
        kv_slots=table[owners, positions // BLOCK] * BLOCK + positions % BLOCK,
        token_rows=torch.arange(total),
    )
    ids = 7 + (11 * positions + 5 * owners) % 200
    images = torch.arange(image_rows)
    return ModelBatch(ids, positions, layout, images, images, torch.arange(total))


def forward_of(model: InternVL, guesses: int = 0, captures: bool = True) -> Forward:
    limits = replace(LIMITS, speculation=drafting(guesses) if guesses else None)
    caches = [cache.zero_() for cache in new_caches(model, 1 + SEQUENCES * CONTEXT // BLOCK)]
    pool = torch.zeros(1, 4, model.config.decoder.hidden_size)
    return Forward(model, limits, caches, pool, PLATFORM.capturer if captures else None)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.decoder not in WITH_EXPERTS])
@torch.inference_mode()
def test_replayed_passes_equal_those_launched_op_by_op(name: str, tmp_path: Path) -> None:
    """Answers grow over the end of a block while sequences come and go."""
    model = model_of(name, tmp_path)
    eager, replayed = forward_of(model, captures=False), forward_of(model, guesses=2)
    for before in range(12, 20):
        for counts in ([1], [1, 1, 1], [3, 1], [1], [2, 3, 1, 1]):
            expected = eager.hidden(batch_of(counts, before)).clone()
            assert torch.equal(replayed.hidden(batch_of(counts, before)), expected)
    assert set(replayed._captured) == {(1,), (1, 1, 1), (3, 1), (2, 3, 1, 1)}
    assert not eager._captured


@torch.inference_mode()
def test_a_replay_reads_blocks_behind_those_that_the_capture_had(model: InternVL) -> None:
    """Tables are as wide as the longest sequence of their step, which grows, ends, and makes room for a shorter one."""
    eager, replayed = forward_of(model, captures=False), forward_of(model)
    for before in (BLOCK - 1, BLOCK, 3 * BLOCK, 2, 5 * BLOCK + 1):
        batch = batch_of([1, 1], before)
        table = batch.layout.block_table[:, : before // BLOCK + 1].contiguous()
        narrow = replace(batch, layout=replace(batch.layout, block_table=table))
        expected = eager.hidden(batch_of([1, 1], before)).clone()
        assert torch.equal(replayed.hidden(narrow), expected)


@torch.inference_mode()
def test_prompts_and_pictures_are_not_captured(model: InternVL) -> None:
    forward = forward_of(model, guesses=2)
    for batch in (batch_of([4], 0), batch_of([1, 9], 3), batch_of([1], 3, image_rows=1)):
        forward.hidden(batch)
    assert not forward._captured


@torch.inference_mode()
def test_the_graph_that_was_replayed_last_the_longest_ago_goes(model: InternVL, monkeypatch) -> None:
    monkeypatch.setattr(forward_module, "_GRAPHS", 2)
    forward = forward_of(model, guesses=2)
    for counts in ([1], [2], [1], [3]):
        forward.hidden(batch_of(counts, 5))
    assert list(forward._captured) == [(1,), (3,)]


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.decoder in WITH_EXPERTS])
@torch.inference_mode()
def test_a_model_that_cannot_be_captured_is_launched_op_by_op(name: str, tmp_path: Path, caplog) -> None:
    """Which experts compute is read on the host."""
    model = model_of(name, tmp_path)
    eager, other = forward_of(model, captures=False), forward_of(model)
    with caplog.at_level(logging.INFO, "tilewise"):
        for before in (3, 4):
            assert torch.equal(other.hidden(batch_of([1, 1], before)), eager.hidden(batch_of([1, 1], before)))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["graphs"]
    assert not other._captured
