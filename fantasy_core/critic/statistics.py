"""What tells how good a judge is: intervals, thresholds, calibration, agreement. Numbers in, numbers out; no files.

Labels y are 0 or 1, scores x or z any finite numbers, all arrays of one length n.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959963984540054  # what a normal number exceeds, up or down, one time in twenty
STEPS, ENOUGH = 100, 1e-10  # of Newton's method, and the slope at which it is there


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927): unlike the normal one it stays in 0..1 and is no point at 0 or n.

    8 of 10: with z^2 = 3.8415 the middle is (0.8 + 0.19207) / 1.38415 = 0.71674 and the half width
    1.95996 * sqrt(0.016 + 0.0096037) / 1.38415 = 0.22657, so 0.4902 to 0.9433.
    """
    if n == 0:
        return 0.0, 1.0
    share, square = right / n, NORMAL_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


# ---- thresholds ----


@dataclass(frozen=True)
class Threshold:
    """Yes where x >= at (`above`), or where x < at (not `above`)."""

    at: float
    above: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predictions [n], 0 or 1."""
        return ((np.asarray(x, float) >= self.at) == self.above).astype(int)


def best_threshold(x: Sequence[float], y: Sequence[int]) -> Threshold:
    """The threshold with most right answers on these videos, over all cuts and both directions: exact, since equal
    values always fall on one side. Of several, `above` goes first, then the lowest cut. n must be 1 or more."""
    order = np.argsort(np.asarray(x, float), kind="stable")
    values, labels = np.asarray(x, float)[order], np.asarray(y, int)[order]
    n, yes_below = len(values), np.concatenate([[0], np.cumsum(labels)])
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(values) > 0) + 1, [n]])  # so many values are below
    no_below, yes_above = cuts - yes_below[cuts], yes_below[-1] - yes_below[cuts]
    right = no_below + yes_above  # of "Yes from the cut on"; the other direction has the rest right
    above = bool(right.max() >= (n - right).max())
    return Threshold(_between(values, int(cuts[(right if above else n - right).argmax()])), above)


def _between(values: np.ndarray, cut: int) -> float:
    """A number with `cut` of the sorted values below it and none equal: halfway, where floats have room for that."""
    if cut == 0:
        return -math.inf
    if cut == len(values):
        return math.inf
    low, high = float(values[cut - 1]), float(values[cut])
    middle = low / 2 + high / 2
    return middle if low < middle <= high else high


def folds(groups: Sequence[str], count: int) -> np.ndarray:
    """The fold [n] of every video, by the group it is in: groups are dealt in the order of their hashes, so that folds
    hold equally many groups (to one) and no group is in two."""
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    place = {group: number % count for number, group in enumerate(ordered)}
    return np.array([place[group] for group in groups], int)


def out_of_fold(x: Sequence[float], y: Sequence[int], groups: Sequence[str], count: int = 5) -> np.ndarray:
    """Predictions [n], each by a threshold that was chosen on the other folds. Needs two groups or more; where there
    are fewer than `count`, each is a fold."""
    values, labels = np.asarray(x, float), np.asarray(y, int)
    fold, predicted = folds(groups, min(count, len(set(groups)))), np.empty(len(values), int)
    for own in np.unique(fold):
        threshold = best_threshold(values[fold != own], labels[fold != own])
        predicted[fold == own] = threshold(values[fold == own])
    return predicted


# ---- how good a score is ----


def balanced_accuracy(y: np.ndarray, predicted: np.ndarray) -> float | None:
    """The mean of the shares that are right among Yes and among No; None where one of them is not there."""
    shares = [float((predicted[y == label] == label).mean()) for label in (0, 1) if (y == label).any()]
    return sum(shares) / 2 if len(shares) == 2 else None


def auroc(x: np.ndarray, y: np.ndarray) -> float | None:
    """How often a Yes scores above a No, ties counting half; None without both.

    By ranks: the sum of the ranks of the Yes, less the least that it can be, by the number of pairs.
    """
    yes, no = int(y.sum()), int(len(y) - y.sum())
    if not yes or not no:
        return None
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of ties their mean
    return float((ranks[y == 1].sum() - yes * (yes + 1) / 2) / (yes * no))


def calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean p - share of Yes| in bins of equal width of p, the mean over videos. A p on an
    edge belongs to the bin above it, 1 to the last."""
    which = np.minimum((np.asarray(p) * bins).astype(int), bins - 1)
    gaps = [abs(float((p[which == b] - y[which == b]).sum())) for b in np.unique(which)]
    return sum(gaps) / len(y)


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(z, float)))


@dataclass(frozen=True)
class Platt:
    """p = sigmoid(slope * z + shift)."""

    slope: float
    shift: float

    def __call__(self, z: np.ndarray) -> np.ndarray:
        return sigmoid(self.slope * np.asarray(z, float) + self.shift)


