"""SequenceState: one sequence on its way from prompt to last token. PromptLookup: guesses at what it says next."""

from __future__ import annotations

import bisect
import operator
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilewise.speculation import SpeculativeConfig
from tilewise.timing import EngineMoments
from tilewise.types import AnyTile, Matcher, Request, SampledToken, TokenDelta, TokenIds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TileSpan:
    """A tile's place in the prompt, and which rows of its page stand there."""

    tile: AnyTile
    position: int
    rows: int
    first: int = 0

    @property
    def stop(self) -> int:
        return self.position + self.rows


_stop = operator.attrgetter("stop")


class PromptLookup:
    """An index of one sequence: where each of its short runs of tokens (n-grams) was last followed by another token.

    It guesses that what followed the same few tokens before comes next: answers that quote their prompt, or themselves,
    repeat tokens in runs. Each token is indexed once, so that a guess costs the same however long the sequence is.
    Source: Saxena 2023, "Prompt Lookup Decoding".
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._ids: list[int | None] = []
        self._followed_at: dict[tuple[int | None, ...], int] = {}
        """Position behind the last occurrence of each n-gram that another token has followed."""
        self._text_start = 0
        """Position behind the last image token; no n-gram reaches over one."""

    def __len__(self) -> int:
        return len(self._ids)

    def take_in(self, token_ids: Iterable[int | None]) -> None:
        """Append tokens of the sequence; None stands for an image token, which says nothing."""
        for token_id in token_ids:
            position = len(self._ids)
            if token_id is None:
                self._text_start = position + 1
            # Only now, as its next token comes, is the n-gram in front of it indexed: so the end of the sequence, which
            # `guess` looks up, finds an earlier occurrence and never itself.
            for length in self._lengths:
                if position - length >= self._text_start:
                    self._followed_at[tuple(self._ids[-length:])] = position
            self._ids.append(token_id)

    def guess(self, most: int) -> TokenIds:
        """Return up to `most` tokens that followed when the sequence's end last occurred before, the longest end first.

        What has followed so far is taken to repeat, so that a loop of any length fills the guess.
        """
        for length in self._lengths:
            start = self._followed_at.get(tuple(self._ids[-length:]))
            if start is not None:
                period = len(self._ids) - start
                return _until_none(self._ids[start + place % period] for place in range(most))
        return ()


def _until_none(token_ids: Iterable[int | None]) -> TokenIds:
    found: list[int] = []
    for token_id in token_ids:
        if token_id is None:
            break
        found.append(token_id)
    return tuple(found)


@dataclass(slots=True, eq=False)
class SequenceState:
    """The state of one sequence; only the scheduler and its KVCache write to it.

    There are no phases: a sequence has tokens (known, or being sampled), of which some are computed, and it wants the
    others computed, be they prompt or answer.
    """

    request: Request
    prompt_ids: tuple[int, ...]
    """Token ids of the prompt: the request's, until a Flash router's scores shorten them."""
    tiles: tuple[TileSpan, ...]
    max_tokens: int
    """Most tokens of prompt and answer together."""
    num_tokens: int
    """Tokens of the prompt, of the answer so far, and those that launched steps are sampling."""
    seed: int
    """The request's seed, or one drawn once, so that a sequence computed again after a preemption samples the same."""
    urgency: tuple[int, int] = (0, 0)
    """(priority, number of arrival): the least is the most urgent."""
    settled: bool = True
    """False while the length of the prompt hangs on tiles that a router has not scored."""
    slot: int | None = None
    num_admissions: int = 0
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are computed or being computed; guesses count once they have proved right."""
    num_cached: int | None = None
    """Tokens whose keys and values were cached when it was first admitted; None before."""
    encoded: set[bytes] = field(default_factory=set)
    """Digests of the tiles that were encoded because this sequence needed them."""
    block_ids: list[int] = field(default_factory=list)
    num_granted: int = 0
    """Number of its blocks that the runner has in its table, or will have by the plans that are sealed."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Chain hashes of its full blocks, as far as they have been asked for."""
    prompt_scores: list[SampledToken] = field(default_factory=list)
    """The prompt's tokens from the second on, with their log-probabilities, if asked for."""
    matcher: Matcher | None = None
    """The matcher of a structured answer; it has accepted `output_ids`, so a preemption changes nothing about it."""
    guesses: bool = False
    """True if its steps may hold guesses: how many tokens such a step brings is known only when it is back."""
    lookup: PromptLookup | None = None
    """The source of its guesses; None = a draft model of the runner."""
    moments: EngineMoments = EngineMoments(0.0)
    finish_reason: str | None = None
    stop_reason: int | None = None

    @classmethod
    def of(
        cls, request: Request, tokens_per_tile: int, max_model_len: int, seeds: random.Random = random.Random()
    ) -> SequenceState:
        """Make the state of a new request; `seeds` gives a seed to one that has none."""
        spans = tuple(
            TileSpan(tile, image.start + number * tokens_per_tile, tokens_per_tile)
            for image in request.images
            for number, tile in enumerate(image.tiles)
        )
        seed = request.sampling.seed
        seed = seeds.getrandbits(63) if seed is None else seed
        length, asked = len(request.prompt_ids), request.sampling.max_tokens
        limit = max_model_len if asked is None else min(max_model_len, length + asked)
        grammar, ignore_eos = request.grammar, request.sampling.ignore_eos
        matcher = grammar.start(ignore_eos, request.thinking) if grammar else None
        return cls(request, request.prompt_ids, spans, limit, length, seed, matcher=matcher)

    def equip_for_guessing(self, rule: SpeculativeConfig) -> None:
        """Decide whether its steps hold guesses, and give it an n-gram lookup if that is what makes them."""
        if rule.ngram is not None:
            self.lookup = PromptLookup(*rule.ngram)
        # A draft model's guesses are known to the runner alone. What a structured answer allows behind them could then
        # not be said here, so such an answer is guessed by n-gram lookup or not at all.
        self.guesses = rule.ngram is not None or self.matcher is None

    def shorten(self, easy: Sequence[bool], tokens: int) -> None:
        """Leave each easy tile `tokens` rows, and fix the length of the prompt by that.

        A page holds all rows of a tile and, behind them, the few that can stand for them: `first` says which are used.
        """
        ids: list[int] = []
        spans: list[TileSpan] = []
        done = 0
        for span, short in zip(self.tiles, easy, strict=True):
            ids += self.prompt_ids[done : span.position]
            done = span.stop
            rows, first = (tokens, span.rows) if short else (span.rows, 0)
            spans.append(TileSpan(span.tile, len(ids), rows, first))
            ids += self.prompt_ids[span.position : span.position + rows]
        self.prompt_ids = (*ids, *self.prompt_ids[done:])
        self.tiles = tuple(spans)
        self.num_tokens = self.num_prompt
        if self.request.sampling.max_tokens is not None:
            self.max_tokens = min(self.max_tokens, self.num_prompt + self.request.sampling.max_tokens)
        self.settled = True

    @property
    def num_prompt(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_saved(self) -> int:
        """Image tokens of the request that the router left out."""
        return len(self.request.prompt_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that a launched step samples and that are not committed yet: the device knows them, the host not.

        A step with guesses may bring more tokens than the one that is counted here.
        """
        return self.num_tokens - self.num_prompt - len(self.output_ids)

    @property
    def num_wanted(self) -> int:
        """Tokens to compute before the next one can be sampled; 0 once the last allowed one is on its way.

        A structured answer waits until its newest token is known, which decides what may follow. So does a sequence
        that guesses, as it is not known before how many tokens the step has brought.
        """
        waits = self.num_tokens >= self.max_tokens or (self.needs_last_token and self.num_pending > 0)
        return 0 if waits else self.num_tokens - self.num_computed

    @property
    def needs_last_token(self) -> bool:
        return self.guesses or self.matcher is not None

    def guess(self, most: int) -> TokenIds:
        """Return up to `most` tokens that may come next, as far as a structured answer allows them."""
        if self.lookup is None or most <= 0:
            return ()
        self.lookup.take_in(self._text_from(len(self.lookup)))
        found = self.lookup.guess(most)
        return found if self.matcher is None else found[: self.matcher.count_allowed(found)]

    def masks(self, drafts: TokenIds = ()) -> NDArray[np.int32] | None:
        """Return masks of what may come next, and behind each draft, int32 `[drafts + 1, words]`; None = anything."""
        return None if self.matcher is None else self.matcher.masks(drafts)

    def append(self, token_id: int) -> None:
        """Add a sampled token to the answer."""
        self.output_ids.append(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    @property
    def encoded_tiles(self) -> tuple[int, ...]:
        """Numbers of its tiles that were encoded because it needed them; of equal tiles, the first."""
        digests = [span.tile.digest for span in self.tiles]
        return tuple(sorted(digests.index(digest) for digest in self.encoded))

    def end_with(self, token_id: int) -> str | None:
        """Return why the sequence ends with this token, its newest; None if it goes on."""
        sampling = self.request.sampling
        if len(self.output_ids) > sampling.min_tokens:
            if token_id in self.request.stop_ids and not sampling.ignore_eos:
                return "stop"
            if token_id in sampling.stop_ids:
                self.stop_reason = token_id
                return "stop"
        if self.matcher is not None and self.matcher.finish_reason is not None:
            return self.matcher.finish_reason
        return "length" if self.num_prompt + len(self.output_ids) >= self.max_tokens else None

    def tiles_after(self, tokens: int) -> tuple[TileSpan, ...]:
        """Return the tiles of which some rows stand behind the first `tokens` tokens."""
        if not self.tiles or self.tiles[-1].stop <= tokens:
            return ()
        return self.tiles[bisect.bisect_right(self.tiles, tokens, key=_stop) :]

    def name_of(self, digest: bytes) -> str:
        """Return what a user calls the first of its tiles that has this digest."""
        for number, image in enumerate(self.request.images, 1):
            for place, tile in enumerate(image.tiles, 1):
                if tile.digest == digest:
                    return f"tile {place} of {len(image.tiles)} of picture {number}"
        raise KeyError(digest)

    @property
    def decoding(self) -> bool:
        return self.num_computed >= self.num_prompt

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.output_ids)

    def _text_from(self, start: int) -> list[int | None]:
        """Return the known tokens from `start` on, with None for those of tiles."""
        ids: list[int | None] = [*self.ids_between(start, self.num_prompt + len(self.output_ids))]
        for span in self.tiles_after(start):
            first = max(span.position, start)
            ids[first - start : span.stop - start] = [None] * (span.stop - first)
        return ids

    def ids_between(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the known tokens [start, stop), without building the whole list."""
        offset = self.num_prompt
        return (*self.prompt_ids[start:stop], *self.output_ids[max(0, start - offset) : max(0, stop - offset)])

    def delta(self, token: SampledToken, now: float) -> TokenDelta:
        """Return what a step tells of `token`, the newest of the sequence, which was known at `now`."""
        first = len(self.output_ids) == 1
        return TokenDelta(
            request_id=self.request.id,
            token=token,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            cached_tokens=self.num_cached or 0,
            image_tokens_saved=self.num_saved,
            prompt_scores=tuple(self.prompt_scores) if first else (),
            time=now,
            moments=self.moments if first else None,
            encoded_tiles=self.encoded_tiles if first else (),
            preemptions=max(0, self.num_admissions - 1),
        )
