"""Distances of sets: closed forms on samples with exact moments, others' formulas, and no bias where none may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.metrics.frechet import (
    bias_warning,
    compared,
    frechet_distance,
    kernel_distance,
    set_better,
    set_columns,
)


def exactly(mean: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Samples [2d, d] with this mean and this diagonal covariance over n - 1: +-c e_k has variance 2 c^2 / (2d - 1)."""
    d = len(mean)
    steps = np.diag(np.sqrt(variances * (2 * d - 1) / 2))
    return np.concatenate([steps, -steps]) + mean


@given(st.integers(1, 12), st.integers(0, 99))
def test_closed_form_of_diagonal_gaussians(d, seed):
    """|mu1 - mu2|^2 + sum (s1 - s2)^2, as tr (S1 S2)^(1/2) of diagonal matrices is the sum of s1 s2."""
    rng = np.random.default_rng(seed)
    (m1, m2), (s1, s2) = rng.normal(size=(2, d)), rng.uniform(0.1, 3, (2, d))
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(exactly(m1, s1**2), exactly(m2, s2**2)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n,m,d", [(5, 7, 16), (64, 80, 300), (200, 9, 16), (400, 300, 32)])
def test_equals_the_root_of_the_matrix(n, m, d):
    """scipy's sqrtm of S1 S2 where it is regular, and the roots of its eigenvalues everywhere: few and many samples."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(0.3, 1.4, (m, d)) @ rng.normal(size=(d, d)) / d**0.5
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    rest = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2)
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    found = frechet_distance(x, y)
    assert found == pytest.approx(rest - 2 * roots, rel=1e-6)
    if min(n, m) > d:
        assert found == pytest.approx(rest - 2 * np.trace(sqrtm(c1 @ c2)).real, rel=1e-6)


def test_equals_torchmetrics():
    """Its formula by eigenvalues, in double precision."""
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 256)), rng.normal(0.2, 1.3, (80, 256))
    moments = [torch.from_numpy(part) for z in (x, y) for part in (z.mean(0), np.cov(z, rowvar=False))]
    assert frechet_distance(x, y) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_and_order_does_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 50)), rng.normal(1, 2, (30, 50))
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)


def test_kernel_distance_by_hand():
    """x = {0, 1}, y = {2, 3}, d = 1: within x one pair (0*1 + 1)^3 = 1; within y (6 + 1)^3 = 343; between 1, 1, 27, 64,
    mean 23.25: 1 + 343 - 46.5 = 297.5. Two samples have no jackknife that is worth the name."""
    found = kernel_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
    assert found.value == pytest.approx(297.5) and found.error is None


def test_kernel_distance_has_no_bias_and_knows_its_error():
    """600 pairs of sets of one distribution: mean 0 within three standard errors, though the Frechet distance of the
    same sets is far from 0; the stated error is of the size of the spread, and not below (two sets of one distribution
    are the case where a jackknife says too much)."""
    rng = np.random.default_rng(0)
    found = [kernel_distance(*rng.normal(size=(2, 24, 6))) for _ in range(600)]
    values = np.array([each.value for each in found])
    spread = values.std()
    assert abs(values.mean()) < 3 * spread / 600**0.5
    assert 0.8 < np.mean([each.error for each in found]) / spread < 2.5
    assert frechet_distance(*rng.normal(size=(2, 24, 6))) > 0.3


def test_stated_error_is_that_of_many_draws():
    """Two distributions: the jackknife's error, averaged, is the spread over 300 draws to a fifth."""
    rng = np.random.default_rng(1)
    found = [kernel_distance(rng.normal(size=(60, 4)), rng.normal(0.7, 1, (50, 4))) for _ in range(300)]
    assert np.mean([each.error for each in found]) == pytest.approx(np.std([each.value for each in found]), rel=0.2)
    x, y = rng.normal(size=(20, 4)), rng.normal(0.7, 1, (30, 4))
    assert kernel_distance(x, y).error == pytest.approx(kernel_distance(y, x).error, rel=1e-9)


def test_columns_say_how_many_samples_there_were():
    rng = np.random.default_rng(0)
    found = compared("fid", "kid", rng.normal(size=(9, 3)), rng.normal(size=(8, 3)))
    assert tuple(found.values) == set_columns("fid", "kid")
    assert found.values["fid_samples"] == 9 and found.values["fid_reference"] == 8
    assert "9 samples against 8" in found.reasons["fid"] and found.values["fid"] is not None
    assert set_better("fid", "kid") == {"fid": -1, "kid": -1, "kid_error": 0, "fid_samples": 0, "fid_reference": 0}
    few = compared("fid", "kid", rng.normal(size=(2, 3)), rng.normal(size=(8, 3)))
    assert few.values["kid_error"] is None and few.reasons["kid_error"]


def test_warning_ends_at_2048():
    assert bias_warning(2048, 5000) is None and bias_warning(5000, 2047)


@pytest.mark.parametrize(
    "x,y", [((1, 4), (9, 4)), ((9, 4), (1, 4)), ((9, 4), (9, 5)), ((4,), (4,)), ((0, 4), (9, 4)), ((3, 0), (3, 0))]
)
def test_what_cannot_be_compared_is_refused(x, y):
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(UserError):
            distance(np.zeros(x), np.zeros(y))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
