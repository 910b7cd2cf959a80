"""Drawing a token from temperature, top-k, min-p and top-p, over rows whose settings differ.

The exponential race: among tokens with weights w and exponential noise e, argmax(w / e) is drawn with probability
w / sum(w) (Efraimidis & Spirakis 2006). No normalisation, no cumulative sum, and a token's noise is its own, so
whether the losers take part changes nothing: a truncated row is drawn from its candidates alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tilewise.runner.logits import Row
from tilewise.runner.noise import exponential_noise, noise_key
from tilewise.types import SamplingParams

CANDIDATES = 1024
"""Likeliest tokens looked at first in a truncated row; only where more are left is the whole row sorted.

The same for all rows, whatever their settings: a row's arithmetic may not depend on its neighbours.
"""


def draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Token ids [R] for logits [R, vocabulary] of rows that are not greedy."""
    device = logits.device
    logits = logits / torch.tensor([[row.sampling.temperature] for row in rows], device=device)
    keys = torch.tensor([noise_key(row.admission.seed, row.length) for row in rows], dtype=torch.int32, device=device)
    truncated = [place for place, row in enumerate(rows) if row.sampling.truncated]
    whole = [place for place, row in enumerate(rows) if not row.sampling.truncated]
    tokens = torch.empty(len(rows), dtype=torch.int64, device=device)
    if whole:
        tokens[whole] = _race_all(logits, whole, keys)
    if truncated:
        settings = [rows[place].sampling for place in truncated]
        tokens[truncated] = _draw_truncated(logits[truncated], settings, keys[truncated])
    return tokens


def _race_all(logits: Tensor, places: list[int], keys: Tensor) -> Tensor:
    ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    # Row by row the noise stays in a CPU's cache, which is three times as fast; other devices want it at once.
    parts = [[place] for place in places] if logits.device.type == "cpu" else [places]
    return torch.cat([_race(_weights(logits[part]), exponential_noise(keys[part], ids)) for part in parts])


def _race(weights: Tensor, noise: Tensor) -> Tensor:
    return (weights / noise).argmax(-1)


def _weights(logits: Tensor) -> Tensor:
    """Probabilities as multiples of the likeliest token's."""
    return (logits - logits.amax(-1, keepdim=True)).exp()


def _draw_truncated(logits: Tensor, settings: Sequence[SamplingParams], keys: Tensor) -> Tensor:
    tokens, settled = _draw_among(logits, settings, keys, CANDIDATES)
    left = (~settled).nonzero().flatten().tolist()
    if left:
        tokens[left], _ = _draw_among(logits[left], [settings[place] for place in left], keys[left], logits.shape[1])
    return tokens


def _draw_among(logits: Tensor, settings: Sequence[SamplingParams], keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Draw from the `width` likeliest tokens; also whether those are all that truncation leaves of each row."""
    values, ids = logits.topk(min(width, logits.shape[1]))
    kept, settled = survivors(values, logits, settings)
    winners = _race(_weights(values) * kept, exponential_noise(keys, ids.int()))
    return ids.gather(1, winners[:, None])[:, 0], settled


def survivors(values: Tensor, logits: Tensor, settings: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Which of the likeliest tokens (logits [R, W], falling) are left, and whether no others are: bool [R, W], [R].

    Top-k keeps the k likeliest, min-p what has at least this share of the likeliest one's probability, and top-p the
    fewest of those that hold this share of their mass. What ties with the last of them stays: order means nothing.
    """
    width, size = values.shape[1], logits.shape[1]
    top_k, min_p, top_p = (
        torch.tensor([[setting] for setting in column], device=values.device)
        for column in zip(*((one.top_k, one.min_p, one.top_p) for one in settings), strict=True)
    )
    top_k = torch.where(top_k > 0, top_k.clamp(max=size), size)
    weights = _weights(values)
    inner = (weights >= min_p) & (values >= values.gather(1, top_k.clamp(max=width) - 1))
    running = (weights * inner).cumsum(-1)
    mass, known = running[:, -1:], (top_k <= width) & ~inner[:, -1:]
    if width == size:
        known = torch.ones_like(known)
    elif any(not 0 < one.top_k < size and one.min_p == 0 for one in settings):
        # The mass of a whole row is known without sorting it: the likeliest token's weight is 1.
        whole = (top_k == size) & (min_p == 0)
        mass = torch.where(whole, 1 / logits.softmax(-1).amax(-1, keepdim=True), mass)
        known |= whole
    before = torch.nn.functional.pad(running[:, :-1], (1, 0))
    fewest = inner & ((before < top_p * mass) | (top_p == 1))
    fewest[:, 0] = True
    kept = inner & (values >= values.gather(1, fewest.sum(-1, keepdim=True) - 1))
    return kept, known[:, 0] & ((width == size) | ~kept[:, -1])
