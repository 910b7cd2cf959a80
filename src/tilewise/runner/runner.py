"""Runner.launch: one step of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.platforms.base import PANEL
from tilewise.runner.batch import build_batch
from tilewise.runner.drafter import Drafter
from tilewise.runner.encoder import BUCKETS, ONE_BY_ONE, EncoderLane
from tilewise.runner.kv_memory import allocate_caches
from tilewise.runner.placement import in_order, in_panels
from tilewise.runner.prompt_scores import score_prompts
from tilewise.runner.sampler import sample
from tilewise.runner.tables import Tables
from tilewise.runner.tile_store import TileStore
from tilewise.step import Limits, PromptScores, StepPlan, StepResult
from tilewise.types import SampledToken


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A handle on a step that ran to its end inside `launch`, as steps on the CPU do."""

    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class LocalRunner:
    """Model, KV cache and tile pool of this process, and the encoded tiles that are kept on disk."""

    def __init__(
        self,
        model: InternVL,
        limits: Limits,
        device: torch.device,
        store: TileStore | None = None,
        draft_model: InternVL | None = None,
    ) -> None:
        """With a `draft_model` the guesses that plans leave open are its own."""
        self._model = model
        self._limits = limits
        self._tables = Tables(limits, device)
        self._place = in_panels if limits.batch_invariant else in_order
        sizes = ONE_BY_ONE if limits.batch_invariant else BUCKETS
        self._encoder = EncoderLane(model, limits.tile_pages, store, sizes)
        self._caches = allocate_caches(model, limits, device)
        self._drafter = Drafter(draft_model, limits, self._tables) if draft_model else None

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> FinishedStep:
        for admission in plan.admissions:
            self._tables.admit(admission)
        for grant in plan.grants:
            self._tables.grant(grant)
        if self._drafter:
            self._drafter.advance(plan)
        sampled, prompt_scores = self._decode(plan) if plan.work else ({}, {})
        return FinishedStep(StepResult(sampled, self._encoder.encode(plan.encode), prompt_scores))

    def _decode(self, plan: StepPlan) -> tuple[dict[int, tuple[SampledToken, ...]], PromptScores]:
        tables, placement = self._tables, self._place(plan.work, self._tables.device)
        for work in plan.work:
            if work.draft_ids:
                tables.write(work.slot, work.known_stop, work.draft_ids)
        batch = build_batch(plan.work, placement, tables, self._limits.block_size, self._encoder.rows_per_page)
        hidden = self._model.hidden(batch, self._caches, self._encoder.pool)
        logits_of = partial(self._logits, hidden)
        prompt_scores = score_prompts(plan.work, placement.rows, tables, logits_of)
        logits = logits_of(batch.logits_rows)
        return sample(logits, [work for work in plan.work if work.samples], tables), prompt_scores

    def _logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Logits [R, vocabulary] of some rows of the batch; in batch-invariant mode of their whole panels."""
        if not self._limits.batch_invariant:
            return self._model.logits(hidden[rows])
        panels, index = (rows // PANEL).unique(return_inverse=True)
        logits = self._model.logits(hidden.unflatten(0, (-1, PANEL))[panels].flatten(0, 1))
        return logits[index * PANEL + rows % PANEL]

    def close(self) -> None:
        """Encoded tiles that wait are written to disk; memory goes with the object."""
        self._encoder.close()
