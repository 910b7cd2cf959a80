"""Changes that requests make to logits before a token is chosen: one function an option, over all rows that ask.

Every processor changes logits [R, vocabulary] in place, and only the rows whose requests need it. Their order is
vLLM's: what is allowed, what is ruled out, bias, penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from tilewise.platforms.transfers import Numbers, to_device
from tilewise.sampling_params import SamplingParams
from tilewise.step import Admission

BANNED = -1e30
"""Logit of a token that is ruled out. Finite, so that a constraint (-inf elsewhere) that leaves nothing else wins."""


@dataclass(frozen=True, slots=True)
class LogitsRow:
    """One row of the logits: whose it is, and how many tokens stand before the one to choose."""

    index: int
    slot: int
    length: int
    admission: Admission

    @property
    def sampling(self) -> SamplingParams:
        return self.admission.sampling

    @property
    def generated(self) -> int:
        return self.length - self.admission.num_prompt

    @property
    def processed(self) -> bool:
        """True if any of the processors below may change its logits."""
        sampling = self.sampling
        return bool(
            sampling.allowed_token_ids
            or self.admission.bad_words
            or self.generated < sampling.min_tokens
            or sampling.logit_bias
            or sampling.penalised
        )


def process(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor) -> None:
    """Apply all processors; `tokens` [slots, length] are the tokens of each slot so far."""
    wanted = [row for row in rows if row.processed]
    for processor in PROCESSORS if wanted else ():
        processor(logits, wanted, tokens)


def keep_allowed(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor) -> None:
    picked = [row for row in rows if row.sampling.allowed_token_ids]
    if not picked:
        return
    where, ids = _pairs(logits, [(row.index, row.sampling.allowed_token_ids or ()) for row in picked])
    kept = logits[where, ids]
    logits[_on(logits, [row.index for row in picked])] = float("-inf")
    logits[where, ids] = kept


def ban_bad_words(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor) -> None:
    """Rule out the last token of every banned sequence whose other tokens are the newest of the answer."""
    words = [(row, word) for row in rows for word in row.admission.bad_words if len(word) <= row.generated + 1]
    if not words:
        return
    # All words are compared at once: shorter ones are filled up in front with -1, which any token matches.
    longest = max(len(word) for _, word in words) - 1
    pattern = _on(logits, [[-1] * (longest + 1 - len(word)) + list(word[:-1]) for _, word in words])
    slots, lengths = _on(logits, [row.slot for row, _ in words]), _on(logits, [row.length for row, _ in words])
    back = torch.arange(longest, 0, -1, device=logits.device)
    newest = tokens[slots[:, None], (lengths[:, None] - back).clamp(min=0)]
    completes = ((pattern == newest) | (pattern < 0)).all(-1)
    where, ids = _pairs(logits, [(row.index, word[-1:]) for row, word in words])
    # Added, not written: one token may end several words, of which only some are there. No branch, hence no wait.
    logits.index_put_((where, ids), torch.where(completes, BANNED, 0.0), accumulate=True)


def ban_early_ends(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor) -> None:
    """Rule out end tokens before `min_tokens`, even where `ignore_eos` has an answer go on behind one, as in vLLM."""
    picked = [row for row in rows if row.generated < row.sampling.min_tokens]
    ends = [(row.index, {*row.admission.stop_ids, *row.sampling.stop_ids}) for row in picked]
    if any(ids for _, ids in ends):
        size = logits.shape[1]
        logits[_pairs(logits, [(index, tuple(id for id in ids if id < size)) for index, ids in ends])] = BANNED


def add_bias(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor) -> None:
    picked = [(row.index, row.sampling.logit_bias) for row in rows if row.sampling.logit_bias]
    if picked:
        pairs = _pairs(logits, [(index, tuple(bias)) for index, bias in picked])
        logits[pairs] += _on(logits, [value for _, bias in picked for value in bias.values()], torch.float32)


def penalise(logits: Tensor, rows: Sequence[LogitsRow], tokens: Tensor) -> None:
    """Penalise repeated tokens. Repetition counts prompt and answer (Keskar et al. 2019, CTRL); presence and frequency
    the answer alone.

    Only logits of tokens that a sequence has are read and written.
    """
    picked = [row for row in rows if row.sampling.penalised]
    if not picked:
        return
    where = _on(logits, [row.index for row in picked])
    place = torch.arange(max(row.length for row in picked), device=logits.device)
    past = place < _column(logits, [row.length for row in picked])
    own = tokens[_on(logits, [row.slot for row in picked])][:, : len(place)]
    ids = torch.where(past, own, own[:, :1])  # behind its end a row repeats its first token, which changes nothing
    answer = past & (place >= _column(logits, [row.admission.num_prompt for row in picked]))
    counts = logits.new_zeros(len(picked), logits.shape[1]).scatter_add_(1, ids, answer.float()).gather(1, ids)
    repetition = _column(logits, [row.sampling.repetition_penalty for row in picked], torch.float32)
    frequency = _column(logits, [row.sampling.frequency_penalty for row in picked], torch.float32)
    presence = _column(logits, [row.sampling.presence_penalty for row in picked], torch.float32)
    values = logits[where[:, None], ids]
    # A token that occurs several times is written several times, with the same value each time.
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[where[:, None], ids] = values - frequency * counts - presence * (counts > 0)


Processor = Callable[[Tensor, Sequence[LogitsRow], Tensor], None]
PROCESSORS: tuple[Processor, ...] = (keep_allowed, ban_bad_words, ban_early_ends, add_bias, penalise)


def _pairs(logits: Tensor, ids: Sequence[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Return the rows and the token ids, one after the other, of pairs (row, its ids)."""
    where = [index for index, own in ids for _ in own]
    return _on(logits, where), _on(logits, list(chain.from_iterable(own for _, own in ids)))


def _on(logits: Tensor, values: Numbers, dtype: torch.dtype = torch.int64) -> Tensor:
    return to_device(values, logits.device, dtype)


def _column(logits: Tensor, values: Numbers, dtype: torch.dtype = torch.int64) -> Tensor:
    return _on(logits, values, dtype)[:, None]
