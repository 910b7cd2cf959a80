"""Scheduler: plan() decides what the next step computes, commit() takes in its result.

Order of a plan, under one token budget: sequences that decode, sequences in the middle of their prompt, waiting ones;
each of these by priority if there are any, else by arrival. A chunk ends before the first tile that is not encoded
yet. When blocks run out, the least urgent sequence is preempted: it gives all its blocks back and computes its tokens
again later. What budget is left then goes to guesses. Tiles are proposed for encoding in the same order, a few waiting
sequences ahead. The prompt of a Flash model gets its length from its encoded tiles: until then it waits, and others
may overtake it.
"""

from __future__ import annotations

import bisect
import itertools
import operator
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.engine.kv_cache import KVCache
from tilewise.engine.plan_builder import PlanBuilder, WorkInFlight
from tilewise.engine.sequence import SequenceState
from tilewise.engine.tiles import ENCODE_AHEAD, TileIndex, TilePlanner, TileScores
from tilewise.errors import NotFinite, TooLong
from tilewise.step import Limits, StepPlan, StepResult, TileUse, Work
from tilewise.timing import Clock, EngineMoments
from tilewise.types import Request, SequenceDelta, SequenceFailure, TokenDelta, TokenIds

_urgency = operator.attrgetter("urgency")


