"""The two distances of sets (frechet.py) for many draws of the same videos: exact, and cheap beyond the first.

A draw repeats some videos and leaves others out. What does not depend on it is computed once: products with the
reference's triangular factor, and sums of the kernel between any two videos. For 4050 samples of 2048 numbers a draw
then costs an eigenvalue problem of 2048, not two factorisations, a singular value problem and three kernel matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .frechet import CHUNK, centred, checked, factor, row_sums

Array = np.ndarray


class Resampled:
    """`videos`: features [n_i, d] of each; reference [m, d]. Raises UserError like `frechet_distance`."""

    def __init__(self, videos: Sequence[Array], reference: Array):
        rows, reference = checked(np.concatenate(videos), reference)
        self._sizes = np.array([len(one) for one in videos])
        self._video = np.repeat(np.arange(len(videos)), self._sizes)
        self._rows, self._mean = rows, reference.mean(0)
        spread = centred(reference)
        self._trace, self._norms = float((spread * spread).sum()), (rows * rows).sum(1)
        self._products = rows @ factor(spread).T  # [n, r]
        self._kernels(reference)

    def _kernels(self, reference: Array) -> None:
        """Sums of the kernel between videos [V, V], of each video with the reference [V], of each row with itself."""
        width, videos = self._rows.shape[1], len(self._sizes)
        member = np.eye(videos)[self._video]  # [n, V]
        between, cross = np.zeros((videos, videos)), np.zeros(videos)
        for k in range(0, len(self._rows), CHUNK):
            part, of = self._rows[k : k + CHUNK], member[k : k + CHUNK]
            between += of.T @ (((part @ self._rows.T / width + 1) ** 3) @ member)
            cross += of.T @ ((part @ reference.T / width + 1) ** 3).sum(1)
        own = (self._norms / width + 1) ** 3
        self._between, self._cross, self._own = between, cross, member.T @ own
        self._reference, self._within = len(reference), _within(reference)

    def distances(self, counts: Array) -> tuple[float, float]:
        """Frechet and kernel distance of the set in which video i is counts[i] times."""
        counts = np.asarray(counts, np.float64)
        return self._frechet(counts), self._kernel(counts)

    def _frechet(self, counts: Array) -> float:
        weights = counts[self._video]
        kept, total = weights > 0, weights.sum()
        mean, product = weights @ self._rows / total, weights @ self._products / total
        trace = (weights @ self._norms - total * mean @ mean) / (total - 1)
        across = np.sqrt(weights[kept] / (total - 1))[:, None] * (self._products[kept] - product)
        gram = across @ across.T if len(across) < across.shape[1] else across.T @ across
        overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        shift = mean - self._mean
        return max(float(shift @ shift + trace + self._trace - 2 * overlap), 0.0)

    def _kernel(self, counts: Array) -> float:
        total, m = counts @ self._sizes, self._reference
        within = (counts @ self._between @ counts - counts @ self._own) / (total * (total - 1))
        return float(within + self._within - 2 * counts @ self._cross / (total * m))


def _within(reference: Array) -> float:
    """Mean kernel of two different rows of a set [m, d]."""
    return float(row_sums(reference, reference, skip=True).sum() / (len(reference) * (len(reference) - 1)))
