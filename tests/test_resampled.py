"""Distances of many draws against the distances of sets that really hold the repeated videos."""

from __future__ import annotations

import numpy as np
import pytest

from fantasy_core.errors import UserError
from fantasy_core.metrics.frechet import frechet_distance, kernel_distance
from fantasy_core.metrics.resampled import Resampled


@pytest.mark.parametrize("width, each, reference", [(6, 5, 40), (64, 3, 20), (64, 30, 400), (3, 1, 2)])
def test_a_draw_is_the_set_it_stands_for(width, each, reference):
    """More samples than dimensions and fewer, on either side; videos of unequal length."""
    rng = np.random.default_rng(width)
    videos = [rng.normal(k / 3, 1, (each + k % 2, width)) for k in range(6)]
    real = rng.normal(0.5, 2, (reference, width))
    ready = Resampled(videos, real)
    for _ in range(5):
        drawn = rng.integers(6, size=6)
        rows = np.concatenate([videos[k] for k in drawn])
        frechet, kernel = ready.distances(np.bincount(drawn, minlength=6))
        assert frechet == pytest.approx(frechet_distance(rows, real), rel=1e-6, abs=1e-6)
        assert kernel == pytest.approx(kernel_distance(rows, real).value, rel=1e-9, abs=1e-9)


def test_one_is_refused():
    with pytest.raises(UserError, match="too few samples"):
        Resampled([np.zeros((1, 4))], np.zeros((5, 4)))
