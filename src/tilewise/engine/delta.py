"""TokenDelta: the engine's answer to a request, one token at a time."""

from __future__ import annotations

from typing import NamedTuple

from tilewise.engine.sequence import SequenceState
from tilewise.timing import EngineMoments
from tilewise.types import SampledToken


class TokenDelta(NamedTuple):
    """One new token of a request. An aborted request just ends, without one."""

    request_id: str
    token: SampledToken
    finish_reason: str | None
    stop_reason: int | None
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were cached when the sequence was first admitted."""
    image_tokens_saved: int = 0
    """Rows that a Flash model's router left out of the prompt."""
    prompt_scores: tuple[SampledToken, ...] = ()
    """The prompt's tokens from the second on, with log-probabilities; if asked for, and with the first token only."""
    time: float = 0.0
    """Moment at which the token was known, on the monotonic clock."""
    moments: EngineMoments | None = None
    """The sequence's way to its first token; None with later ones."""
    encoded_tiles: tuple[int, ...] = ()
    """Numbers of the prompt's tiles that were not there and had to be encoded; with the first token only."""
    preemptions: int = 0
    """Times that the sequence has given its blocks back so far."""

    @classmethod
    def of(cls, sequence: SequenceState, token: SampledToken, now: float) -> TokenDelta:
        """Make the delta of `token`, which is the newest of the sequence."""
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
            encoded_tiles=sequence.encoded_tiles if first else (),
            preemptions=max(0, sequence.num_admissions - 1),
        )
