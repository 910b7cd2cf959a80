"""PlanBuilder: a plan in the making; WorkInFlight: what of it is on its way through the device.

Counters of sequences move only when a plan is sealed, so that preemption can undo work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tilewise.engine.sequence import SequenceState
from tilewise.step import Admission, BlockGrant, EncodeJob, RowsJob, StepPlan, Work
from tilewise.types import AnyTile, Tile


@dataclass(slots=True)
class PlanBuilder:
    """A plan of one step that the scheduler, its only writer, is still deciding."""

    tokens_left: int
    work: dict[SequenceState, Work] = field(default_factory=dict)
    admissions: dict[SequenceState, Admission] = field(default_factory=dict)
    encode: list[EncodeJob] = field(default_factory=list)
    encode_budget: float | None = None
    """Number of tiles to encode in this step, as in `StepPlan.encode_budget`."""
    row_jobs: list[RowsJob] = field(default_factory=list)

    def set(self, sequence: SequenceState, work: Work) -> None:
        """Set what a sequence computes, in place of what was set before, and charge the token budget."""
        before = self.work.get(sequence)
        self.tokens_left += (before.count if before else 0) - work.count
        self.work[sequence] = work

    def admit(self, sequence: SequenceState, slot: int) -> None:
        request, options = sequence.request, sequence.request.sampling
        given = (sequence.token_ids, sequence.num_prompt, options, sequence.seed, request.stop_ids, request.bad_words)
        self.admissions[sequence] = Admission(slot, *given)

    def undo(self, sequence: SequenceState) -> None:
        """Remove a preempted sequence from the plan, and return its tokens to the budget."""
        work = self.work.pop(sequence, None)
        self.tokens_left += work.count if work else 0
        self.admissions.pop(sequence, None)

    def fill(self, page: int, tile: AnyTile) -> None:
        """Plan to fill a page with a tile's rows: by the encoder, or with rows that came with the request."""
        if isinstance(tile, Tile):
            self.encode.append(EncodeJob(tile.digest, tile.pixels, page))
        else:
            self.row_jobs.append(RowsJob(tile.digest, tile.rows, page))

    def seal(self, index: int) -> StepPlan:
        """Freeze the plan, and count its work as done."""
        grants = [grant for sequence in self.work for grant in _grant_new_blocks(sequence)]
        for sequence, work in self.work.items():
            # From here on the work counts as done, and the token that it samples as there, though nobody knows it yet:
            # so the next step can be planned before this one is back. Only guesses wait, until it is known which are
            # right.
            sequence.num_computed += work.count - work.drafts
            sequence.num_tokens += work.samples
        return StepPlan(
            index=index,
            admissions=tuple(self.admissions.values()),
            grants=tuple(grants),
            encode=tuple(self.encode),
            work=tuple(self.work.values()),
            encode_budget=self.encode_budget,
            row_jobs=tuple(self.row_jobs),
        )


def _grant_new_blocks(sequence: SequenceState) -> Iterator[BlockGrant]:
    """Grant the blocks of a sequence that the runner does not have in its table."""
    first = sequence.num_granted
    if first < len(sequence.block_ids):
        assert sequence.slot is not None
        sequence.num_granted = len(sequence.block_ids)
        yield BlockGrant(sequence.slot, first, tuple(sequence.block_ids[first:]))


class WorkInFlight(NamedTuple):
    """A sequence's work in a step that is in flight. The sequence may end or be preempted before the step is back."""

    sequence: SequenceState
    work: Work
    admission: int

    @property
    def undisturbed(self) -> bool:
        """True unless the sequence has ended or been preempted since."""
        return self.sequence.slot is not None and self.sequence.num_admissions == self.admission
