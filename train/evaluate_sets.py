"""Distances of sets (FID, FVD) with intervals: videos are drawn anew, of every method the same ones.

All methods are taken on the inputs that all of them have: a distance depends on how many samples it is of. Resamples
repeat videos, which takes such a distance upwards; so their spread alone is used, around the value itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import PooledMetric, SetMetric
from fantasy_core.metrics.resampled import Resampled
from fantasy_core.progress import Progress
from train.evaluate_cache import Cache
from train.evaluate_compare import Measurement, empty, mismatch, pooled_name
from train.evaluate_inputs import Method
from train.evaluate_statistics import spread_bootstrap

Features = Mapping[str, np.ndarray]  # input -> [n, d]


@runtime_checkable
class Fast(Protocol):
    """A metric whose two distances can be had for many draws at once (fantasy_core/metrics/resampled.py)."""

    def resampled(self, videos: Sequence[np.ndarray], reference: np.ndarray) -> Resampled: ...


LACKING = "no reference: give --reference FOLDER of real videos; it is a distance between two sets"


def set_cells(
    found: Measurement, cache: Cache, name: str, metric: SetMetric, resamples: int
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[dict[str, Any]]]:
    """{method: {column: cell}} of a metric of sets, and the differences of every two methods in it."""
    if found.reference is None:
        return _all(found, metric, LACKING), []
    real = features_of(found, found.reference, name)
    reference = list(real.values())
    if not reference:
        return _all(found, metric, "no video of the reference could be measured"), []
    fit = {method.name: mismatch(found, method) for method in found.methods}
    own = {m.name: features_of(found, m, name) for m in found.methods if not fit[m.name]}
    shared = sorted(set.intersection(*(set(of) for of in own.values()))) if own else []
    if own and not shared:
        return _all(found, metric, "no input that all methods have could be measured"), []
    key = _key(found, name, own, shared, list(real), resamples)
    told = cache.kept(key)
    if told is None and own:
        told = _resampled(
            metric, {of: [rows[stem] for stem in shared] for of, rows in own.items()}, reference, resamples
        )
        cache.keep(key, told)
    told = told or {"cells": {}, "tests": []}
    cells = {method.name: told["cells"].get(method.name) for method in found.methods}
    lacking = {of: _row(metric, fit[of] or "", len(shared)) for of, row in cells.items() if row is None}
    return {of: row or lacking[of] for of, row in cells.items()}, told["tests"]


def pooled_cells(found: Measurement, name: str, metric: PooledMetric) -> dict[str, dict[str, dict[str, Any]]]:
    """{method: {column: cell}} of all clips of a method judged together, without an interval."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for method in found.methods:
        rows, of = list(features_of(found, method, name).values()), len(method.videos)
        columns = {column: pooled_name(column) for column in metric.columns}
        if not rows:
            told[method.name] = {new: empty("no clip has anything to pool", of) for new in columns.values()}
            continue
        whole, about = metric.pool(np.concatenate(rows)), {"low": None, "high": None, "n": len(rows), "of": of}
        told[method.name] = {
            new: {"mean": whole.values[column], **about, "reason": whole.reasons.get(column)}
            for column, new in columns.items()
        }
    return told


def features_of(found: Measurement, method: Method, name: str) -> Features:
    rows = {stem: found.results.get((path, name)) for stem, path in method.videos.items()}
    told = {stem: row.measured.features for stem, row in rows.items() if row and row.measured}
    return {stem: features for stem, features in told.items() if features is not None}


def _row(metric: SetMetric, reason: str, of: int) -> dict[str, dict[str, Any]]:
    return {column: empty(reason, of) for column in metric.columns}


def _all(found: Measurement, metric: SetMetric, reason: str) -> dict[str, dict[str, dict[str, Any]]]:
    return {method.name: _row(metric, reason, len(method.videos)) for method in found.methods}


def _key(
    found: Measurement, name: str, own: Mapping[str, Features], shared: list[str], real: list[str], resamples: int
) -> str:
    """Of all that the numbers depend on: the settings, and the content of every video that is in them, whose features
    are there: a reference video that failed and goes well the next time makes other numbers."""
    assert found.reference is not None
    by_name = {method.name: method for method in found.methods}
    videos = {of: [found.seen[by_name[of].videos[stem]].sha256 for stem in shared] for of in own}
    against = [found.seen[found.reference.videos[stem]].sha256 for stem in real]
    text = json.dumps([found.bench.settings_of(name), videos, against, resamples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _resampled(
    metric: SetMetric, own: Mapping[str, list[np.ndarray]], reference: list[np.ndarray], resamples: int
) -> dict[str, Any]:
    """Cells of every method, and tests; where a set is too small, the reason."""
    real, names = np.concatenate(reference), list(own)
    try:
        cells = {of: _cells(metric, own[of], real) for of in names}
    except UserError as error:
        return {"cells": {n: _row(metric, f"{error.what}: {error.got}", len(own[n])) for n in names}, "tests": []}
    videos = len(own[names[0]])
    if videos < 2 or resamples < 2:
        return {"cells": cells, "tests": []}
    main, pairs = [column for column, side in metric.better.items() if side], list(combinations(range(len(names)), 2))

    progress, draws = (
        Progress(f"{metric.name}, resamples", resamples + 1),
        [_draws(metric, own[of], real) for of in names],
    )

    def statistic(drawn: np.ndarray) -> np.ndarray:
        progress.step()
        told = np.array([of_draw(drawn) for of_draw in draws], np.float64)  # [methods, columns]
        return np.concatenate([told.reshape(-1), *(told[a] - told[b] for a, b in pairs)])

    with progress:
        spread = iter(spread_bootstrap(videos, statistic, resamples))
    for of in names:
        for column in main:
            _, cells[of][column]["low"], cells[of][column]["high"] = next(spread)
    tests = [_test(metric, c, names[a], names[b], next(spread), videos) for a, b in pairs for c in main]
    return {"cells": cells, "tests": tests}


def _draws(metric: SetMetric, own: list[np.ndarray], real: np.ndarray) -> Callable[[np.ndarray], Sequence[float]]:
    """A function from drawn videos, by number, to the columns with a better side."""
    if isinstance(metric, Fast):
        ready = metric.resampled(own, real)
        return lambda drawn: ready.distances(np.bincount(drawn, minlength=len(own)))
    main = [column for column, side in metric.better.items() if side]

    def compared(drawn: np.ndarray) -> list[float]:
        values = metric.compare(np.concatenate([own[k] for k in drawn]), real).values
        return [values[column] for column in main]

    return compared


def _cells(metric: SetMetric, own: list[np.ndarray], real: np.ndarray) -> dict[str, dict[str, Any]]:
    """The numbers of all videos of a method, without intervals."""
    whole = metric.compare(np.concatenate(own), real)
    about = {"low": None, "high": None, "n": len(own), "of": len(own), "reason": None}
    return {c: {"mean": v, **about, "note": whole.reasons.get(c)} for c, v in whole.values.items()}


def _test(metric: SetMetric, column: str, first: str, second: str, told: tuple[float, float, float], n: int) -> dict:
    value, low, high = told
    better = None if not value else first if value * metric.better[column] > 0 else second
    about = {"column": column, "first": first, "second": second, "difference": value, "low": low, "high": high}
    return about | {"n": n, "above": None, "better": better, "p": None, "p_holm": None}
