"""The noise: exponential, the same in every batch, and unrelated between seeds, positions and tokens.

All draws are fixed by their seeds, so that a test either always passes or always fails.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.runner.plain_sampler import plain_noise
from tilewise.platforms.draw import exponential_noise, noise_key


def keys(pairs) -> Tensor:
    return torch.tensor([noise_key(*pair) for pair in pairs], dtype=torch.int32)


def ids(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.int32)


def kolmogorov(uniform: Tensor) -> float:
    """sqrt(n) times the largest distance from the uniform distribution; above 1.95 once in a thousand samples."""
    ordered = uniform.double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    distance = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    return float(distance) * math.sqrt(len(ordered))


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """How many standard deviations chi-square lies above its mean (Wilson & Hilferty 1931)."""
    value, freedom = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
    spread = 2 / (9 * freedom)
    return ((value / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (42, 3000), (2**63 - 1, 7), (-5, 7), (2**80, 7)])
def test_it_is_the_published_hash(pair):
    found = exponential_noise(keys([pair]), ids(4000))[0]
    assert torch.equal(found, torch.from_numpy(plain_noise(*pair, 4000)))


def test_splitmix_gives_its_published_numbers():
    """The first two outputs of the generator seeded with 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64")."""
    from tilewise.platforms.draw import _GAMMA, _splitmix64

    assert _splitmix64(1234567) == 6457827717110365317
    assert _splitmix64(1234567 + _GAMMA) == 3203168211198807973


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds"])
def test_it_is_exponential_along_each_of_its_coordinates(along):
    count = 200_000
    if along == "tokens":
        noise = exponential_noise(keys([(7, 100)]), ids(count))[0]
    else:
        pairs = [(7, i) if along == "positions" else (i, 100) for i in range(count)]
        noise = exponential_noise(keys(pairs), torch.tensor([1234], dtype=torch.int32))[:, 0]
    assert kolmogorov(-torch.expm1(-noise.double())) < 1.95


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, -1), (2**32, 0), (0, 2**20)])
def test_neighbouring_keys_are_unrelated(step):
    """Both numbers of a pair fall into each of 16 x 16 fields equally often."""
    one = exponential_noise(keys([(7, 100)]), ids(200_000))[0]
    other = exponential_noise(keys([(7 + step[0], 100 + step[1])]), ids(200_000))[0]
    fields = [(-torch.expm1(-part.double()) * 16).long() for part in (one, other)]
    counts = torch.bincount(fields[0] * 16 + fields[1], minlength=256).double()
    assert chi_square(counts, torch.full_like(counts, 200_000 / 256)) < 3.1


def test_neighbouring_tokens_are_unrelated():
    noise = exponential_noise(keys([(7, 100)]), ids(200_001))[0]
    fields = (-torch.expm1(-noise.double()) * 16).long()
    counts = torch.bincount(fields[:-1] * 16 + fields[1:], minlength=256).double()
    assert chi_square(counts, torch.full_like(counts, 200_000 / 256)) < 3.1


def test_batch_and_order_of_tokens_change_no_bit():
    pairs = [(seed, 50 + seed) for seed in range(9)]
    together = exponential_noise(keys(pairs), ids(5003))
    for row, pair in zip(together, pairs, strict=True):
        assert torch.equal(exponential_noise(keys([pair]), ids(5003))[0], row)
    some = torch.tensor([[5002, 17, 0]] * 9, dtype=torch.int32)
    assert torch.equal(exponential_noise(keys(pairs), some), together[:, [5002, 17, 0]])


def test_it_is_finite_and_above_zero_even_at_the_ends_of_its_range():
    noise = exponential_noise(keys([(seed, 0) for seed in range(200)]), ids(50_000))
    assert 0 < float(noise.min()) < 1e-6
    assert 15 < float(noise.max()) < 17
