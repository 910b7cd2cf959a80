"""LocalRunner: the steps of one rank. BackgroundRunner: another runner's steps, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tilewise.models.decoder import ModelBatch
from tilewise.models.internvl import InternVL
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Capturer
from tilewise.platforms.transfers import Streams, start_copy_to_host
from tilewise.runner.batch import Placement, Tables, build_batch, place_in_order, place_in_panels
from tilewise.runner.drafter import Drafter
from tilewise.runner.encoder import EncoderLane
from tilewise.runner.forward import Forward, logits_by_panels, logits_one_by_one, logits_together
from tilewise.runner.kv_memory import allocate_caches
from tilewise.runner.sampler import SampledTokens, sample, score_prompts
from tilewise.runner.tile_store import TileStore
from tilewise.runner.vision_workers import VisionWorkers
from tilewise.step import EncodedTile, Limits, PromptScores, Runner, StepPlan, StepResult, Work


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A handle on a step that may not have begun. What goes wrong in it is raised by `wait`."""

    result: Future[StepResult]

    def wait(self) -> StepResult:
        return self.result.result()


class BackgroundRunner:
    """A runner that runs another one's steps in a thread, one after the other in the order of their launch.

    A plan may therefore count on what the plans before it leave behind, though nobody has waited for them: tokens in
    the tables, keys and values in blocks, rows in pages.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tilewise-runner")

    def launch(self, plan: StepPlan) -> PendingStep:
        return PendingStep(self._thread.submit(self._run, plan))

    def _run(self, plan: StepPlan) -> StepResult:
        return self._runner.launch(plan).wait()

    def check(self) -> None:
        self._runner.check()

    def close(self) -> None:
        self._thread.shutdown()
        self._runner.close()


_PIECE = 128
"""Least tokens of a part of a step: with fewer, reading a stage's weights once more costs more than is gained."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A handle on a step that has been given to the device. On a CPU it has run to its end then."""

    sampled: SampledTokens
    encoded: tuple[EncodedTile, ...]
    prompt_scores: PromptScores

    def wait(self) -> StepResult:
        return StepResult(self.sampled.wait(), self.encoded, self.prompt_scores)


def pieces_of(work: Sequence[Work], most: int) -> list[list[Work]]:
    """Cut the work into up to `most` parts of about as many tokens, one behind the other.

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
    """Cut a piece of work into its first `count` tokens and the others."""
    first = Work(item.slot, item.start, count, samples=False, tiles=item.tiles)
    return first, item._replace(start=item.start + count, count=item.count - count)


class LocalRunner:
    """A runner with model, KV cache and tile pool in this process, and encoded tiles that are kept on disk."""

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
        """Allocate what steps need. A `draft_model` makes the guesses that plans leave open; no `capturer`, no graphs.

        Of several ranks in a mesh, the first one chooses tokens. With vision `workers`, the model encodes no tiles.
        With `streams`, it encodes them beside its steps.
        """
        self._model = model
        self._mesh = mesh
        self._limits = limits
        fixed = limits.batch_invariant
        self._place = place_in_panels if fixed else place_in_order
        self._sampled_logits, self._prompt_logits = (
            (logits_one_by_one, logits_by_panels) if fixed else (logits_together, logits_together)
        )
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
        """Capture steps and batches of tiles of all sizes, if the device has fixed sizes; others are captured when they
        first come.
        """
        self._lane.prepare()
        with self._stream():
            self._forward.prepare(lambda size: self._batch((), self._place(()), size))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        with self._stream():
            return self._launch(plan)

    def _launch(self, plan: StepPlan) -> LaunchedStep:
        # Tables first, since all else reads them; the draft model before the model, which verifies its guesses; tiles
        # last, since this plan uses none of those that it encodes, and tokens need not wait for them.
        for admission in plan.admissions:
            self._tables.admit(admission)
        for grant in plan.grants:
            self._tables.grant(grant)
        if self._drafter:
            self._drafter.advance(plan)
        sampled, prompt_scores = self._decode(plan) if plan.work else (SampledTokens((), start_copy_to_host(), ()), {})
        written = self._lane.write(plan.rows)
        encoded = (*written, *self._lane.take(plan.encode), *self._lane.advance(plan.tiles, wait=not plan.work))
        return LaunchedStep(sampled, encoded, prompt_scores)

    def _decode(self, plan: StepPlan) -> tuple[SampledTokens, PromptScores]:
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
        """Return the last hidden states [N, H]; a pipeline's are computed in pieces that stages hand on one by one."""
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
        """Raise RankDied if a vision worker has ended."""
        self._lane.check()

    def close(self) -> None:
        """Write encoded tiles that wait to disk; memory goes with the object."""
        self._lane.close()
