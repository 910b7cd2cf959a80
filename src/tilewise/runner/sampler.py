"""Logits -> tokens, over a batch of requests that want different things.

What a request gets depends on its own logits, options, seed and position alone, bit by bit: not on its neighbours, on
chunking, or on what is cached.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.parallel.mesh import Mesh
from tilewise.platforms.draw import Draw, noise_key
from tilewise.platforms.ops import Ops
from tilewise.platforms.transfers import PendingCopy, start_copy_to_host, to_device
from tilewise.runner.batch import Tables
from tilewise.runner.logits import LogitsRow, process
from tilewise.step import PromptScores, Work
from tilewise.types import SampledToken

logger = logging.getLogger("tilewise")


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Tokens that a step has chosen, on their way to the host; the tables have them already."""

    work: Sequence[Work]
    arriving: PendingCopy
    """Chosen tokens [R], the tokens guessed at their places [R], and True if logits are no numbers []."""
    reports: tuple[LogprobReport, ...]
    """Log-probabilities, of requests that want those."""

    def wait(self) -> dict[int, tuple[SampledToken, ...]]:
        """Return, by slot, the tokens of each piece of work up to the first that its draft did not guess."""
        if not self.work:
            return {}
        chosen, guessed, no_numbers = self.arriving.wait()
        if no_numbers:
            warn_of_nan()
        tokens = [SampledToken(token) for token in chosen.tolist()]
        for report in self.reports:
            for row, token in zip(report.rows, report.wait(), strict=True):
                tokens[row] = token
        return accept(self.work, tokens, guessed.tolist())


@dataclass(frozen=True, slots=True)
class LogprobReport:
    """Rows of a step whose tokens have log-probabilities."""

    rows: Sequence[int]
    wait: Callable[[], Sequence[SampledToken]]
    """Call for the tokens of these rows, once the device has come so far."""


def sample(logits: Tensor | None, work: Sequence[Work], tables: Tables, ops: Ops, mesh: Mesh = Mesh()) -> SampledTokens:
    """Choose the tokens of each piece of work, and write them into the tables.

    Logits [R, vocabulary] come in the order of the work, `rows` of each; None in a stage of a pipeline that has no
    head. Of several ranks one chooses, and all write what it has chosen into their tables.

    Reported log-probabilities are of the raw logits, as vLLM's are: before bias, penalties, temperature and
    truncation, and among the tokens that a structured answer allows.
    """
    if not work:
        return SampledTokens(work, start_copy_to_host(), ())
    rows = rows_of(work, tables)
    if logits is None:
        no_numbers = torch.zeros((), dtype=torch.bool, device=tables.device)
        chosen = mesh.from_last_stage(torch.empty(len(rows), dtype=torch.int64, device=tables.device))
    else:
        logits = apply_masks(logits, work)
        chosen = mesh.from_last_stage(choose(logits, rows, tables.tokens, ops))
        no_numbers = logits.gather(1, chosen[:, None]).isnan().any()
    at = tuple(to_device([[row.slot for row in rows], [row.length for row in rows]], tables.device))
    # Read before it is overwritten. Behind the last guess stands no guess, but what is read there is not compared.
    guessed = tables.tokens[at]
    tables.tokens[at] = chosen
    return SampledTokens(work, start_copy_to_host(chosen, guessed, no_numbers), reports_of(logits, rows, chosen, mesh))


@cache
def warn_of_nan() -> None:
    """Say, once, that logits of tokens that were chosen are no numbers."""
    logger.error(
        "The model's logits are no numbers, and its answers mean nothing: some of its weights are not finite "
        "(fetch the files again), or its activations became too large for its dtype (try --dtype float32)."
    )


def rows_of(work: Sequence[Work], tables: Tables) -> list[LogitsRow]:
    """Return a row for each place at which a token is chosen: behind the last known token and behind each guess."""
    places = [(item.slot, length) for item in work for length in range(item.stop - item.num_choices + 1, item.stop + 1)]
    return [LogitsRow(index, slot, length, tables.admission(slot)) for index, (slot, length) in enumerate(places)]


