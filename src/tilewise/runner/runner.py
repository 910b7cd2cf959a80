"""Runner.launch: one step of one rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.runner.batch import build_batch
from tilewise.runner.encoder import EncoderLane
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

    def __init__(self, model: InternVL, limits: Limits, device: torch.device, store: TileStore | None = None) -> None:
        self._model = model
        self._limits = limits
        self._tables = Tables(limits, device)
        self._encoder = EncoderLane(model, limits.tile_pages, store)
        self._caches = allocate_caches(model, limits, device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> FinishedStep:
        for admission in plan.admissions:
            self._tables.admit(admission)
        for grant in plan.grants:
            self._tables.grant(grant)
        sampled, prompt_scores = self._decode(plan) if plan.work else ({}, {})
        return FinishedStep(StepResult(sampled, self._encoder.encode(plan.encode), prompt_scores))

    def _decode(self, plan: StepPlan) -> tuple[dict[int, SampledToken], PromptScores]:
        batch = build_batch(plan.work, self._tables, self._limits.block_size, self._encoder.rows_per_page)
        hidden = self._model.hidden(batch, self._caches, self._encoder.pool)
        prompt_scores = score_prompts(hidden, plan.work, self._tables, self._model.logits)
        logits = self._model.logits(hidden[batch.logits_rows])
        return sample(logits, [work for work in plan.work if work.samples], self._tables), prompt_scores

    def close(self) -> None:
        """Encoded tiles that wait are written to disk; memory goes with the object."""
        self._encoder.close()


def allocate_caches(model: InternVL, limits: Limits, device: torch.device) -> list[Tensor]:
    """One cache a layer: [2 (key, value), blocks, tokens a block, key/value heads, head width]."""
    config = model.config.decoder
    shape = (2, limits.num_blocks, limits.block_size, config.num_kv_heads, config.head_dim)
    dtype = model.decoder.embedding.dtype
    return [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
