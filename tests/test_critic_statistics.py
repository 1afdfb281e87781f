"""The statistics of judges: closed forms and numbers by hand, scipy and scikit-learn, brute force."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.critic.statistics import (
    auroc,
    balanced_accuracy,
    best_threshold,
    calibration_error,
    fleiss_kappa,
    folds,
    mcnemar,
    out_of_fold,
    pairwise,
    platt,
    sigmoid,
    wilson,
)


def test_wilson_by_hand():
    """8 of 10 as derived in `wilson`; none of n: low 0, high z^2 / (n + z^2) = 3.84146 / 13.84146; 1K at 92.5 % carry
    1.6 points; of nothing, nothing is known."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    low, high = wilson(925, 1000)
    assert (high - low) / 2 == pytest.approx(0.016, abs=5e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    from scipy.stats import binomtest

    right = round(n * share)
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


# ---- thresholds ----

LABELLED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=12)


def arrays(rows) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.array(column) for column in zip(*rows, strict=True))
    return x.astype(float), y


def test_thresholds_by_hand():
    """Apart: the cut is halfway. The other way round: Yes below. All equal: the more frequent answer for everybody."""
    assert vars(best_threshold([1, 2, 3, 4], [0, 0, 1, 1])) == {"at": 2.5, "above": True}
    assert vars(best_threshold([1, 2, 3, 4], [1, 1, 0, 0])) == {"at": 2.5, "above": False}
    assert best_threshold([1, 1, 1], [0, 1, 1])(np.ones(3)).tolist() == [1, 1, 1]
    assert best_threshold([1, 1, 1], [0, 0, 1])(np.ones(3)).tolist() == [0, 0, 0]


@given(rows=LABELLED)
def test_no_cut_in_either_direction_beats_the_threshold(rows):
    x, y = arrays(rows)
    best = (best_threshold(x, y)(x) == y).sum()
    cuts = [((x >= at) == side) for at in np.arange(-0.5, 7) for side in (True, False)]
    assert best == max((predicted == y).sum() for predicted in cuts)


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=6, unique=True))
def test_any_two_floats_can_be_told_apart(values):
    """Neighbouring floats have nothing between them, and the sum of the largest has no float at all."""
    x = np.sort(np.array(values + [np.nextafter(values[0], 0.0)]))
    x = np.unique(x[np.isfinite(x)])
    for cut in range(1, len(x)):
        y = (np.arange(len(x)) >= cut).astype(int)
        assert (best_threshold(x, y)(x) == y).all()


@given(names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20), count=st.integers(1, 5))
def test_folds_are_even_and_whole(names, count):
    fold = folds(names, count)
    of = {name: set(fold[[n == name for n in names]]) for name in names}
    assert all(len(found) == 1 for found in of.values())
    sizes = [sum(found == {number} for found in of.values()) for number in range(count)]
    assert max(sizes) - min(sizes) <= 1


def test_out_of_fold_sees_no_label_of_its_own_input():
    """Noise that a threshold fits in sample is chance out of fold: two inputs whose labels go opposite ways. In sample
    either direction has half right; trained on the other input every answer is wrong."""
    x, y = np.array([1.0, 2, 3, 4, 1, 2, 3, 4]), np.array([0, 0, 1, 1, 1, 1, 0, 0])
    assert (out_of_fold(x, y, ["a"] * 4 + ["b"] * 4) == y).sum() == 0
    assert (out_of_fold(x[:4].repeat(2), y[:4].repeat(2), list("abababab")) == y[:4].repeat(2)).all()


@given(rows=LABELLED, other=st.lists(st.integers(0, 1), min_size=12, max_size=12))
def test_changing_the_labels_of_an_input_changes_no_answer_on_it(rows, other):
    x, y = arrays(rows)
    groups = [str(i % 3) for i in range(len(x))]
    if len(set(groups)) < 2:
        return
    own = np.array([group == "0" for group in groups])
    changed = np.where(own, np.array(other)[: len(y)], y)
    assert (out_of_fold(x, y, groups)[own] == out_of_fold(x, changed, groups)[own]).all()


# ---- measures ----


@given(rows=LABELLED)
def test_measures_are_scikit_learns(rows):
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    x, y = arrays(rows)
    predicted = (x >= 3).astype(int)
    if len(set(y)) < 2:
        assert auroc(x, y) is None and balanced_accuracy(y, predicted) is None
    else:
        assert auroc(x, y) == pytest.approx(roc_auc_score(y, x))
        assert balanced_accuracy(y, predicted) == pytest.approx(balanced_accuracy_score(y, predicted))


def test_calibration_error_by_hand():
    """Bins [0.1, 0.2): p 0.1, 0.15, one Yes: |0.25 - 1| = 0.75; the last: p 0.9 and 1, both Yes: |1.9 - 2| = 0.1.
    (0.75 + 0.1) / 4 = 0.2125. Certain and right is 0, certain and wrong is 1."""
    p, y = np.array([0.1, 0.15, 0.9, 1.0]), np.array([1, 0, 1, 1])
    assert calibration_error(p, y) == pytest.approx(0.2125)
    assert calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    assert calibration_error(np.array([0.0, 1.0]), np.array([1, 0])) == 1


def test_sigmoid_at_its_ends():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


