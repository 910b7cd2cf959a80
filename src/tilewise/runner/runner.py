"""Runner.launch: one step of one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tilewise.models.batch import ModelBatch
from tilewise.models.internvl import InternVL
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Capturer
from tilewise.platforms.transfers import Streams, fetched
from tilewise.runner.batch import build_batch
from tilewise.runner.drafter import Drafter
from tilewise.runner.encoder import EncoderLane
from tilewise.runner.forward import Forward
from tilewise.runner.head import by_panels, one_by_one, together
from tilewise.runner.kv_memory import allocate_caches
from tilewise.runner.placement import Placement, in_order, in_panels
from tilewise.runner.prompt_scores import score_prompts
from tilewise.runner.sampler import Sampled, sample
from tilewise.runner.tables import Tables
from tilewise.runner.tile_store import TileStore
from tilewise.runner.vision_workers import VisionWorkers
from tilewise.step import EncodedTile, Limits, PromptScores, StepPlan, StepResult, Work

_PIECE = 128
"""Tokens of a part of a step, at least: of fewer, to read a stage's weights once more would cost more than it gains."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A handle on a step that has been given to the device. On a CPU it has run to its end then."""

    sampled: Sampled
    encoded: tuple[EncodedTile, ...]
    prompt_scores: PromptScores

    def wait(self) -> StepResult:
        return StepResult(self.sampled.wait(), self.encoded, self.prompt_scores)


def pieces_of(work: Sequence[Work], most: int) -> list[list[Work]]:
    """The work in up to `most` parts of about as many tokens, one behind the other.

    While a stage of a pipeline has one of them, the stage before has the next one (Huang et al. 2019, "GPipe"), so that
    of s stages and n parts a step takes (n + s - 1) / (n * s) of the time of all stages. No part samples: that is the
    whole step's.
    """
    total = sum(item.count for item in work)
    count = max(1, min(most, total // _PIECE))
    ends = iter([total * number // count for number in range(1, count + 1)])
    pieces, done, end = [list[Work]()], 0, next(ends)
    for item in work:
        while item.count > end - done:
            first, item = _cut(item, end - done)
            pieces[-1] += [first] if first.count else []
            pieces.append([])
            done, end = end, next(ends)
        pieces[-1].append(item._replace(samples=False))
        done += item.count
    return pieces


def _cut(item: Work, count: int) -> tuple[Work, Work]:
    """The first tokens of a piece of work, and the others."""
    first = Work(item.slot, item.start, count, samples=False, tiles=item.tiles)
    return first, item._replace(start=item.start + count, count=item.count - count)


class LocalRunner:
    """Model, KV cache and tile pool of this process, and the encoded tiles that are kept on disk."""

    def __init__(
        self,
        model: InternVL,
        limits: Limits,
        device: torch.device,
        store: TileStore | None = None,
        draft_model: InternVL | None = None,
        capturer: Capturer | None = None,
        mesh: Mesh = Mesh(),
        workers: VisionWorkers | None = None,
        streams: Streams | None = None,
    ) -> None:
        """With a `draft_model` the guesses that plans leave open are its own. No `capturer`, no graphs.

        Of several ranks in a mesh, the first one chooses tokens. With vision `workers`, the model encodes no tiles.
        With `streams`, it encodes them beside its steps.
        """
        self._model = model
        self._mesh = mesh
        self._limits = limits
        fixed = limits.batch_invariant
        self._place = in_panels if fixed else in_order
        self._sampled_logits, self._prompt_logits = (one_by_one, by_panels) if fixed else (together, together)
        sizes = (1,) if fixed else limits.tile_batches
        models = [model, draft_model] if draft_model else [model]
        # Several ranks have to launch their sums in one order, which two streams would not keep.
        beside = streams if mesh.size == 1 else None
        self._stream: Callable[[], AbstractContextManager[Any]] = streams.steps if streams else nullcontext
        with self._stream():  # where it is filled is where it is read
            self._tables = Tables(limits, device)
            self._lane = EncoderLane(models, limits.tile_pages, sizes, store, mesh, workers, beside, capturer)
            caches = allocate_caches(model, limits, device)
            self._forward = Forward(model, limits, caches, self._lane.pools[0], capturer)
            self._drafter = (
                Drafter(draft_model, limits, self._tables, self._lane.pools[1], capturer) if draft_model else None
            )

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture steps and batches of tiles of all sizes, where the device has such; otherwise each is when it comes
        first.
        """
        self._lane.prepare()
        with self._stream():
            self._forward.prepare(lambda size: self._batch((), self._place(()), size))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        with self._stream():
            return self._launch(plan)

    def _launch(self, plan: StepPlan) -> LaunchedStep:
        for admission in plan.admissions:
            self._tables.admit(admission)
        for grant in plan.grants:
            self._tables.grant(grant)
        if self._drafter:
            self._drafter.advance(plan)
        sampled, prompt_scores = self._decode(plan) if plan.work else (Sampled((), fetched(), ()), {})
        written = self._lane.write(plan.rows)
        encoded = (*written, *self._lane.take(plan.encode), *self._lane.advance(plan.tiles, wait=not plan.work))
        return LaunchedStep(sampled, encoded, prompt_scores)

    def _decode(self, plan: StepPlan) -> tuple[Sampled, PromptScores]:
        tables, placement = self._tables, self._place(plan.work)
        for work in plan.work:
            if work.draft_ids:
                tables.write(work.slot, work.known_stop, work.draft_ids)
        batch = self._batch(plan.work, placement, self._forward.filled_up(plan.work))
        hidden = self._hidden(plan.work, batch)
        sampling = [work for work in plan.work if work.samples]
        if not self._mesh.is_last_stage:
            logits, prompt_scores = None, {}
        else:
            prompt_logits = partial(self._prompt_logits, self._model.logits, hidden)
            assert batch.layout.token_rows is not None
            prompt_scores = score_prompts(plan.work, batch.layout.token_rows, tables, prompt_logits)
            logits = self._sampled_logits(self._model.logits, hidden, batch.logits_rows)
        if any(tables.admission(work.slot).sampling.prompt_logprobs is not None for work in plan.work):
            prompt_scores = self._mesh.reported(prompt_scores)
        return sample(logits, sampling, tables, self._model.ops, self._mesh), prompt_scores

    def _hidden(self, work: Sequence[Work], batch: ModelBatch) -> Tensor:
        """Last hidden states [N, H]; a pipeline's are computed in pieces, which stages hand on one by one."""
        stages = self._mesh.layout.pipeline
        pieces = [] if stages == 1 or self._limits.batch_invariant else pieces_of(work, 4 * stages)
        if len(pieces) < 2:
            return self._forward.hidden(batch)
        batches = (self._batch(piece, self._place(piece), None) for piece in pieces)
        return torch.cat([self._forward.hidden(piece) for piece in batches])

    def _batch(self, work: Sequence[Work], placement: Placement, sequences: int | None) -> ModelBatch:
        rows_per_page = self._model.config.rows_per_page
        return build_batch(work, placement, self._tables, self._limits.block_size, rows_per_page, sequences)

    def check(self) -> None:
        """Vision workers are all there. Raises RankDied."""
        self._lane.check()

    def close(self) -> None:
        """Encoded tiles that wait are written to disk; memory goes with the object."""
        self._lane.close()