def accept(
    work: Sequence[Work], tokens: Sequence[SampledToken], guessed: Sequence[int]
) -> dict[int, tuple[SampledToken, ...]]:
    """Cut each piece's tokens behind the first that is not what was guessed at its place."""
    found: dict[int, tuple[SampledToken, ...]] = {}
    first = 0
    # The token that differs from its guess is right itself, as all that it was chosen behind is: it replaces the guess.
    for item in work:
        last = first
        while last < first + item.drafts and tokens[last].token_id == guessed[last]:
            last += 1
        found[item.slot] = tuple(tokens[first : last + 1])
        first += item.num_choices
    return found


def apply_masks(logits: Tensor, work: Sequence[Work]) -> Tensor:
    """Return the logits, with those of structured answers limited to what may come next."""
    firsts = itertools.accumulate((item.num_choices for item in work), initial=0)
    masks = [(first, item.masks) for first, item in zip(firsts, work, strict=False) if item.masks is not None]
    if not masks:
        return logits
    rows = to_device([first + place for first, own in masks for place in range(len(own))], logits.device)
    bits = to_device(np.concatenate([own for _, own in masks]), logits.device, torch.int32)
    return logits.index_put((rows,), apply_mask(logits[rows], bits))


def apply_mask(logits: Tensor, mask: Tensor) -> Tensor:
    """Return logits [..., V], -inf where a token's bit in mask [..., words] (int32) is 0, or beyond the last word."""
    width = logits.shape[-1]
    places = torch.arange(32, dtype=torch.int32, device=mask.device)
    allowed = (mask.unsqueeze(-1) >> places & 1).flatten(-2)[..., :width].bool()
    allowed = F.pad(allowed, (0, width - allowed.shape[-1]))
    return logits.masked_fill(~allowed, -inf)


def choose(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor, ops: Ops) -> Tensor:
    """Choose a token for each row, ids [R]."""
    # Copied where a row is changed: log-probabilities are of the logits as they came.
    processed = logits.to(torch.float32, copy=any(row.processed for row in rows))
    process(processed, rows, tokens)
    draws = [_draw_of(row) for row in rows if not row.sampling.greedy]
    if len(draws) == len(rows):
        return ops.draw(processed, draws)
    chosen = processed.argmax(-1)
    if draws:
        chosen[to_device([one.row for one in draws], logits.device)] = ops.draw(processed, draws)
    return chosen


def _draw_of(row: LogitsRow) -> Draw:
    # The noise belongs to a seed and a position: `length` is the one that the token will have. So the same token is
    # drawn in whatever step it falls, after a preemption and behind a guess, too. A draft model draws by the same key,
    # and that is why its guesses are often right even at high temperatures.
    wanted = row.sampling
    key = noise_key(row.admission.seed, row.length)
    return Draw(row.index, wanted.temperature, wanted.top_k, wanted.top_p, wanted.min_p, key)


def reports_of(
    logits: Tensor | None, rows: Sequence[LogitsRow], chosen: Tensor, mesh: Mesh
) -> tuple[LogprobReport, ...]:
    """Return reports for requests that want log-probabilities. Other stages of a pipeline get those of the last one."""
    if not any(row.sampling.reports for row in rows):
        return ()
    reports = () if logits is None else tuple(_reports(logits, rows, chosen))
    if mesh.pipeline is None:
        return reports
    told = mesh.object_from_last_stage([(report.rows, report.wait()) for report in reports])
    return tuple(LogprobReport(places, partial(list, tokens)) for places, tokens in told)