@given(rows=LABELLED, scale=st.sampled_from([1e-3, 1.0, 30.0]), shift=st.sampled_from([-50.0, 0.0]))
def test_platt_is_the_minimum(rows, scale, shift):
    """At the least cross-entropy both sums of residuals are zero, whatever the scale of z."""
    x, y = arrays(rows)
    z = x * scale + shift
    fitted = platt(z, y)
    if len(set(y)) < 2 or not z.std():
        assert fitted is None
        return
    yes, no = y.sum(), (1 - y).sum()
    residual = fitted(z) - np.where(y == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
    assert abs(residual.sum()) < 1e-6 and abs((residual * x).sum()) < 1e-6


def test_platt_is_scikit_learns():
    """Its own implementation of the same method: p = 1 / (1 + exp(a * z + b))."""
    from sklearn.calibration import _sigmoid_calibration

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    z = 2.0 * y + 3.0 + rng.standard_normal(300)
    a, b = _sigmoid_calibration(z, y)
    fitted = platt(z, y)
    assert (fitted.slope, fitted.shift) == pytest.approx((-a, -b), rel=1e-3)


def test_platt_undoes_a_bias():
    """z that says Yes too often by 4: calibrated, the answer turns where labels do."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(4000) * 2
    y = (rng.uniform(size=4000) < sigmoid(truth)).astype(int)
    fitted = platt(truth + 4, y)
    assert -fitted.shift / fitted.slope == pytest.approx(4, abs=0.2) and fitted.slope == pytest.approx(1, abs=0.1)


# ---- comparisons ----


@given(answers=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_is_the_binomial_test(answers):
    from scipy.stats import binomtest

    first, second = (np.array([pair[i] for pair in answers], bool) for i in (0, 1))
    found = mcnemar(first, second)
    apart = found.first + found.second
    assert found.first == sum(a and not b for a, b in answers)
    assert found.p == pytest.approx(binomtest(found.first, apart).pvalue if apart else 1.0)


def test_mcnemar_by_hand_and_at_size():
    """3 against 1: 0.625, as in `mcnemar`. 2000 differences overflow nothing: 1100 of them is (1099.5 - 1000) /
    (sqrt(2000) / 2) = 4.45 deviations above the middle, two-sided 8.6e-6 under the normal curve."""
    first = np.array([True] * 3 + [False] + [True] * 5)
    assert mcnemar(first, np.array([False] * 3 + [True] + [True] * 5)).p == 0.625
    first = np.arange(2000) < 1100
    assert mcnemar(first, ~first).p == pytest.approx(8.6e-6, rel=0.02)


def test_pairs_by_hand():
    """One input: Yes 3 and 1, No 2. Of the pairs apart (3, 2) is right, (1, 2) wrong: 1/2. With ties: an epsilon of 1
    calls both of these equal, wrong, and leaves (3, 1) apart, wrong; below 1 only (3, 2) is right; from 2 on all are
    equal and (3, 1) is right: 1 of 3 either way. Another input has no pair."""
    found = pairwise(np.array([3.0, 1.0, 2.0, 9.0]), np.array([1, 1, 0, 0]), ["a", "a", "a", "b"])
    assert (found.pairs, found.apart, found.strict) == (3, 2, 0.5)
    assert found.with_ties == pytest.approx(1 / 3) and found.epsilon == -1.0
    assert pairwise(np.array([1.0, 2.0]), np.array([0, 1]), ["a", "b"]).strict is None


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from("ab")), max_size=10))
def test_pairs_are_those_of_brute_force(rows):
    z, y = np.array([float(row[0]) for row in rows]), np.array([row[1] for row in rows], int)
    found = pairwise(z, y, [row[2] for row in rows])
    pairs = [(a, b) for a, b in combinations(range(len(rows)), 2) if rows[a][2] == rows[b][2]]
    apart = [(a, b) for a, b in pairs if y[a] != y[b]]
    assert (found.pairs, found.apart) == (len(pairs), len(apart))
    if apart:
        points = [0.5 if z[a] == z[b] else float((z[a] > z[b]) == (y[a] > y[b])) for a, b in apart]
        assert found.strict == pytest.approx(sum(points) / len(apart))

    def right(epsilon: float) -> int:
        called = [0 if abs(z[a] - z[b]) <= epsilon else np.sign(z[a] - z[b]) for a, b in pairs]
        return sum(int(said == np.sign(y[a] - y[b])) for said, (a, b) in zip(called, pairs, strict=True))

    if pairs:
        best = max(map(right, (-1, 0, 1, 2, 3)))
        assert found.with_ties == pytest.approx(best / len(pairs)) and right(found.epsilon) == best


def test_fleiss_kappa():
    """0.55 as derived in `fleiss_kappa`. Two people on four videos, Yes-Yes, Yes-No twice, No-No: they agree half the
    time, by chance half the time: 0. Always opposite: -1. All the same: chance explains everything."""
    assert fleiss_kappa([3, 0, 2]) == pytest.approx(0.55)
    assert fleiss_kappa([2, 1, 1, 0], raters=2) == pytest.approx(0.0)
    assert fleiss_kappa([1, 1], raters=2) == pytest.approx(-1.0)
    assert fleiss_kappa([3, 3]) is None and fleiss_kappa([]) is None
    assert fleiss_kappa([3, 0]) == 1.0
