"""Logits -> tokens, row by row: penalties, masks, temperature, truncation, noise.

The noise of a row depends on its request's seed and on the position alone, so a request's tokens do not depend on
its neighbours, on chunking, or on what is cached.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.runner.tables import Tables
from tilewise.step import Admission, Work
from tilewise.types import SampledToken, SamplingParams

_MASK64 = 2**64 - 1


def sample(logits: Tensor, work: list[Work], tables: Tables) -> dict[int, SampledToken]:
    """Choose one token for each piece of work; logits [R, vocabulary] come in the same order.

    Reported log-probabilities are of the raw logits, as vLLM's are: before penalties, temperature and truncation, and
    among the tokens that a structured answer allows.
    """
    tokens = {}
    for row, item in zip(logits.float(), work, strict=True):
        if item.mask is not None:
            row = apply_mask(row, torch.from_numpy(item.mask).to(row.device))
        length = item.start + item.count
        admission = tables.admission(item.slot)
        adjusted = _adjust(row, admission, tables.tokens_of(item.slot, length))
        token_id = _choose(adjusted, admission.sampling, admission.seed, position=length)
        tables.tokens[item.slot, length] = token_id
        tokens[item.slot] = _report(row, token_id, admission.sampling.logprobs)
    return tokens


def apply_mask(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits [..., V] with -inf where the bit of a token in mask [..., words] (int32) is 0, or beyond the last word."""
    width = logits.shape[-1]
    places = torch.arange(32, dtype=torch.int32, device=mask.device)
    allowed = (mask.unsqueeze(-1) >> places & 1).flatten(-2)[..., :width].bool()
    allowed = F.pad(allowed, (0, width - allowed.shape[-1]))
    return logits.masked_fill(~allowed, float("-inf"))


def _adjust(row: Tensor, admission: Admission, tokens: Tensor) -> Tensor:
    """Penalties and the ban on ending early."""
    sampling = admission.sampling
    if sampling.penalised:
        row = _penalise(row, sampling, tokens, admission.num_prompt)
    if len(tokens) - admission.num_prompt < sampling.min_tokens:
        row = row.clone()
        row[[*admission.stop_ids, *sampling.stop_ids]] = float("-inf")
    return row


def _penalise(row: Tensor, sampling: SamplingParams, tokens: Tensor, num_prompt: int) -> Tensor:
    """Repetition counts prompt and answer (Keskar et al. 2019, CTRL); presence and frequency the answer alone."""
    repeated = torch.zeros_like(row, dtype=torch.bool).index_fill_(0, tokens, True)
    scaled = torch.where(row > 0, row / sampling.repetition_penalty, row * sampling.repetition_penalty)
    row = torch.where(repeated, scaled, row)
    counts = torch.bincount(tokens[num_prompt:], minlength=len(row))
    return row - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)


def _choose(row: Tensor, sampling: SamplingParams, seed: int, position: int) -> int:
    if sampling.greedy:
        return int(row.argmax())
    probabilities = truncate(row / max(sampling.temperature, 0.01), sampling).softmax(-1)
    # argmax(p / e) with exponential e draws from p (the exponential race), without a cumulative sum.
    noise = torch.empty_like(probabilities).exponential_(generator=generator_at(seed, position, row.device))
    return int((probabilities / noise).argmax())


def truncate(row: Tensor, sampling: SamplingParams) -> Tensor:
    """Set to -inf what top-k, top-p and min-p leave out. The likeliest token always stays."""
    if 0 < sampling.top_k < len(row):
        row = row.masked_fill(row < row.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.min_p > 0:
        probabilities = row.softmax(-1)
        row = row.masked_fill(probabilities < sampling.min_p * probabilities.max(), float("-inf"))
    if sampling.top_p < 1:
        ordered, order = row.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        row = row.scatter(0, order, ordered.masked_fill(beyond, float("-inf")))
    return row


def generator_at(seed: int, position: int, device: torch.device) -> torch.Generator:
    """A generator whose stream is a function of both numbers (SplitMix64 finaliser, Steele et al. 2014)."""
    mixed = (seed + position * 0x9E3779B97F4A7C15) & _MASK64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
    return torch.Generator(device).manual_seed((mixed ^ (mixed >> 31)) & (2**63 - 1))


def _report(row: Tensor, token_id: int, logprobs: int | None) -> SampledToken:
    if logprobs is None:
        return SampledToken(token_id)
    scores = row.log_softmax(-1)
    chosen = float(scores[token_id])
    rank = int((scores > scores[token_id]).sum()) + 1
    values, ids = scores.topk(logprobs)
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)
    return SampledToken(token_id, chosen, rank, tuple(pair for pair in likeliest if pair[1] > float("-inf")))
