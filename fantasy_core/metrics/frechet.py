"""How far two sets of features are apart: the Frechet distance (FID, FVD) and an unbiased kernel distance (KID).

The Frechet distance of two Gaussians needs the trace of (S1 S2)^(1/2). That is the nuclear norm of A B^T, where A and B
are the centred features over the root of n - 1: exact and real, without the root of a matrix, and of the size of the
samples. Where samples outnumber dimensions, A and B are first replaced by their triangular factors, which leaves the
norm as it is.

The Frechet distance of samples is biased upwards, by far more than methods differ when samples are few: sets of
another size are not comparable. The kernel distance (Binkowski et al. 2018) has no such bias and may be below zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .contract import Measured

Array = np.ndarray
LEAST_SAMPLES = 2048  # below, a Frechet distance is mostly bias
CHUNK = 1024  # rows of a kernel matrix that are held at once


def frechet_distance(features: Array, reference: Array) -> float:
    """|mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) of features [n, d] and reference [m, d], covariances over
    n - 1. Raises UserError for fewer than two samples, other widths, or values that are not finite."""
    features, reference = checked(features, reference)
    a, b = centred(features), centred(reference)
    shift = features.mean(0) - reference.mean(0)
    overlap = np.linalg.svd(factor(a) @ factor(b).T, compute_uv=False).sum()
    distance = shift @ shift + (a * a).sum() + (b * b).sum() - 2 * overlap
    return max(float(distance), 0.0)  # rounding alone takes it below zero


def centred(features: Array) -> Array:
    """A [n, d] with A^T A the covariance."""
    return (features - features.mean(0)) / math.sqrt(len(features) - 1)


def factor(a: Array) -> Array:
    """A matrix of at most d rows with the same A^T A: A itself, or its triangular factor."""
    return np.linalg.qr(a, mode="r") if len(a) > a.shape[1] else a


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased estimate, and its standard error (jackknife over both sets), None for sets of fewer than three."""

    value: float
    error: float | None


def kernel_distance(features: Array, reference: Array) -> KernelDistance:
    """Squared maximum mean discrepancy under (x.y / d + 1)^3, from all pairs of features [n, d] and reference [m, d].

    Its expectation is that of KID over subsets, its variance less. Raises UserError like `frechet_distance`.
    """
    features, reference = checked(features, reference)
    n, m = len(features), len(reference)
    own, other = row_sums(features, features, skip=True), row_sums(reference, reference, skip=True)
    cross, across = row_sums(features, reference), row_sums(reference, features)

    def estimate(within, without, between, n, m):
        return within / (n * (n - 1)) + without / (m * (m - 1)) - 2 * between / (n * m)

    value = estimate(own.sum(), other.sum(), cross.sum(), n, m)
    if min(n, m) < 3:
        return KernelDistance(float(value), None)
    less_one = estimate(own.sum() - 2 * own, other.sum(), cross.sum() - cross, n - 1, m)
    less_other = estimate(own.sum(), other.sum() - 2 * other, across.sum() - across, n, m - 1)
    variance = (n - 1) * less_one.var() + (m - 1) * less_other.var()
    return KernelDistance(float(value), math.sqrt(variance))


def row_sums(rows: Array, columns: Array, skip: bool = False) -> Array:
    """Sum of the kernel of each row with all columns [len(rows)]; with `skip`, not with itself."""
    width = rows.shape[1]
    sums = [((rows[k : k + CHUNK] @ columns.T / width + 1) ** 3).sum(1) for k in range(0, len(rows), CHUNK)]
    own = ((rows * rows).sum(1) / width + 1) ** 3 if skip else 0.0
    return np.concatenate(sums) - own


def bias_warning(samples: int, reference: int) -> str | None:
    """What is to be said beside a Frechet distance of so few samples, None where nothing is."""
    if min(samples, reference) >= LEAST_SAMPLES:
        return None
    return (
        f"{samples} samples against {reference}: below {LEAST_SAMPLES} a Frechet distance is mostly bias; "
        "compare only sets of one size, or the kernel distance"
    )


def set_columns(distance: str, kernel: str) -> tuple[str, ...]:
    """The columns of `compared`: the two distances, the error of the second, and the sizes of the sets."""
    return distance, kernel, f"{kernel}_error", f"{distance}_samples", f"{distance}_reference"


def set_better(distance: str, kernel: str) -> dict[str, int]:
    """Which way the columns of `compared` are better: both distances down."""
    return {name: -1 if name in (distance, kernel) else 0 for name in set_columns(distance, kernel)}


def compared(distance: str, kernel: str, features: Array, reference: Array) -> Measured:
    """Both distances in the columns `set_columns`; where samples are few, that is said in `reasons` beside the number,
    which stands. Raises UserError like `frechet_distance`."""
    frechet, unbiased = frechet_distance(features, reference), kernel_distance(features, reference)
    numbers = (frechet, unbiased.value, unbiased.error, float(len(features)), float(len(reference)))
    warning = bias_warning(len(features), len(reference))
    reasons = {distance: warning} if warning else {}
    if unbiased.error is None:
        reasons[f"{kernel}_error"] = "three samples of each set are needed"
    return Measured(dict(zip(set_columns(distance, kernel), numbers, strict=True)), reasons)


def checked(features: Array, reference: Array) -> tuple[Array, Array]:
    features, reference = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    shapes = f"{list(features.shape)} and {list(reference.shape)}"
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1] or not features.shape[1]:
        do = "take both from one network with the same settings"
        raise UserError("these features cannot be compared", got=shapes, expected="[n, d] and [m, d]", do=do)
    if min(len(features), len(reference)) < 2:
        do = "bring more videos, or longer ones; a reference is a folder of real videos"
        raise UserError(
            "too few samples for a distance of sets", got=shapes, expected="two of each, better 2048", do=do
        )
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        do = "measure again; damaged weights give such features"
        raise UserError("features with NaN or infinite values", got=shapes, expected="finite numbers", do=do)
    return features, reference
