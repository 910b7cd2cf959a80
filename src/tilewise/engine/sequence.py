"""SequenceState: one sequence on its way from prompt to last token."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tilewise.types import Request, Tile


@dataclass(slots=True, eq=False)
class SequenceState:
    """Counters of one sequence; only the scheduler writes to it.

    There is no phase: a sequence has tokens (known or on their way) and tokens computed, and wants the difference.
    """

    request: Request
    max_tokens: int
    """Prompt and answer together may not pass this."""
    tiles: tuple[tuple[int, Tile], ...]
    """Every tile with the position of its first row."""
    seed: int
    """Of the request, or drawn once, so that a sequence computed again after a preemption samples the same."""
    slot: int | None = None
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_pending: int = 0
    """Tokens that a launched step samples and that are not committed yet."""
    block_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None

    @classmethod
    def of(cls, request: Request, tokens_per_tile: int, max_model_len: int) -> SequenceState:
        placed = [
            (image.start + number * tokens_per_tile, tile)
            for image in request.images
            for number, tile in enumerate(image.tiles)
        ]
        asked = request.sampling.max_tokens
        limit = max_model_len if asked is None else min(max_model_len, len(request.prompt_ids) + asked)
        seed = request.sampling.seed
        return cls(request, limit, tuple(placed), random.getrandbits(63) if seed is None else seed)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + len(self.output_ids) + self.num_pending

    @property
    def num_wanted(self) -> int:
        """Tokens to compute before the next one can be sampled; 0 once the last allowed one is on its way."""
        return 0 if self.num_tokens >= self.max_tokens else self.num_tokens - self.num_computed

    @property
    def decoding(self) -> bool:
        return self.num_computed >= self.num_prompt

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.request.prompt_ids, *self.output_ids)
