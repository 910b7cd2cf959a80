"""Statistics against numbers worked out otherwise."""

from __future__ import annotations

import math

import pytest

from tilewise.evals.compare.comparison import Agreement, PairedScores, common_share, mcnemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 6, 0.03125), (6, 0, 0.03125), (3, 3, 1.0), (2, 8, 0.109375), (5, 15, 0.04138947)],
)
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second, p):
    """The last two as any statistics package's binomial test has them."""
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-6)


def test_the_difference_is_paired():
    """Ten questions, of which one is right only in the first and three only in the second."""
    first = [1.0] * 4 + [1.0] + [0.0] * 3 + [0.0] * 2
    second = [1.0] * 4 + [0.0] + [1.0] * 3 + [0.0] * 2
    paired = PairedScores.of(first, second)
    assert (paired.first.value, paired.second.value) == (0.5, 0.7)
    assert (paired.only_first, paired.only_second) == (1, 3)
    # Agresti's form: (b + c - (b - c)^2 / n) / n^2, with n - 1 in place of one n for a sample.
    assert paired.difference.error == pytest.approx(math.sqrt((4 - 4 / 10) / 9 / 10))
    assert paired.difference.value == pytest.approx(0.2)
    assert paired.first.error == pytest.approx(math.sqrt(0.25 * 10 / 9 / 10))
    assert paired.p == mcnemar(1, 3)


def test_scores_that_are_parts_have_no_test_of_right_and_wrong():
    paired = PairedScores.of([0.5, 1.0], [0.75, 1.0])
    assert paired.p is None
    assert (paired.only_first, paired.only_second) == (0, 1)


def test_one_question_has_no_error():
    assert PairedScores.of([1.0], [0.0]).difference.error == 0.0


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ((1, 2, 3), (1, 2, 4), 2 / 3),
        ((1, 2), (1, 2, 3, 4), 0.5),
        ((), (), 1.0),
        ((), (1,), 0.0),
        ("star", "start", 0.8),
    ],
)
def test_the_common_beginning_is_a_share_of_the_longer(first, second, share):
    assert common_share(first, second) == share == common_share(second, first)


def test_agreement_is_a_mean_over_answers():
    agreement = Agreement.of([(1, 2), (3,)], [(1, 2), (4,)])
    assert (agreement.same, agreement.prefix) == (0.5, 0.5)
