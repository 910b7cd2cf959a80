"""OpenPlan: a plan in the making. Counters of sequences move only when it is sealed, so preemption can undo work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tilewise.engine.sequence import SequenceState
from tilewise.step import Admission, BlockGrant, EncodeJob, RowsJob, StepPlan, Work
from tilewise.types import AnyTile, Tile


@dataclass(slots=True)
class OpenPlan:
    """What one step will do, as far as it is decided; written by the scheduler alone."""

    tokens_left: int
    work: dict[SequenceState, Work] = field(default_factory=dict)
    admissions: dict[SequenceState, Admission] = field(default_factory=dict)
    granted_from: dict[SequenceState, int] = field(default_factory=dict)
    """The first of its blocks that a sequence got in this step."""
    encode: list[EncodeJob] = field(default_factory=list)
    tiles: float | None = None
    """How many tiles to encode in this step."""
    rows: list[RowsJob] = field(default_factory=list)

    def set(self, sequence: SequenceState, work: Work) -> None:
        """What a sequence computes, in place of what it was to compute."""
        before = self.work.get(sequence)
        self.tokens_left += (before.count if before else 0) - work.count
        self.work[sequence] = work

    def undo(self, sequence: SequenceState) -> None:
        work = self.work.pop(sequence, None)
        self.tokens_left += work.count if work else 0
        self.admissions.pop(sequence, None)
        self.granted_from.pop(sequence, None)

    def fill(self, page: int, tile: AnyTile) -> None:
        """A page gets a tile's rows: from the encoder, or those that came."""
        if isinstance(tile, Tile):
            self.encode.append(EncodeJob(tile.digest, tile.pixels, page))
        else:
            self.rows.append(RowsJob(tile.digest, tile.rows, page))

    def seal(self, index: int) -> StepPlan:
        return StepPlan(
            index=index,
            admissions=tuple(self.admissions.values()),
            grants=tuple(self._grants()),
            encode=tuple(self.encode),
            work=tuple(self.work.values()),
            tiles=self.tiles,
            rows=tuple(self.rows),
        )

    def _grants(self) -> Iterator[BlockGrant]:
        for sequence, first in self.granted_from.items():
            if first < len(sequence.block_ids):
                assert sequence.slot is not None
                yield BlockGrant(sequence.slot, first, tuple(sequence.block_ids[first:]))
