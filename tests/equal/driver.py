"""Runs prompts through scheduler and runner as the engine does, and keeps the logits of every sampled position."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tilewise.engine.core import EngineCore
from tilewise.models.load import Architecture
from tilewise.platforms.base import Platform
from tilewise.platforms.cpu import CpuPlatform
from tilewise.runner import runner as runner_module
from tilewise.runner.runner import BackgroundRunner, LocalRunner
from tilewise.sampling_params import SamplingParams
from tilewise.step import Handle, Limits, Runner, StepPlan, Work
from tilewise.types import ImageInput, Request, Tile
from tilewise.weights.folder import CheckpointFolder

LIMITS = Limits(
    max_num_seqs=8,
    max_model_len=256,
    max_num_batched_tokens=512,
    block_size=16,
    num_blocks=129,
    tokens_per_tile=4,
    tile_pages=32,
    encode_budget=8,
    tiles_in_flight=16,
    tile_batches=(8, 4, 2, 1),
)


default_platform: Callable[[], Platform] = CpuPlatform
"""The platform of engines that are told no other (`--npu`, in conftest.py)."""


class Engine:
    """A model under limits of the test's choosing."""

    def __init__(
        self,
        folder: Path,
        ops=None,
        dtype=torch.float32,
        overlap: bool = False,
        draft: Path | None = None,
        graphs: bool = True,
        capturer=None,
        streams=None,
        store=None,
        **changes,
    ) -> None:
        platform = default_platform()
        self.capturer = (capturer or platform.capturer) if graphs else None
        self.streams = streams
        architecture = Architecture.of(CheckpointFolder.open(folder))
        changes.setdefault("graph_sizes", tuple(size for size in platform.graph_sizes if size <= LIMITS.max_num_seqs))
        self.limits = replace(LIMITS, flash=architecture.config.flash, **changes)
        self.model = architecture.load(
            *(dtype, ops or platform.ops(self.limits.batch_invariant), self.limits.max_model_len, platform.device),
            store=store,
        )
        self.platform = platform
        self.config = architecture.config
        self.overlap = overlap
        self.draft = None
        if draft is not None:
            smaller = Architecture.of(CheckpointFolder.open(draft))
            self.draft = smaller.load(dtype, platform.ops(), self.limits.max_model_len, platform.device)
        self.cached: dict[str, int] = {}

    def run(self, requests: list[Request], monkeypatch) -> dict[str, tuple[list[int], Tensor]]:
        """Tokens and logits [tokens, vocabulary] of each request."""
        local = LocalRunner(
            *(self.model, self.limits, self.platform.device),
            draft_model=self.draft,
            capturer=self.capturer,
            streams=self.streams,
        )
        in_a_thread = self.overlap and not self.platform.beside_host
        self.runner = Recorder(BackgroundRunner(local) if in_a_thread else local)
        self.core = EngineCore(self.runner, self.limits, self.overlap)
        return self.run_more(requests, monkeypatch)

    def run_more(self, requests: list[Request], monkeypatch) -> dict[str, tuple[list[int], Tensor]]:
        """The same with what is cached from before."""
        core, recorder = self.core, self.runner
        recorder.begin(core)
        monkeypatch.setattr(runner_module, "sample", recorder.sample)
        for request in requests:
            core.submit(request)
        tokens: dict[str, list[int]] = {request.id: [] for request in requests}
        while core.has_unfinished:
            for delta in core.step():
                tokens[delta.request_id].append(delta.token.token_id)
                self.cached[delta.request_id] = delta.cached_tokens
        monkeypatch.setattr(runner_module, "sample", recorder.real_sample)
        # A sequence that has ended may have computed one token more, which is nobody's.
        return {name: (ids, torch.stack(recorder.logits[name][: len(ids)])) for name, ids in tokens.items()}


class Recorder:
    """A runner that knows whose logits are sampled from: slots are given to others while steps are on their way."""

    real_sample = staticmethod(runner_module.sample)

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._owners: deque[dict[int, str]] = deque()
        self.logits: dict[str, list[Tensor]] = {}

    def begin(self, core: EngineCore) -> None:
        self._core = core
        self.logits = defaultdict(list)

    def launch(self, plan: StepPlan) -> Handle:
        if plan.work:
            running = self._core._scheduler.running
            self._owners.append({sequence.slot: sequence.request.id for sequence in running})
        return self._runner.launch(plan)

    def check(self) -> None:
        self._runner.check()

    def sample(self, logits: Tensor, work: list[Work], *rest):
        """In the order of the launches, perhaps in another thread."""
        owners = self._owners.popleft()
        found = self.real_sample(logits, work, *rest)
        for item, rows in zip(work, logits.split([item.num_choices for item in work]), strict=True):
            self.logits[owners[item.slot]] += rows[: len(found.wait()[item.slot])]
        return found

    def close(self) -> None:
        self._runner.close()


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


def few_requests() -> list[Request]:
    """Return requests of all kinds: a text, a picture, one that is drawn, a long one."""
    return [
        prompt("text", 3, 9, max_tokens=6),
        prompt("picture", 2, 5, tiles=2, max_tokens=5),
        prompt("drawn", 5, 12, temperature=0.8, top_p=0.9, seed=7, max_tokens=6),
        prompt("long", 6, 40, max_tokens=4),
    ]
