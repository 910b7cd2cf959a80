"""When requests are sent: the distribution, the scale, the seed, ramps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tilewise.bench.load import Arrivals, Ramp
from tilewise.errors import InvalidConfig


def gaps(arrivals: Arrivals, count: int, seed: int = 0) -> np.ndarray:
    return np.diff([0.0, *arrivals.moments(count, seed)])


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (4.0, 0.5), (0.25, 2.0)])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness, variation):
    found = gaps(Arrivals(rate=5.0, burstiness=burstiness), 40_000)
    assert found.mean() == pytest.approx(0.2)
    assert found.std() / found.mean() == pytest.approx(variation, rel=0.05)


def test_a_poisson_process_has_exponential_gaps():
    found = gaps(Arrivals(rate=2.0), 40_000)
    for seconds in (0.1, 0.5, 1.0, 2.0):
        assert (found > seconds).mean() == pytest.approx(math.exp(-2 * seconds), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_every_seed_sends_all_requests_in_the_same_time(seed):
    assert Arrivals(rate=4.0).moments(10, seed)[-1] == pytest.approx(2.5)


def test_a_seed_draws_the_same_and_another_one_others():
    arrivals = Arrivals(rate=4.0)
    assert arrivals.moments(10, 1) == arrivals.moments(10, 1) != arrivals.moments(10, 2)


def test_without_a_rate_all_come_at_once():
    assert Arrivals().moments(3, 0) == [0.0, 0.0, 0.0]


def test_infinite_burstiness_is_a_clock():
    assert Arrivals(rate=4.0, burstiness=math.inf).moments(3, 0) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize(("strategy", "rates"), [("linear", [1, 2.5, 4]), ("exponential", [1, 2, 4])])
def test_a_ramp_goes_from_one_rate_to_the_other(strategy, rates):
    found = gaps(Arrivals(burstiness=math.inf, ramp=Ramp(strategy, 1, 4)), 3)
    assert 1 / found == pytest.approx(rates)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arrivals(rate=0), "--request-rate must be above 0, got 0"),
        (lambda: Arrivals(rate=math.nan), "--request-rate must be above 0, got nan"),
        (lambda: Arrivals(burstiness=-1), "--burstiness must be above 0, got -1"),
        (lambda: Ramp("linear", 0, 4), "--ramp-up-start-rps 0 and --ramp-up-end-rps 4"),
        (lambda: Ramp("linear", 5, 4), "need 0 < start <= end"),
        (lambda: Arrivals(rate=2.0, ramp=Ramp("linear", 1, 4)), "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidConfig, match=message):
        make()
