"""Log-probabilities of a prompt's own tokens, for requests that ask for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor

from tilewise.runner.sampler import score
from tilewise.runner.tables import Tables
from tilewise.step import PromptScores, Work
from tilewise.types import SampledToken

ROWS = 256
"""Rows of logits at a time: those of a whole chunk over a whole vocabulary can be gigabytes."""


def score_prompts(
    work: Sequence[Work], token_rows: Tensor, tables: Tables, logits_of: Callable[[Tensor], Tensor]
) -> PromptScores:
    """Each token says how likely the one behind it was. `token_rows` [T] are the tokens' rows in the batch, in the
    order of the work; `logits_of` computes logits of some rows.
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
    pairs = zip(rows.split(ROWS), tokens.split(ROWS), strict=True)
    return tuple(itertools.chain.from_iterable(score(logits_of(part), chosen, count)() for part, chosen in pairs))
