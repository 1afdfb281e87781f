"""Distances of sets (FID, FVD) with intervals: videos are drawn anew, of every method the same ones.

Methods are taken on the inputs that all of them have: a distance depends on how many samples it is of. One without any
stays out, and where no input is shared each method is taken by itself, untested: a distance needs no pairs. Resamples
repeat videos, which takes such a distance upwards; so their spread alone is used, around the value itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Metric, PooledMetric, SetMetric
from fantasy_core.metrics.resampled import Resampled
from fantasy_core.progress import Progress
from train.evaluate_cache import Cache
from train.evaluate_compare import Measurement, empty, mismatch, pooled_name, rivals, usual_reason
from train.evaluate_inputs import Method
from train.evaluate_statistics import spread_bootstrap

Features = Mapping[str, np.ndarray]  # input -> [n, d]


@runtime_checkable
class Fast(Protocol):
    """A metric whose two distances can be had for many draws at once (fantasy_core/metrics/resampled.py)."""

    def resampled(self, videos: Sequence[np.ndarray], reference: np.ndarray) -> Resampled: ...


LACKING = "no reference: give --reference FOLDER of real videos; it is a distance between two sets"


@dataclass(frozen=True)
class OfSets:
    """{method: {column: cell}} of a metric of sets, the differences of every two methods in it, and what is to be known
    of both."""

    cells: dict[str, dict[str, dict[str, Any]]]
    tests: list[dict[str, Any]]
    warnings: list[str]


def set_cells(found: Measurement, cache: Cache, name: str, metric: SetMetric, resamples: int) -> OfSets:
    """A method that has no distance says why, and costs its own cells alone."""
    if found.reference is None:
        return OfSets(_all(found, metric, LACKING), [], [])
    if not features_of(found, found.reference, name):
        return OfSets(_all(found, metric, "no video of the reference could be measured"), [], [])
    cells, own, tests = {}, {}, []
    for method in found.methods:
        features, unfit = features_of(found, method, name), mismatch(found, method)
        if features and not unfit:
            own[method.name] = features
        else:
            cells[method.name] = {c: empty(unfit or usual_reason(found, method, name, c), 0) for c in metric.columns}
    compared = {method.name: own[method.name] for method in rivals(found) if method.name in own}
    shared = sorted(set.intersection(*map(set, compared.values()))) if compared else []
    for group in _groups(own, compared, shared):
        told = _told(found, cache, name, metric, group, resamples)
        cells |= told["cells"]
        tests += told["tests"]
    counts = {method.name: {"of": len(method.videos)} for method in found.methods}
    cells = {of: {c: cell | count for c, cell in cells[of].items()} for of, count in counts.items()}
    return OfSets(cells, tests, _warnings(metric, compared, len(shared)))


def _groups(own: Mapping[str, Features], compared: Mapping[str, Features], shared: list[str]) -> list[dict]:
    """Methods that are taken together, on the inputs that they share; each alone where they share none, and so is what
    is no rival of them: the reference itself."""
    alone = [{of: rows} for of, rows in own.items() if of not in compared or not shared]
    together = {of: {stem: rows[stem] for stem in shared} for of, rows in compared.items()}
    return [*alone, together] if shared else alone


def _warnings(metric: SetMetric, compared: Mapping[str, Features], shared: int) -> list[str]:
    """That a distance is of fewer videos than were measured, or of others than its neighbour's."""
    counts = {of: len(rows) for of, rows in compared.items()}
    shown = ", ".join(f"{of} {count}" for of, count in counts.items())
    if counts and not shared:
        best = "" if len(set(counts.values())) == 1 else "; of other numbers of videos: none is called best"
        return [
            f"{metric.name}: no input is shared by all methods, so each distance is of a method's own videos ({shown}) "
            f"and nothing is tested{best}"
        ]
    if any(count > shared for count in counts.values()):
        return [f"{metric.name}: of the {shared} inputs that all methods have; measured were: {shown}"]
    return []


def _told(
    found: Measurement, cache: Cache, name: str, metric: SetMetric, group: Mapping[str, Features], resamples: int
) -> dict[str, Any]:
    """Cells and tests of a group, from the cache or anew."""
    assert found.reference is not None
    real = features_of(found, found.reference, name)
    key = _key(found, name, group, list(real), resamples)
    told = cache.kept(key)
    if told is None:
        own = {of: list(rows.values()) for of, rows in group.items()}
        try:
            told = _resampled(metric, own, list(real.values()), resamples)
        except Exception as error:  # a metric's own fault must not cost the others, and is not kept
            return {"cells": {of: _row(metric, _failed(metric, error), 0) for of in group}, "tests": []}
        cache.keep(key, told)
    return told