def platt(z: Sequence[float], y: Sequence[int]) -> Platt | None:
    """Platt's calibration: logistic regression of y on z, with targets of (N+1)/(N+2) for N Yes and 1/(N+2) for N No,
    which keep it finite where z tells them apart. None without both labels, or where all z are equal."""
    scores, labels = np.asarray(z, float), np.asarray(y, int)
    yes, no = int(labels.sum()), int(len(labels) - labels.sum())
    spread = float(scores.std()) if len(scores) else 0.0
    if not yes or not no or not spread:
        return None
    targets = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
    middle = float(scores.mean())
    slope, shift = _logistic((scores - middle) / spread, targets)
    return Platt(slope / spread, shift - slope * middle / spread)


def _logistic(x: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope and shift of the least cross-entropy, by Newton's method; steps that do not help are halved."""
    design, weights = np.stack([x, np.ones_like(x)], 1), np.zeros(2)

    def lost(w: np.ndarray) -> float:
        return float((np.logaddexp(0.0, design @ w) - targets * (design @ w)).mean())

    for _ in range(STEPS):
        p = sigmoid(design @ weights)
        slope = design.T @ (p - targets) / len(x)
        if np.abs(slope).max() < ENOUGH:
            break
        curve = (design * (p * (1 - p))[:, None]).T @ design / len(x) + 1e-12 * np.eye(2)
        step, now = np.linalg.solve(curve, slope), lost(weights)
        while lost(weights - step) > now and np.abs(step).max() > ENOUGH:
            step = step / 2
        weights = weights - step
    return float(weights[0]), float(weights[1])


# ---- comparisons ----


@dataclass(frozen=True)
class McNemar:
    """Videos that only the first judge has right, that only the second has; p of the exact two-sided test."""

    first: int
    second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Whether two judges are right equally often; `first` and `second` [n] say where each is right.

    Only videos on which they differ count, and of those either has half under chance. 3 against 1: at least as
    uneven are 0, 1, 3 and 4 of 4, (1 + 4 + 4 + 1) / 16 = 0.625. Exact in whole numbers, whatever n.
    """
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    n, few = one + other, min(one, other)
    tail = sum(math.comb(n, k) for k in range(few + 1))
    return McNemar(one, other, min(1.0, 2 * tail / 2**n))


@dataclass(frozen=True)
class Pairwise:
    """Accuracy over pairs within groups. `strict`: of the `apart` pairs with one Yes and one No, the share with the
    higher score on the Yes, ties counting half. `with_ties`: of all `pairs`, scores nearer than `epsilon` are called
    equal, which is right where labels are; the epsilon is the best one on these very pairs (arXiv 2305.14324)."""

    pairs: int
    apart: int
    strict: float | None
    with_ties: float | None
    epsilon: float | None


def pairwise(z: np.ndarray, y: np.ndarray, groups: Sequence[Hashable]) -> Pairwise:
    """How well scores z order the videos of a group, against labels y."""
    pairs = [pair for members in _members(groups) for pair in _pairs(members)]
    if not pairs:
        return Pairwise(0, 0, None, None, None)
    a, b = np.array(pairs).T
    by_score, by_label = z[a] - z[b], y[a] - y[b]
    apart = by_label != 0
    agreement = np.sign(by_score) * by_label  # 1 right, 0 a tie, -1 wrong, where labels differ
    strict = float((agreement[apart] + 1).mean() / 2) if apart.any() else None
    epsilon, right = _best_epsilon(np.abs(by_score), apart, agreement == 1)
    return Pairwise(len(pairs), int(apart.sum()), strict, right / len(pairs), epsilon)


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group, []).append(number)
    return list(found.values())


def _pairs(members: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((a, b) for place, a in enumerate(members) for b in members[:place])


def _best_epsilon(distance: np.ndarray, apart: np.ndarray, ordered: np.ndarray) -> tuple[float, int]:
    """The epsilon with most right pairs, and how many: |z_a - z_b| <= epsilon is a tie, right where labels are equal;
    beyond it a pair is right where labels differ and are `ordered` so. -1: nothing is a tie, not even equal scores."""
    order = np.argsort(distance, kind="stable")
    ties = np.concatenate([[0], np.cumsum(~apart[order])])  # right among the k nearest, called equal
    told = (apart & ordered)[order]
    rest = told.sum() - np.concatenate([[0], np.cumsum(told)])  # right among the others
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(distance[order]) > 0) + 1, [len(order)]])
    best = int(cuts[(ties + rest)[cuts].argmax()])
    return (float(distance[order][best - 1]) if best else -1.0), int((ties + rest)[best])


def fleiss_kappa(yes: Sequence[int], raters: int = 3) -> float | None:
    """Agreement of `raters` people beyond chance (Fleiss, 1971), from how many of them said Yes of each video; 1 is
    always, 0 is chance. None without videos, or where all answers are the same and chance explains everything.

    Three videos with 3, 0 and 2 Yes of 3: agreeing pairs of people 1, 1 and 1/3, mean 7/9; chance
    (5/9)^2 + (4/9)^2 = 41/81; (63 - 41) / (81 - 41) = 0.55.
    """
    if not len(yes):
        return None
    counts = np.stack([np.asarray(yes, float), raters - np.asarray(yes, float)], 1)
    agreed = float(((counts * (counts - 1)).sum(1) / (raters * (raters - 1))).mean())
    chance = float(np.square(counts.sum(0) / counts.sum()).sum())
    return (agreed - chance) / (1 - chance) if chance < 1 else None
