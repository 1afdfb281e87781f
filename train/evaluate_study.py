"""A user study as Table 4: mean ratings with intervals over raters, how far raters agree, gains taken from the means.

Raters are drawn anew, each with all of their ratings; the clips are taken as they are. Relative gains come from the
very means of the table and from the same draws (in the paper, the sentence beside Table 4 does not agree with it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fantasy_core.errors import UserError, some
from fantasy_core.pair_rules import DIMENSIONS
from train.ratings import Rating, Studied, read_ratings
from train.run import read_rows

Array = np.ndarray
RESAMPLES = 4000
FEW = 10  # raters below which an interval is rough


def read_study(ratings: Path, videos: Path | None) -> list[Rating]:
    """Ratings of a CSV or, with the study_videos.jsonl that tells whose is what, of an export. Raises UserError."""
    if ratings.suffix.lower() != ".csv" and videos is None:
        raise UserError(
            "an export does not say whose videos were rated",
            got=f"{ratings.name} without --videos",
            expected="the study_videos.jsonl that train.annotate wrote beside the tasks",
            do="give it as --videos; or give a CSV rater,clip,method,mn,ls,vq",
        )
    rows = read_rows(videos, Studied) if videos else ()
    found = read_ratings(ratings, {row.video: row for row in rows})
    if not found:
        do = "export the project again when people have rated"
        raise UserError(f"{ratings} holds no rating", got="no row", expected="one rating or more", do=do)
    return found


def study_of(ratings: Sequence[Rating], ours: str | None = None) -> dict[str, Any]:
    """The numbers of Table 4. `ours`: whose gains are told; without it the method that is best over all dimensions.
    Raises UserError for a method that was not rated."""
    raters, methods, clips = (sorted({getattr(r, name) for r in ratings}) for name in ("rater", "method", "clip"))
    means, spread = _means(ratings, raters, methods)
    if ours is None:
        ours = methods[int(means.mean(1).argmax())]
    if ours not in methods:
        raise UserError("--ours was not rated", got=ours, expected=some(methods), do="correct --ours")
    return {
        "raters": len(raters),
        "clips": len(clips),
        "ratings": len(ratings),
        "methods": {m: _row(ratings, m, means[k], spread[:, k]) for k, m in enumerate(methods)},
        "best": {d: _best(methods, means[:, j]) for j, d in enumerate(DIMENSIONS)},
        "ours": ours,
        "gains": _gains(methods, ours, means, spread),
        "agreement": {d: agreement(_matrix(ratings, raters, d)) for d in DIMENSIONS},
        "warnings": _warnings(ratings, raters, methods, clips),
    }


def _means(ratings: Sequence[Rating], raters: Sequence[str], methods: Sequence[str]) -> tuple[Array, Array]:
    """Mean ratings [M, 3] and, of raters drawn anew, [B, M, 3]; NaN where a draw has no rating of a method."""
    sums, counts = np.zeros((len(raters), len(methods), 3)), np.zeros((len(raters), len(methods), 1))
    for one in ratings:
        place = raters.index(one.rater), methods.index(one.method)
        sums[place] += [getattr(one, d) for d in DIMENSIONS]
        counts[place] += 1
    drawn = np.random.default_rng(0).integers(len(raters), size=(RESAMPLES, len(raters)))
    times = np.stack([np.bincount(row, minlength=len(raters)) for row in drawn]).astype(float)  # [B, R]
    with np.errstate(invalid="ignore"):
        spread = np.tensordot(times, sums, 1) / np.tensordot(times, counts, 1)
    return sums.sum(0) / counts.sum(0), spread


def _best(methods: Sequence[str], means: Array) -> list[str]:
    return [method for method, mean in zip(methods, means, strict=True) if mean == means.max()]


def _row(ratings: Sequence[Rating], method: str, means: Array, spread: Array) -> dict[str, Any]:
    n = sum(one.method == method for one in ratings)
    return {d: {"mean": float(means[j]), **_ends(spread[:, j]), "n": n} for j, d in enumerate(DIMENSIONS)}


def _ends(draws: Array) -> dict[str, float | None]:
    """The 95 % interval of draws; None where all raters are one."""
    known = draws[np.isfinite(draws)]
    if not len(known) or np.ptp(known) == 0:
        return {"low": None, "high": None}
    low, high = np.quantile(known, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _gains(methods: Sequence[str], ours: str, means: Array, spread: Array) -> dict[str, Any]:
    """By how much of the other's mean ours is higher: over every other method, and over the strongest of them, which
    may be another one in each dimension."""
    own, others = methods.index(ours), [k for k, m in enumerate(methods) if m != ours]

    def gain(other: int, j: int) -> dict[str, Any]:
        if not means[other, j]:
            return {"gain": None, "low": None, "high": None}
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = spread[:, own, j] / spread[:, other, j] - 1
        return {"gain": float(means[own, j] / means[other, j] - 1), **_ends(draws)}

    over = {methods[k]: {d: gain(k, j) for j, d in enumerate(DIMENSIONS)} for k in others}
    strongest = {}
    for j, d in enumerate(DIMENSIONS):
        if others:
            k = max(others, key=lambda other: means[other, j])
            strongest[d] = {"method": methods[k], **gain(k, j)}
    return {"over": over, "over_strongest": strongest}


def _matrix(ratings: Sequence[Rating], raters: Sequence[str], dimension: str) -> Array:
    """[videos, raters], NaN where a rater did not rate a video."""
    videos = sorted({(one.clip, one.method) for one in ratings})
    places = {video: k for k, video in enumerate(videos)}
    table = np.full((len(videos), len(raters)), np.nan)
    for one in ratings:
        table[places[one.clip, one.method], raters.index(one.rater)] = getattr(one, dimension)
    return table


# ---- agreement ----


def agreement(table: Array) -> dict[str, Any]:
    """Of ratings [videos, raters]: ICC(2,1) of one rater and ICC(2,k) of their mean, where everybody rated everything,
    and Krippendorff's alpha, for which gaps do not matter."""
    one, mean = icc(table)
    complete = bool(np.isfinite(table).all())
    reason = None if one is not None else "all ratings are equal" if complete else "not everybody rated everything"
    reason = "two raters and two videos are needed" if min(table.shape) < 2 else reason
    return {"icc_2_1": one, "icc_2_k": mean, "alpha": krippendorff(table), "reason": reason}