def pooled_cells(found: Measurement, name: str, metric: PooledMetric) -> dict[str, dict[str, dict[str, Any]]]:
    """{method: {column: cell}} of all clips of a method judged together, without an interval."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for method in found.methods:
        rows, of = list(features_of(found, method, name).values()), len(method.videos)
        columns = {column: pooled_name(column) for column in metric.columns}
        if not rows:
            told[method.name] = {new: empty("no clip has anything to pool", of) for new in columns.values()}
            continue
        try:
            whole = metric.pool(np.concatenate(rows))
        except Exception as error:  # as above
            told[method.name] = {new: empty(_failed(metric, error), of) for new in columns.values()}
            continue
        about = {"low": None, "high": None, "n": len(rows), "of": of}
        told[method.name] = {
            new: {"mean": whole.values[column], **about, "reason": whole.reasons.get(column)}
            for column, new in columns.items()
        }
    return told


def features_of(found: Measurement, method: Method, name: str) -> Features:
    rows = {stem: found.results.get((path, name)) for stem, path in method.videos.items()}
    told = {stem: row.measured.features for stem, row in rows.items() if row and row.measured}
    return {stem: features for stem, features in told.items() if features is not None}


def _failed(metric: Metric, error: Exception) -> str:
    if isinstance(error, UserError):
        return f"{error.what}: {error.got}"
    return f"{metric.name} failed: {type(error).__name__}: {error}"


def _row(metric: SetMetric, reason: str, of: int) -> dict[str, dict[str, Any]]:
    return {column: empty(reason, of) for column in metric.columns}


def _all(found: Measurement, metric: SetMetric, reason: str) -> dict[str, dict[str, dict[str, Any]]]:
    return {method.name: _row(metric, reason, len(method.videos)) for method in found.methods}


def _key(found: Measurement, name: str, group: Mapping[str, Features], real: list[str], resamples: int) -> str:
    """Of all that the numbers depend on: the settings, and the content of every video that is in them, whose features
    are there: a reference video that failed and goes well the next time makes other numbers."""
    assert found.reference is not None
    by_name = {method.name: method for method in found.methods}
    videos = {of: [found.seen[by_name[of].videos[stem]].sha256 for stem in rows] for of, rows in group.items()}
    against = [found.seen[found.reference.videos[stem]].sha256 for stem in real]
    text = json.dumps([found.bench.settings_of(name), videos, against, resamples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _resampled(
    metric: SetMetric, own: Mapping[str, list[np.ndarray]], reference: list[np.ndarray], resamples: int
) -> dict[str, Any]:
    """Cells of every method, and tests; where a method's set is too small, the reason."""
    real = np.concatenate(reference)
    cells = {of: _cells(metric, rows, real) for of, rows in own.items()}
    names = [of for of, row in cells.items() if any(cell["n"] for cell in row.values())]
    videos = len(own[names[0]]) if names else 0
    if videos < 2 or resamples < 2:
        return {"cells": cells, "tests": []}
    main, pairs = [column for column, side in metric.better.items() if side], list(combinations(range(len(names)), 2))
    progress = Progress(f"{metric.name}, resamples", resamples + 1)
    draws = [_draws(metric, own[of], real) for of in names]

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
    """The numbers of all videos of a method, without intervals; the reason where it has too few samples."""
    try:
        whole = metric.compare(np.concatenate(own), real)
    except UserError as error:
        return _row(metric, _failed(metric, error), len(own))
    about = {"low": None, "high": None, "n": len(own), "of": len(own), "reason": None}
    return {c: {"mean": v, **about, "note": whole.reasons.get(c)} for c, v in whole.values.items()}


def _test(metric: SetMetric, column: str, first: str, second: str, told: tuple[float, float, float], n: int) -> dict:
    value, low, high = told
    better = None if not value else first if value * metric.better[column] > 0 else second
    about = {"column": column, "first": first, "second": second, "difference": value, "low": low, "high": high}
    return about | {"n": n, "above": None, "better": better, "p": None, "p_holm": None}
