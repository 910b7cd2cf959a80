"""LocalRunner: the steps of one rank; a Drafter guesses for it. BackgroundRunner: another's steps, in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilewise.models.decoder import InternVL, ModelBatch
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Capturer
from tilewise.platforms.kv_cache import LayerCache, empty_cache, kept_dtype
from tilewise.platforms.transfers import Streams, start_copy_to_host, to_device
from tilewise.runner.batch import Placement, Tables, build_batch, pieces_of, place_in_order, place_in_panels
from tilewise.runner.encoder import EncoderLane
from tilewise.runner.finite import FiniteCheck
from tilewise.runner.forward import Forward, logits_by_panels, logits_one_by_one, logits_together
from tilewise.runner.sampler import SampledTokens, choose, rows_of, sample, score_prompts
from tilewise.runner.tile_store import EncodedTileStore
from tilewise.runner.vision_workers import VisionWorkers
from tilewise.step import EncodedTile, Handle, Limits, PromptScores, Runner, StepPlan, StepResult, StepSeconds, Work


class BackgroundRunner:
    """A runner that runs another one's steps in a thread, one after the other in the order of their launch.

    A plan may therefore count on what the plans before it leave behind, though nobody has waited for them: tokens in
    the tables, keys and values in blocks, rows in pages.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tilewise-runner")

    def launch(self, plan: StepPlan) -> Handle:
        return self._thread.submit(self._run, plan).result

    def _run(self, plan: StepPlan) -> StepResult:
        return self._runner.launch(plan)()

    def check(self) -> None:
        self._runner.check()

    def close(self) -> None:
        self._thread.shutdown()
        self._runner.close()


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that has been given to the device. On a CPU it has run to its end then."""

    sampled: SampledTokens
    encoded: tuple[EncodedTile, ...]
    prompt_scores: PromptScores
    seconds: StepSeconds | None = None
    check: FiniteCheck | None = None

    def wait(self) -> StepResult:
        sampled, not_finite = self.sampled.wait(), dict[int, str]()
        if self.check is not None:
            sampled, not_finite = self.check.wait(sampled)
        return StepResult(sampled, self.encoded, self.prompt_scores, self.seconds, not_finite)


class _Computed(NamedTuple):
    """The results of a step's work."""

    sampled: SampledTokens
    prompt_scores: PromptScores
    check: FiniteCheck | None


_NOTHING = _Computed(SampledTokens((), start_copy_to_host(), ()), {}, None)


