"""Runs prompts through scheduler and runner as the engine does, and keeps the logits of every sampled position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tilewise.engine.core import EngineCore
from tilewise.models.load import Architecture
from tilewise.platforms.cpu.ops import CpuOps
from tilewise.runner import runner as runner_module
from tilewise.runner.runner import LocalRunner
from tilewise.step import Limits
from tilewise.types import ImageInput, Request, SamplingParams, Tile
from tilewise.weights.folder import CheckpointFolder

LIMITS = Limits(
    max_num_seqs=8,
    max_model_len=256,
    max_num_batched_tokens=512,
    block_size=16,
    num_blocks=129,
    tokens_per_tile=4,
    tile_pages=32,
    tile_budget=8,
)


class Engine:
    """A model under limits of the test's choosing."""

    def __init__(self, folder: Path, ops=None, dtype=torch.float32, **changes: int) -> None:
        architecture = Architecture.of(CheckpointFolder.open(folder))
        self.limits = replace(LIMITS, flash=architecture.config.flash, **changes)
        self.model = architecture.load(dtype, ops or CpuOps(), self.limits.max_model_len)
        self.config = architecture.config
        self.cached: dict[str, int] = {}

    def run(self, requests: list[Request], monkeypatch) -> dict[str, tuple[list[int], Tensor]]:
        """Tokens and logits [tokens, vocabulary] of each request; a preempted sequence's are in order all the same."""
        self.core = EngineCore(LocalRunner(self.model, self.limits, torch.device("cpu")), self.limits)
        return self.run_more(requests, monkeypatch)

    def run_more(self, requests: list[Request], monkeypatch) -> dict[str, tuple[list[int], Tensor]]:
        """The same with what is cached from before."""
        core = self.core
        for request in requests:
            core.submit(request)
        tokens: dict[str, list[int]] = {request.id: [] for request in requests}
        logits: dict[str, list[Tensor]] = {request.id: [] for request in requests}
        rows: list[Tensor] = []
        sample = runner_module.sample
        monkeypatch.setattr(runner_module, "sample", lambda row, *rest: (rows.append(row), sample(row, *rest))[1])
        while core.has_unfinished:
            rows.clear()
            deltas = core.step()
            for row, delta in zip(rows[0] if rows else [], deltas, strict=True):
                tokens[delta.request_id].append(delta.token.token_id)
                logits[delta.request_id].append(row)
                self.cached[delta.request_id] = delta.cached_tokens
        monkeypatch.setattr(runner_module, "sample", sample)
        return {name: (tokens[name], torch.stack(logits[name])) for name in tokens}


def picture(seed: int, tiles: int, size: int, start: int) -> ImageInput:
    pixels = np.random.default_rng(seed).integers(0, 256, (tiles, size, size, 3), np.uint8)
    made = tuple(Tile(bytes([seed, number] * 8), tile) for number, tile in enumerate(pixels))
    return ImageInput(made, (tiles, 1), (size, size), start)


def prompt(name: str, content: int, text: int, tiles: int = 0, size: int = 56, **sampling) -> Request:
    """Ordinary tokens, drawn by number `content`, with a picture of `tiles` tiles after the first two."""
    ids = np.random.default_rng(content).integers(5, 250, text).tolist()
    images = (picture(content, tiles, size, start=2),) if tiles else ()
    ids[2:2] = [0] * (4 * tiles)
    params = SamplingParams(**{"temperature": 0, "max_tokens": 8, **sampling})
    return Request(name, tuple(ids), params, images)
