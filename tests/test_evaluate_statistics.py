"""Intervals and tests of train.evaluate against numbers that are known without it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from train.evaluate_statistics import bootstrap, holm, paired, sign_flip, spread_bootstrap


def test_the_interval_of_a_mean_is_the_bootstraps():
    """Of equal values it is a point; of n normal ones about mean -+ 1.96 s / sqrt n (with s over n, as resampling
    has it): 2 and 0 fifty times each give 1 -+ 1.96 / 10."""
    assert (lambda i: (i.mean, i.low, i.high, i.n))(bootstrap([3.0] * 5)) == (3.0, 3.0, 3.0, 5)
    told = bootstrap([0.0, 2.0] * 50)
    assert told.mean == 1 and told.low == pytest.approx(0.804, abs=0.02) and told.high == pytest.approx(1.196, abs=0.02)


def test_one_number_has_no_interval():
    told = bootstrap([0.25])
    assert (told.mean, told.low, told.high, told.n) == (0.25, None, None, 1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 samples of 40 normal numbers: a percentile interval of the mean holds the true one in about 94 % (it is a
    little narrow: s over n and no t); below 88 % is 3.5 standard errors off."""
    rng = np.random.default_rng(0)
    held = [bootstrap(rng.normal(5, 2, 40).tolist(), resamples=500, seed=k) for k in range(200)]
    assert np.mean([i.low <= 5 <= i.high for i in held]) >= 0.88


def test_signs_are_flipped_exactly():
    """Of 1, 2, 3 two of eight choices reach 6; of 1, -1 the sum 0 is always reached; ten equal differences are reached
    by all + and all - alone, 2 / 1024."""
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip(np.array([1.0, -1.0])) == 1
    assert sign_flip(np.full(10, 0.1)) == 2 / 1024


def test_many_signs_are_drawn():
    """20 differences: as scipy's permutation test of paired samples says, within the error of 20 000 draws."""
    x = np.random.default_rng(1).normal(0.3, 1, 20)
    told = stats.permutation_test(
        (x, np.zeros(20)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20000, rng=0
    )
    assert sign_flip(x) == pytest.approx(told.pvalue, abs=0.012)
    assert sign_flip(np.full(40, 1.0)) == pytest.approx(1 / 20001)


def test_no_difference_is_never_significant():
    """Under the null p is below 0.05 in one test of twenty: 500 tests of 12 inputs, 3 standard errors."""
    rng = np.random.default_rng(2)
    below = np.mean([sign_flip(rng.normal(0, 1, 12)) <= 0.05 for _ in range(500)])
    assert below <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5


def test_pairs_are_compared_by_input():
    """Inputs that differ by 10 hide a difference of 0.1 from means, not from pairs."""
    hard = np.arange(8) * 10.0
    told = paired((hard + 0.1).tolist(), hard.tolist())
    assert told.difference.mean == pytest.approx(0.1) and told.above == 8
    assert told.difference.low == pytest.approx(0.1) == told.difference.high
    assert told.p == 2 / 256


def test_holm_is_the_step_down():
    """3 x 0.01 = 0.03; 2 x 0.03 = 0.06; 0.04 x 1 is less, so it stays 0.06. Unknown ones are not counted."""
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_distances_keep_their_value_in_the_middle_of_their_spread():
    """A statistic that repetitions take far down: the number of distinct things. Of 50 drawn from 50 it is about
    50 (1 - 1/e) = 31.6, never near 50; its variance is 50 (e^-1 - 2 e^-2) = 4.86 (of occupancy), so the interval is 50
    -+ 1.96 x 2.2 = 4.3, within what 400 resamples tell of a deviation (1.96 x 3.5 %)."""
    ((value, low, high),) = spread_bootstrap(50, lambda drawn: np.array([len(np.unique(drawn))], float), 400)
    assert value == 50 and high - value == pytest.approx(4.32, rel=0.1) and value - low == pytest.approx(high - value)
