"""Drafter: a small model that guesses what the large one will say.

It goes through the same tokens as the large model and keeps its keys and values under the same block ids, its tiles
under the same page numbers: where a prefix is known, it is known to both. Guesses are drawn with the request's own
options, seed and noise. The same noise makes two similar distributions draw the same token more often than chance
(Gumbel coupling), so that guessing pays at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.platforms.base import Capturer
from tilewise.platforms.transfers import to_device
from tilewise.runner.batch import Tables, build_batch, place_in_order
from tilewise.runner.forward import Forward
from tilewise.runner.kv_memory import allocate_caches
from tilewise.runner.sampler import choose, rows_of
from tilewise.step import Limits, StepPlan, Work


class Drafter:
    """A draft model with its caches, which reads the runner's tables and writes its guesses there."""

    def __init__(
        self, model: InternVL, limits: Limits, tables: Tables, tile_pool: Tensor, capturer: Capturer | None = None
    ) -> None:
        """Allocate caches; `tile_pool` has the draft model's own rows of tiles, under the large one's page numbers."""
        self._model = model
        self._tables = tables
        self._block_size = limits.block_size
        caches = allocate_caches(model, limits, tables.device)
        self._forward = Forward(model, limits, caches, tile_pool, capturer)

    @torch.inference_mode()
    def advance(self, plan: StepPlan) -> None:
        """Read the known tokens of a step, and guess those that its plan leaves open."""
        open_guesses = {item.slot: 0 if item.draft_ids else item.drafts for item in plan.work}
        # All known tokens are read, those of sequences that guess nothing now, too: its caches have to be as complete
        # as the large model's. Then all sequences guess together, one token a round, and each round reads the one
        # before.
        work = [self._known(item, guesses=open_guesses[item.slot] > 0) for item in plan.work]
        made = 0
        while work:
            self._read_and_guess(work)
            made += 1
            work = [Work(item.slot, item.stop, 1, samples=True) for item in work if open_guesses[item.slot] > made]

    def _known(self, item: Work, guesses: bool) -> Work:
        """Return what is to be read of a piece of work: no guess, but the token before if it belongs to the answer.

        That one may be the last guess of the step before: the large model has computed it, but the draft model, behind
        its last guess, had nothing more to read it for. A token that it knows already is read again to no harm.
        """
        start = item.start - (item.start > self._tables.admission(item.slot).num_prompt)
        return Work(item.slot, start, item.known_stop - start, guesses, item.tiles)

    def _read_and_guess(self, work: Sequence[Work]) -> None:
        """Read tokens, and write a guess behind each piece of work that samples into the tables."""
        placement = place_in_order(work)
        rows_per_page, sequences = self._model.config.rows_per_page, self._forward.filled_up(work)
        batch = build_batch(work, placement, self._tables, self._block_size, rows_per_page, sequences)
        hidden = self._forward.hidden(batch)
        rows = rows_of([item for item in work if item.samples], self._tables)
        if rows:
            logits = self._model.logits(hidden[batch.logits_rows])
            chosen = choose(logits, rows, self._tables.tokens, self._model.ops)
            device = self._tables.device
            at = (to_device([row.slot for row in rows], device), to_device([row.length for row in rows], device))
            self._tables.tokens[at] = chosen
