"""Drawing a token from temperature, top-k, min-p and top-p, over rows whose settings differ.

The exponential race: among tokens with weights w and exponential noise e, argmax(w / e) is drawn with probability
w / sum(w) (Efraimidis & Spirakis 2006). No normalisation, no cumulative sum, and a token's noise is its own, so
whether the losers take part changes nothing: a truncated row is drawn from its candidates alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tilewise.platforms.noise import exponential_noise
from tilewise.platforms.transfers import sent

CANDIDATES = 256
"""Likeliest tokens looked at first in a truncated row; only where more are left is the whole row sorted.

The same for all rows, whatever their settings: a row's arithmetic may not depend on its neighbours.
"""
CPU_ROWS = 4
"""Rows drawn at once on a CPU, whose caches hold no more; other devices take them all."""


class Draw(NamedTuple):
    """A row of the logits that is drawn from, and what its request wants."""

    row: int
    temperature: float
    """Above 0."""
    top_k: int
    """0 or less: all."""
    top_p: float
    min_p: float
    key: tuple[int, int]
    """Of its noise (`noise_key`)."""

    @property
    def truncated(self) -> bool:
        """Some tokens may be out of the question."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def draw(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Token ids int64 [draws], in their order; logits [all rows, vocabulary] in float32."""
    tokens = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    for truncated in (False, True):
        places = [place for place, one in enumerate(draws) if one.truncated == truncated]
        size = CPU_ROWS if logits.device.type == "cpu" else max(len(places), 1)
        for part in (places[start : start + size] for start in range(0, len(places), size)):
            tokens[sent(part, logits.device)] = _draw(logits, [draws[place] for place in part], truncated)
    return tokens


def _draw(logits: Tensor, draws: Sequence[Draw], truncated: bool) -> Tensor:
    device = logits.device
    temperatures = sent([one.temperature for one in draws], device, torch.float32)
    scaled = logits[sent([one.row for one in draws], device)].div_(temperatures[:, None])
    keys = sent([one.key for one in draws], device, torch.int32)
    if truncated:
        return _draw_truncated(scaled, draws, keys)
    ids = torch.arange(logits.shape[1], dtype=torch.int32, device=device)
    return _race(_weights(scaled), exponential_noise(keys, ids))


def _race(weights: Tensor, noise: Tensor) -> Tensor:
    return (weights / noise).argmax(-1)


def _weights(logits: Tensor) -> Tensor:
    """Probabilities as multiples of the likeliest token's."""
    return (logits - logits.amax(-1, keepdim=True)).exp_()


def _draw_truncated(logits: Tensor, settings: Sequence[Draw], keys: Tensor) -> Tensor:
    tokens, settled = _draw_among(logits.topk(min(CANDIDATES, logits.shape[1])), logits, settings, keys)
    left = (~settled).nonzero().flatten().tolist()
    if left:
        whole = logits[left]
        ordered = whole.sort(descending=True)
        tokens[left], _ = _draw_among(ordered, whole, [settings[place] for place in left], keys[left])
    return tokens


def _draw_among(
    likeliest: tuple[Tensor, Tensor], logits: Tensor, settings: Sequence[Draw], keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw from the likeliest tokens (values and ids); also whether those are all that truncation leaves of a row."""
    values, ids = likeliest
    kept, settled = survivors(values, logits, settings)
    winners = _race(_weights(values) * kept, exponential_noise(keys, ids.int()))
    return ids.gather(1, winners[:, None])[:, 0], settled


def survivors(values: Tensor, logits: Tensor, settings: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """Which of the likeliest tokens (logits [R, W], falling) are left, and whether no others are: bool [R, W], [R].

    Top-k keeps the k likeliest, min-p what has at least this share of the likeliest one's probability, and top-p the
    fewest of those that hold this share of their mass. What ties with the last of them stays: order means nothing.
    """
    width, size = values.shape[1], logits.shape[1]
    device = values.device
    top_k = sent([one.top_k for one in settings], device)[:, None]
    min_p = sent([one.min_p for one in settings], device, torch.float32)[:, None]
    top_p = sent([one.top_p for one in settings], device, torch.float32)[:, None]
    top_k = torch.where(top_k > 0, top_k.clamp(max=size), size)
    weights = _weights(values)
    inner = (weights >= min_p) & (values >= values.gather(1, top_k.clamp(max=width) - 1))
    running = (weights * inner).cumsum(-1)
    mass, known = running[:, -1:], ~inner[:, -1:]
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