def _reports(logits: Tensor, rows: Sequence[LogitsRow], chosen: Tensor) -> Iterator[LogprobReport]:
    by_count: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if row.sampling.logprob_token_ids:
            ids = to_device(row.sampling.logprob_token_ids, logits.device)
            yield LogprobReport((row.index,), score_ids(logits[row.index], chosen[row.index], ids))
        elif row.sampling.logprobs is not None:
            by_count[row.sampling.logprobs].append(row.index)
    for count, places in by_count.items():
        at = to_device(places, logits.device)
        yield LogprobReport(places, score(logits[at], chosen[at], count))


def score(logits: Tensor, tokens: Tensor, count: int) -> Callable[[], list[SampledToken]]:
    """Score tokens [R]: log-probability and rank under logits [R, vocabulary], and the `count` likeliest (-1 = all).

    Computed at once; the call that is returned waits for it.
    """
    scores = log_probabilities(logits)
    own = scores.gather(1, tokens[:, None])
    ranks = (scores > own).sum(-1) + 1
    size = scores.shape[1]
    values, ids = scores.topk(size if count < 0 else min(count, size))
    return partial(_with_likeliest, start_copy_to_host(tokens, own[:, 0], ranks, ids, values))


def _with_likeliest(arriving: PendingCopy) -> list[SampledToken]:
    columns = (tensor.tolist() for tensor in arriving.wait())
    return [
        SampledToken(token, value, rank, tuple(pair for pair in zip(top_ids, top, strict=True) if pair[1] > -inf))
        for token, value, rank, top_ids, top in zip(*columns, strict=True)
    ]


def score_ids(logits: Tensor, token: Tensor, ids: Tensor) -> Callable[[], list[SampledToken]]:
    """Score one token [] under logits [vocabulary], and the tokens `ids` [N] in place of the likeliest ones.

    Tokens that cannot be drawn have no log-probability, and are left out.
    """
    scores = log_probabilities(logits)
    asked = torch.cat((token[None], ids))
    values = scores[asked]
    # A row at a time, as the comparison of all would be N vocabularies large.
    ranks = torch.stack([(scores > value).sum() + 1 for value in values])
    return partial(_with_asked, start_copy_to_host(asked, values, ranks))


def _with_asked(arriving: PendingCopy) -> list[SampledToken]:
    (token, *ids), (value, *values), (rank, *ranks) = (tensor.tolist() for tensor in arriving.wait())
    kept = [one for one in zip(ids, values, ranks, strict=True) if one[1] > -inf]
    return [SampledToken(token, value, rank, tuple(one[:2] for one in kept), tuple(one[2] for one in kept))]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities under logits [..., vocabulary], in float32; -inf where there is none."""
    return logits.float().log_softmax(-1).nan_to_num(nan=-inf, neginf=-inf)


PROMPT_SCORE_ROWS = 256
"""Rows whose logits are scored at a time: those of a whole chunk over a whole vocabulary can be gigabytes."""


def score_prompts(
    work: Sequence[Work], token_rows: Tensor, tables: Tables, logits_of: Callable[[Tensor], Tensor]
) -> PromptScores:
    """Score prompts: each token says how likely the one behind it was. `token_rows` [T] are the tokens' rows in the
    batch, in the order of the work; `logits_of` computes logits of some rows.
    """
    found: PromptScores = {}
    first = 0
    for item in work:
        admission = tables.admission(item.slot)
        count = admission.sampling.prompt_logprobs
        stop = min(item.start + item.count, admission.num_prompt - 1)
        if count is not None and item.start < stop:
            tokens = tables.tokens[item.slot, item.start + 1 : stop + 1]
            rows = token_rows[first : first + len(tokens)]
            found[item.slot] = _score(rows, tokens, count, logits_of)
        first += item.count
    return found


def _score(rows: Tensor, tokens: Tensor, count: int, logits_of: Callable[[Tensor], Tensor]) -> tuple[SampledToken, ...]:
    pairs = zip(rows.split(PROMPT_SCORE_ROWS), tokens.split(PROMPT_SCORE_ROWS), strict=True)
    return tuple(itertools.chain.from_iterable(score(logits_of(part), chosen, count)() for part, chosen in pairs))
