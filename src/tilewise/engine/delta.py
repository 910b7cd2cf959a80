"""TokenDelta: what the engine says of a request, one token at a time."""

from __future__ import annotations

from typing import NamedTuple

from tilewise.engine.sequence import SequenceState
from tilewise.timing import EngineMoments
from tilewise.types import SampledToken


class TokenDelta(NamedTuple):
    """One new token of a request (an aborted one just ends)."""

    request_id: str
    token: SampledToken
    finish_reason: str | None
    stop_reason: int | None
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were there when it was admitted."""
    image_tokens_saved: int = 0
    """Rows that a Flash model's router left out of the prompt."""
    prompt_scores: tuple[SampledToken, ...] = ()
    """With the first token, if asked for: the prompt's tokens from the second on, with their log-probabilities."""
    time: float = 0.0
    """When the token was known."""
    moments: EngineMoments | None = None
    """With the first token: how the sequence came to it."""
    preemptions: int = 0
    """How often the sequence gave its blocks back so far."""

    @classmethod
    def of(cls, sequence: SequenceState, token: SampledToken, now: float) -> TokenDelta:
        """`token` is the newest of the sequence."""
        first = len(sequence.output_ids) == 1
        return cls(
            request_id=sequence.request.id,
            token=token,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            cached_tokens=sequence.num_cached or 0,
            image_tokens_saved=sequence.num_saved,
            prompt_scores=tuple(sequence.prompt_scores) if first else (),
            time=now,
            moments=sequence.moments if first else None,
            preemptions=max(0, sequence.num_admissions - 1),
        )