class Scheduler:
    """The planner of an engine's steps. It owns every SequenceState, the KV blocks and the tile index."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic, seed: int | None = None) -> None:
        self.limits = limits
        self._clock = clock
        self._seeds = random.Random(seed)
        # Most urgent first: by priority where there are any, else by arrival.
        self.waiting: list[SequenceState] = []
        self.running: list[SequenceState] = []
        self._arrivals = itertools.count()
        self.kv = KVCache(limits.num_blocks, limits.block_size, limits.prefix_caching)
        self.tiles = TileIndex(limits.tile_pages)
        self.scores = TileScores()
        self._tile_planner = TilePlanner(limits, self.tiles, self.scores, self.kv, clock)
        self.counters = Counters()
        self._free_slots = list(range(limits.max_num_seqs, 0, -1))  # slot 0 is the dummy of padded batches
        self._in_flight: dict[int, list[WorkInFlight]] = {}  # by plan index
        self._index = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request. Raises TooLong if it could not run even alone."""
        longest = self.limits.longest_sequence
        if len(request.prompt_ids) >= longest:
            raise TooLong(
                f"The prompt has {len(request.prompt_ids)} tokens, the KV cache and context hold {longest} with at "
                "least one for the answer: shorten it, or raise max_model_len or the KV cache size.",
                prompt_tokens=len(request.prompt_ids),
                limit=longest,
            )
        sequence = SequenceState.of(request, self.limits.tokens_per_tile, longest, self._seeds)
        sequence.moments = EngineMoments(queued=self._clock())
        sequence.settled = self.limits.flash is None or not sequence.tiles
        self._tile_planner.settle(sequence)
        if self.limits.speculation is not None:
            sequence.equip_for_guessing(self.limits.speculation)
        priority = request.priority if self.limits.priorities else 0
        sequence.urgency = (priority, next(self._arrivals))
        bisect.insort(self.waiting, sequence, key=_urgency)

    def abort(self, request_id: str) -> None:
        """End a request wherever it is; an unknown id is one that has just finished."""
        for sequence in [*self.running, *self.waiting]:
            if sequence.request.id == request_id:
                self._finish(sequence, "abort")

    @property
    def load(self) -> EngineLoad:
        in_use = self.limits.num_blocks - 1 - self.kv.pool.num_free
        return EngineLoad(len(self.running), len(self.waiting), in_use / (self.limits.num_blocks - 1))

    # ---------------------------------------------------------------- plan

    def plan(self) -> StepPlan:
        """Decide what the next step computes, and count it as done: the next plan may be made while this one runs."""
        plan = PlanBuilder(self.limits.max_num_batched_tokens)
        self.tiles.begin_step(self._index)
        # Decoding first, at a token each, so that long prompts hold up no answer; they get what is left of the budget.
        decoding = [sequence for sequence in self.running if sequence.decoding]
        prefilling = [sequence for sequence in self.running if not sequence.decoding]
        for sequence in (*decoding, *prefilling):
            if sequence.slot is not None:  # else it was preempted a moment ago, for a more urgent one
                self._advance(sequence, plan)
        self._admit(plan)
        self._guess_ahead(plan)
        self._tile_planner.propose(plan, self.running, self.waiting)
        return self._seal(plan)

    def _advance(self, sequence: SequenceState, plan: PlanBuilder) -> None:
        """Give a sequence as many of the tokens it wants as budget, encoded tiles and blocks allow."""
        count, uses = self._ready_chunk(sequence, min(sequence.num_wanted, plan.tokens_left))
        if count == 0 or not self._take_blocks(sequence, count, plan):
            return
        assert sequence.slot is not None
        # A chunk that ends before the last token is only one part of a prompt: nothing is chosen behind it.
        samples = sequence.num_computed + count == sequence.num_tokens
        masks = sequence.masks() if samples else None
        plan.set(sequence, Work(sequence.slot, sequence.num_computed, count, samples, uses, masks=masks))

    def _ready_chunk(self, sequence: SequenceState, count: int) -> tuple[int, tuple[TileUse, ...]]:
        """Clip a chunk of `count` tokens at the first tile not encoded; return its length and the tiles it uses."""
        start = sequence.num_computed
        uses: list[TileUse] = []
        for span in sequence.tiles_after(start):
            if span.position >= start + count:
                break
            page = self.tiles.hold(span.tile.digest)
            if page is None or not page.ready:
                # The tile may begin before `start`: a cached prefix may end inside of it, or its page went meanwhile.
                return max(0, span.position - start), tuple(uses)
            uses.append(TileUse(span.position, page.number, span.first, span.rows))
        return count, tuple(uses)

    def _take_blocks(self, sequence: SequenceState, count: int, plan: PlanBuilder) -> bool:
        """Get blocks for `count` more tokens, by preempting less urgent sequences if need be.

        Return False if the sequence is itself the least urgent one, and was preempted.
        """
        tokens = sequence.num_computed + count
        if not self.kv.missing(sequence, tokens):
            return True
        # `running` is sorted, so that its last one is the least urgent: in the end `sequence` itself. The most urgent
        # one can never be a victim, since `add` takes only what fits in the KV cache alone, so that something always
        # goes on.
        while self.kv.missing(sequence, tokens) > self.kv.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        self.kv.grow(sequence, tokens)
        return True

    def _preempt(self, sequence: SequenceState, plan: PlanBuilder) -> None:
        """Take slot and blocks from a sequence. It waits again, keeps its answer so far, and is computed anew."""
        plan.undo(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.prompt_scores.clear()
        self.counters.preemptions += 1
        bisect.insort(self.waiting, sequence, key=_urgency)

    def _admit(self, plan: PlanBuilder) -> None:
        """Admit waiting sequences, the most urgent first, each once blocks for all its tokens are free."""
        while self._free_slots and plan.tokens_left > 0:
            sequence = self._next_admitted(plan)
            if sequence is None:
                return
            prefix = self.kv.known_prefix(sequence)
            if not self.kv.fits(sequence, prefix):
                return  # no shorter one goes first, or a long prompt could wait for ever
            self.waiting.remove(sequence)
            bisect.insort(self.running, sequence, key=_urgency)
            self._begin_behind(prefix, sequence)
            sequence.slot = self._free_slots.pop()
            sequence.num_admissions += 1
            plan.admit(sequence, sequence.slot)
            self._advance(sequence, plan)

    def _next_admitted(self, plan: PlanBuilder) -> SequenceState | None:
        """Return the waiting sequence whose turn it is.

        Passed over are Flash prompts whose length is not known yet, and preempted sequences whose newest token is still
        in flight: an admission has to name all tokens. Prompts with pictures are passed by those without while as many
        as are encoded ahead wait for their tiles, in slots that others could use.
        """
        ready = (sequence for sequence in self.waiting if sequence.settled and not sequence.num_pending)
        # There are tokens left in the budget, so running sequences in the middle of their prompts that have no work in
        # this step can only be waiting for tiles.
        stuck = sum(not sequence.decoding and sequence not in plan.work for sequence in self.running)
        return next((sequence for sequence in ready if not sequence.tiles or stuck < ENCODE_AHEAD), None)

    def _begin_behind(self, prefix: list[int], sequence: SequenceState) -> None:
        """Share the blocks of a known prefix; only the first admission counts as a hit or a miss."""
        self.kv.adopt(sequence, prefix)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            self.counters.prefix_cache_queries += sequence.num_tokens
            self.counters.prefix_cache_hits += sequence.num_cached

    def _guess_ahead(self, plan: PlanBuilder) -> None:
        """Let sequences that sample guess what comes, with tokens and blocks that nothing else wants in this step."""
        if self.limits.speculation is None:
            return
        for sequence, work in list(plan.work.items()):
            if not (work.samples and sequence.guesses):
                continue
            # Own and free blocks alone: with so many tokens at most, `_take_blocks` will preempt nobody for a guess.
            room = (len(sequence.block_ids) + self.kv.pool.num_free) * self.limits.block_size - work.stop
            # The last allowed token needs no guess: it is chosen behind the guess before it.
            most = min(self.limits.speculation.num_speculative_tokens, sequence.max_tokens - sequence.num_tokens - 1)
            self._add_drafts(sequence, work, min(most, plan.tokens_left, room), plan)

    def _add_drafts(self, sequence: SequenceState, work: Work, most: int, plan: PlanBuilder) -> None:
        """Add up to `most` guesses to a sequence's work; without n-gram lookup, the runner's draft model makes them."""
        draft_ids: TokenIds = sequence.guess(most)
        drafts = most if sequence.lookup is None else len(draft_ids)
        if drafts > 0 and self._take_blocks(sequence, work.count + drafts, plan):
            masks = sequence.masks(draft_ids)
            longer = work._replace(count=work.count + drafts, drafts=drafts, draft_ids=draft_ids, masks=masks)
            plan.set(sequence, longer)

    def _seal(self, plan: PlanBuilder) -> StepPlan:
        """Freeze the plan, and count what it does."""
        self.counters.tiles_encoded += len(plan.encode)
        now = self._clock()
        for sequence, work in plan.work.items():
            if sequence.moments.scheduled is None:
                sequence.moments = replace(sequence.moments, scheduled=now)
            self.counters.prompt_tokens += max(0, min(sequence.num_prompt - work.start, work.count))
        sealed = plan.seal(self._index)
        if plan.work:
            self._in_flight[sealed.index] = [
                WorkInFlight(sequence, work, sequence.num_admissions) for sequence, work in plan.work.items()
            ]
        self._index += 1
        return sealed

    # -------------------------------------------------------------- commit

    def commit(self, plan: StepPlan, result: StepResult) -> list[SequenceDelta]:
        """Take in a finished step: tiles are ready, tokens are known, some sequences end."""
        now = self._clock()
        broken = [tile.digest for tile in result.encoded if not tile.finite]
        self._tile_planner.learn(result.seconds)
        whole = [tile for tile in result.encoded if tile.finite]
        self._tile_planner.take_in(whole, self.running, self.waiting, now)
        deltas: list[SequenceDelta] = [*self._drop_tiles(broken, plan.index)]
        for flight in self._in_flight.pop(plan.index, ()):
            if flight.sequence.finish_reason is None:  # else it ended while this step ran, and its tokens are nobody's
                deltas += self._take_in(flight, result, now)
                deltas += self._check(flight, result, plan.index)
        return deltas

    def _drop_tiles(self, digests: Sequence[bytes], step: int) -> Iterator[SequenceFailure]:
        """Forget tiles whose rows are not finite, and end the sequences that need them."""
        for digest in digests:
            self.tiles.drop(digest)
            for sequence in [*self.running, *self.waiting]:
                if any(span.tile.digest == digest for span in self._tile_planner.needed(sequence)):
                    what = f"The embedding of {sequence.name_of(digest)} is NaN or infinite (vision tower, step {step})"
                    yield self._fail(sequence, NotFinite("tower", what))

    def _check(self, flight: WorkInFlight, result: StepResult, step: int) -> Iterator[SequenceFailure]:
        """End a sequence whose numbers in this step are not finite, unless it has ended before them."""
        sequence, tensor = flight.sequence, result.not_finite.get(flight.work.slot)
        if tensor is not None and sequence.finish_reason is None:
            known = sequence.num_prompt + len(sequence.output_ids)
            tokens = f"tokens {flight.work.start} to {min(flight.work.stop, known) - 1}"
            what = f"The {tensor} of {tokens} are NaN or infinite (decoder, step {step})"
            yield self._fail(sequence, NotFinite("decoder", what))

    def _fail(self, sequence: SequenceState, error: NotFinite) -> SequenceFailure:
        if error.part == "tower":
            self.counters.not_finite_tower += 1
        else:
            self.counters.not_finite_decoder += 1
        self._finish(sequence, "error")
        return SequenceFailure(sequence.request.id, error)

    def _take_in(self, flight: WorkInFlight, result: StepResult, now: float) -> list[TokenDelta]:
        """Take in the new tokens of one sequence, up to its end: one, and one more for each guess that was right."""
        sequence, work = flight.sequence, flight.work
        if flight.undisturbed:
            sequence.prompt_scores += result.prompt_scores.get(work.slot, ())
        deltas: list[TokenDelta] = []
        for token in result.sampled.get(work.slot, ()):
            sequence.append(token.token_id)
            sequence.finish_reason = sequence.end_with(token.token_id)
            self._count(sequence, now)
            deltas.append(sequence.delta(token, now))
            if sequence.finish_reason is not None:
                break
        right = max(0, len(deltas) - 1)  # sealing the plan has counted one token: these are the others
        sequence.num_tokens += right
        if work.drafts:
            self.counters.verified(work.drafts, right)
        # Right guesses are tokens of the answer in any case. Their keys and values are there only if the sequence still
        # has the blocks of this step: one that was preempted meanwhile has given them back, and will compute all of its
        # tokens again. Blocks are made known before `_finish` gives them back, so that the next request can share what
        # this one has computed.
        if flight.undisturbed and work.slot not in result.not_finite:
            sequence.num_computed += right
            self.kv.remember(sequence, work.start, work.known_stop + right)
        if sequence.finish_reason is not None:
            self._finish(sequence, sequence.finish_reason)
        return deltas

    def _count(self, sequence: SequenceState, now: float) -> None:
        """Count a new token; with the first one, note the time and what the tile cache has saved."""
        self.counters.generation_tokens += 1
        if len(sequence.output_ids) == 1:
            sequence.moments = replace(sequence.moments, first_token=now)
            self.counters.tile_cache_queries += len(sequence.tiles)
            self.counters.tile_cache_hits += len(sequence.tiles) - len(sequence.encoded)

    def _finish(self, sequence: SequenceState, reason: str) -> None:
        sequence.finish_reason = reason
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self._release(sequence)

    def _release(self, sequence: SequenceState) -> None:
        """Take a running sequence's slot and blocks back."""
        assert sequence.slot is not None
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self.kv.release(sequence)
        sequence.slot = None