class LocalRunner:
    """A runner with model, KV cache and tile pool in this process, and encoded tiles that are kept on disk."""

    def __init__(
        self,
        model: InternVL,
        limits: Limits,
        device: torch.device,
        store: EncodedTileStore | None = None,
        draft_model: InternVL | None = None,
        capturer: Capturer | None = None,
        mesh: Mesh = Mesh(),
        workers: VisionWorkers | None = None,
        streams: Streams | None = None,
    ) -> None:
        """Allocate what steps need. A `draft_model` makes the guesses that plans leave open; no `capturer`, no graphs.

        Of several ranks in a mesh, the first one chooses tokens. With vision `workers`, the model encodes no tiles.
        With `streams`, it encodes them beside its steps.
        """
        self._model = model
        self._mesh = mesh
        self._limits = limits
        fixed = limits.batch_invariant
        self._place = place_in_panels if fixed else place_in_order
        self._sampled_logits, self._prompt_logits = (
            (logits_one_by_one, logits_by_panels) if fixed else (logits_together, logits_together)
        )
        sizes = (1,) if fixed else limits.tile_batches
        models = [model, draft_model] if draft_model else [model]
        # Several ranks have to launch their sums in one order, which two streams would not keep.
        beside = streams if mesh.size == 1 else None
        self._stream: Callable[[], AbstractContextManager[Any]] = streams.steps if streams else nullcontext
        with self._stream():  # where it is filled is where it is read
            self._tables = Tables(limits, device)
            self._lane = EncoderLane(
                *(models, limits.tile_pages, sizes, store, mesh, workers, beside, capturer), limits.check_numerics
            )
            caches = allocate_caches(model, limits, device)
            self._forward = Forward(model, limits, caches, self._lane.pools[0], capturer)
            self._drafter = (
                Drafter(draft_model, limits, self._tables, self._lane.pools[1], capturer) if draft_model else None
            )

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture steps and batches of tiles of all sizes, if the device has fixed sizes; others are captured when they
        first come.
        """
        self._lane.prepare()
        with self._stream():
            self._forward.prepare(lambda size: self._batch((), self._place(()), size))
            if self._drafter:
                self._drafter.prepare()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Handle:
        with self._stream():
            return self._launch(plan).wait

    def _launch(self, plan: StepPlan) -> LaunchedStep:
        # Tables first, since all else reads them; the draft model before the model, which verifies its guesses; tiles
        # last, since this plan uses none of those that it encodes, and tokens need not wait for them.
        for admission in plan.admissions:
            self._tables.admit(admission)
        for grant in plan.grants:
            self._tables.grant(grant)
        if self._drafter:
            self._drafter.advance(plan)
        began = time.perf_counter()
        computed = self._decode(plan) if plan.work else _NOTHING
        decoded = time.perf_counter() - began
        written = self._lane.write(plan.row_jobs)
        encoded = (*written, *self._lane.take(plan.encode), *self._lane.advance(plan.encode_budget, wait=not plan.work))
        tile = self._lane.tile_seconds
        seconds = None if tile is None else StepSeconds(decoded, tile)
        return LaunchedStep(computed.sampled, encoded, computed.prompt_scores, seconds, computed.check)

    def _decode(self, plan: StepPlan) -> _Computed:
        tables, placement = self._tables, self._place(plan.work)
        for work in plan.work:
            if work.draft_ids:
                tables.write(work.slot, work.known_stop, work.draft_ids)
        batch = self._batch(plan.work, placement, self._forward.filled_up(plan.work))
        hidden = self._hidden(plan.work, batch)
        sampling, token_rows = [work for work in plan.work if work.samples], batch.layout.token_rows
        assert token_rows is not None
        if not self._mesh.is_last_stage:
            logits, prompt_scores = None, {}
        else:
            prompt_logits = partial(self._prompt_logits, self._model.logits, hidden)
            prompt_scores = score_prompts(plan.work, token_rows, tables, prompt_logits)
            logits = self._sampled_logits(self._model.logits, hidden, batch.logits_rows)
        if any(tables.admission(work.slot).sampling.prompt_logprobs is not None for work in plan.work):
            prompt_scores = self._mesh.object_from_last_stage(prompt_scores)
        sampled = sample(logits, sampling, tables, self._model.ops, self._mesh)
        check = None
        if self._limits.check_numerics:
            check = FiniteCheck.begin(plan.work, hidden, token_rows, logits, self._mesh)
        return _Computed(sampled, prompt_scores, check)

    def _hidden(self, work: Sequence[Work], batch: ModelBatch) -> Tensor:
        """Return the last hidden states [N, H]; a pipeline's are computed in pieces that stages hand on one by one."""
        stages = self._mesh.layout.pipeline
        pieces = [] if stages == 1 or self._limits.batch_invariant else pieces_of(work, 4 * stages)
        if len(pieces) < 2:
            return self._forward.hidden(batch)
        batches = (self._batch(piece, self._place(piece), None) for piece in pieces)
        return torch.cat([self._forward.hidden(piece) for piece in batches])

    def _batch(self, work: Sequence[Work], placement: Placement, sequences: int | None) -> ModelBatch:
        rows_per_page = self._model.config.rows_per_page
        return build_batch(work, placement, self._tables, self._limits.block_size, rows_per_page, sequences)

    def check(self) -> None:
        """Raise RankDied if a vision worker has ended."""
        self._lane.check()

    def close(self) -> None:
        """Write encoded tiles that wait to disk; memory goes with the object."""
        self._lane.close()


class Drafter:
    """A small model that guesses what the large one will say, with its caches; it reads the runner's tables, and writes
    its guesses there.

    It goes through the same tokens as the large model and keeps its keys and values under the same block ids, its tiles
    under the same page numbers: where a prefix is known, it is known to both. Guesses are drawn with the request's own
    options, seed and noise. The same noise makes two similar distributions draw the same token more often than chance
    (Gumbel coupling), so that guessing pays at any temperature.
    """

    def __init__(
        self, model: InternVL, limits: Limits, tables: Tables, tile_pool: Tensor, capturer: Capturer | None = None
    ) -> None:
        """Allocate caches; `tile_pool` has the draft model's own rows of tiles, under the large one's page numbers."""
        self._model = model
        self._tables = tables
        self._block_size = limits.block_size
        caches = allocate_caches(model, limits, tables.device)
        self._forward = Forward(model, limits, caches, tile_pool, capturer)

    def prepare(self) -> None:
        """Capture steps of all sizes, if the device has fixed sizes."""
        self._forward.prepare(lambda size: self._batch((), size))

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
        batch = self._batch(work, self._forward.filled_up(work))
        hidden = self._forward.hidden(batch)
        rows = rows_of([item for item in work if item.samples], self._tables)
        if rows:
            logits = self._model.logits(hidden[batch.logits_rows])
            chosen = choose(logits, rows, self._tables.tokens, self._model.ops)
            device = self._tables.device
            at = tuple(to_device([[row.slot for row in rows], [row.length for row in rows]], device))
            self._tables.tokens[at] = chosen

    def _batch(self, work: Sequence[Work], sequences: int | None) -> ModelBatch:
        rows_per_page = self._model.config.rows_per_page
        return build_batch(work, place_in_order(work), self._tables, self._block_size, rows_per_page, sequences)


def allocate_caches(model: InternVL, limits: Limits, device: torch.device) -> list[LayerCache]:
    """Allocate one cache a layer: [2 (key, value), blocks, tokens a block, key/value heads, head width]."""
    config = model.config.decoder
    shape = (2, limits.num_blocks, limits.block_size, model.decoder.num_kv_heads, config.head_dim)
    dtype = kept_dtype(limits.kv_cache_dtype, model.decoder.dtype)
    return [empty_cache(shape, dtype, device) for _ in range(model.decoder.num_layers)]