def icc(table: Array) -> tuple[float | None, float | None]:
    """ICC(2,1) and ICC(2,k), two-way random effects, absolute agreement (Shrout and Fleiss 1979)."""
    n, k = table.shape
    if min(n, k) < 2 or not np.isfinite(table).all():
        return None, None
    whole = table.mean()
    rows = k * ((table.mean(1) - whole) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(0) - whole) ** 2).sum() / (k - 1)
    rest = ((table - whole) ** 2).sum() - rows * (n - 1) - columns * (k - 1)
    rest = rest / ((n - 1) * (k - 1))
    single, averaged = rows + (k - 1) * rest + k * (columns - rest) / n, rows + (columns - rest) / n
    if min(single, averaged) <= 0:
        return None, None
    return float((rows - rest) / single), float((rows - rest) / averaged)


def krippendorff(table: Array) -> float | None:
    """Alpha for interval data: 1 less the mean squared difference within videos over that of all ratings. None where
    no video has two ratings, or where all are equal."""
    pairs = [row[np.isfinite(row)] for row in table]
    pairs = [row for row in pairs if len(row) > 1]
    if not pairs:
        return None
    every = np.concatenate(pairs)
    expected = 2 * ((every - every.mean()) ** 2).sum() / (len(every) - 1)
    within = sum(2 * len(row) * ((row - row.mean()) ** 2).sum() / (len(row) - 1) for row in pairs) / len(every)
    return float(1 - within / expected) if expected else None


def _warnings(
    ratings: Sequence[Rating], raters: Sequence[str], methods: Sequence[str], clips: Sequence[str]
) -> list[str]:
    told, every = [], len(raters) * len(methods) * len(clips)
    if len(ratings) < every:
        told.append(
            f"{len(ratings)} of {every} ratings: not every rater rated every method on every clip, so means are over "
            "other raters and clips; who is strict, or which clip is hard, may favour a method"
        )
    if len(raters) < FEW:
        told.append(f"{len(raters)} raters: intervals over so few are rough")
    return told
