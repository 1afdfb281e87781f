"""Every metric of every video, in processes of their own: decoded once, what is known already not again.

One video that cannot be read, or one metric that fails on it, costs that cell alone.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from fantasy_core.media import check_file
from fantasy_core.metrics.contract import Measured, Metric, Opens, ReadsBeside, SetMetric, Unfit, Video
from fantasy_core.progress import Progress
from train.evaluate_cache import Cache, Failure, Found, Seen, failure_of, settings_hash, state_of, told
from train.evaluate_registry import Spec
from train.evaluate_videos import Protocol, SceneCuts, decoded, facts_of
from train.workers import WorkerKilled, each

LIBRARIES = ("numpy", "torch", "av", "librosa", "pillow", "mediapipe", "onnxruntime", "opencv-contrib-python")


@dataclass(frozen=True)
class Job:
    """A video, and the metrics that are still to be measured on it, each with the hash of all else its number is of."""

    path: Path
    sha256: str
    metrics: Mapping[str, str]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Bench:
    """The metrics by name, their hashes of settings together with the protocol, and what never is kept."""

    specs: list[Spec]
    metrics: Mapping[str, Metric]
    protocol: Protocol

    def settings_of(self, name: str, path: Path | None = None) -> str:
        """The hash of all that a metric's numbers depend on, beside the content of the video; for the video at `path`
        with what the metric reads beside it."""
        about = {**self.metrics[name].settings, "metric": name, **self.protocol.about}
        return settings_hash(about | (self.beside(name, path) if path else {}))

    def beside(self, name: str, path: Path) -> dict[str, Any]:
        """What a metric reads beside a video: the hash of a mask that is given."""
        metric = self.metrics[name]
        return dict(metric.beside(path)) if isinstance(metric, ReadsBeside) else {}

    @property
    def kept(self) -> list[str]:
        """Names of the metrics that depend on a video's content alone."""
        by_name = {spec.name for spec in self.specs if spec.by_name}
        return [name for name in self.metrics if name not in by_name]

    def only(self, names: Collection[str]) -> Bench:
        """The same with some of the metrics."""
        specs = [spec for spec in self.specs if spec.name in names]
        return Bench(specs, {n: m for n, m in self.metrics.items() if n in names}, self.protocol)

    @property
    def of_sets(self) -> Bench:
        """The same with the metrics of sets, which are all that a reference is measured by."""
        return self.only({name for name, metric in self.metrics.items() if isinstance(metric, SetMetric)})


Results = dict[tuple[Path, str], Found]  # by video and metric


def see_all(cache: Cache, paths: Sequence[Path], workers: int) -> dict[Path, Seen]:
    """Hash and facts of every file; unchanged ones are not opened."""
    found = {path: cache.seen(path) for path in paths}
    new = {path: state_of(path) for path, seen in found.items() if seen is None}
    with Progress("files", len(new), shown=bool(new)) as progress:
        for path, seen in each(see, new, workers if len(new) > 1 else 0):
            if isinstance(seen, WorkerKilled):
                seen = Seen("", None, told(seen))
            found[path] = seen
            cache.see(path, seen, new[path])
            progress.step(path.name)
    return {path: seen for path, seen in found.items() if seen is not None}


def see(path: Path) -> Seen:
    """Raises nothing for a file that cannot be read: that is a fact too."""
    digest = ""
    try:
        digest = sha256(check_file(path, "video"))
        return Seen(digest, facts_of(path), None)
    except UserError as error:
        return Seen(digest, None, told(error))
    except (OSError, MemoryError) as error:  # of the machine: nothing is known of the file
        return Seen("", None, failure_of(error, f"cannot read {path}", "a file that can be read", "try it again"))


def measure_all(cache: Cache, seen: Mapping[Path, Seen], bench: Bench, workers: int) -> Results:
    """What every metric says of every video that can be read."""
    found: Results = {}
    jobs = []
    for path, file in seen.items():
        have, missing = known(cache, path, file, bench)
        found |= {(path, name): one for name, one in have.items()}
        if missing:
            jobs.append(Job(path, file.sha256, missing))
    specs = [spec for spec in bench.specs if spec.name in bench.kept]
    given = (specs, bench.protocol, None if workers else bench.metrics)
    with Progress("videos", len(jobs), shown=bool(jobs)) as progress:
        for job, rows in each(measure, _once(jobs), workers, prepare=prepare, given=given, in_order=False):
            died = Found(None, told(rows), versions(), lasting=False) if isinstance(rows, UserError) else None
            for name, key in job.metrics.items():
                found[job.path, name] = one = died or rows[name]
                cache.put(job.sha256, name, key, one)
            progress.step(job.path.name)
    _copies(found, jobs)
    return found | _by_name(seen, bench)


def known(cache: Cache, path: Path, file: Seen, bench: Bench) -> tuple[dict[str, Found], dict[str, str]]:
    """What the cache has of a video, by metric, and the hashes of settings of what is still to be measured."""
    if file.facts is None:
        return {}, {}
    keys = {name: bench.settings_of(name, path) for name in bench.kept}
    have = {name: one for name, key in keys.items() if (one := cache.get(file.sha256, name, key)) is not None}
    return have, {name: key for name, key in keys.items() if name not in have}


def unopened(found: Results) -> dict[str, Failure]:
    """Why metrics could not be opened, by name: those that have said nothing of any video, of an older run either."""
    spoken = {name for (_, name), one in found.items() if one.measured}
    return {
        name: one.failure for (_, name), one in found.items() if one.of_metric and one.failure and name not in spoken
    }


def _once(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that differ: a file that comes twice, with the same beside it, is measured once."""
    return list({(job.sha256, *job.metrics.items()): job for job in reversed(jobs)}.values())


def _copies(found: Results, jobs: Sequence[Job]) -> None:
    first = {(job.sha256, *one): job.path for job in _once(jobs) for one in job.metrics.items()}
    for job in jobs:
        for name, key in job.metrics.items():
            found.setdefault((job.path, name), found[first[job.sha256, name, key], name])


def _by_name(seen: Mapping[Path, Seen], bench: Bench) -> Results:
    """Metrics that look at names: no frame is decoded for them."""
    found: Results = {}
    for name, metric in bench.metrics.items():
        if name not in bench.kept:
            if among := getattr(metric, "among", None):
                among(seen)
            for path in seen:
                nothing = Video(path, np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0))
                found[path, name] = _measured(metric, nothing)
    return found


# ---- in a worker ----

_PREPARED: dict[str, Any] = {}


def prepare(specs: Sequence[Spec], protocol: Protocol, built: Mapping[str, Metric] | None) -> None:
    """The metrics of this process are built when they are first needed, if they are not `built` in it already."""
    _PREPARED.clear()
    own = built or {SceneCuts.name: SceneCuts()}
    _PREPARED.update(protocol=protocol, specs={spec.name: spec for spec in specs}, metrics=dict(own), opened={})


def measure(job: Job) -> dict[str, Found]:
    """What the metrics of a job say of its video, or how they fail."""
    closed = {name: found for name in job.metrics if (found := _opened(name))}
    ready = [name for name in job.metrics if name not in closed]
    return closed | (_measured_by(ready, job) if ready else {})


def _opened(name: str) -> Found | None:
    """Opens a metric, once in this process; how that failed, each time it is asked."""
    if name not in _PREPARED["opened"]:
        _PREPARED["opened"][name] = _opening(name)
    return _PREPARED["opened"][name]


def _opening(name: str) -> Found | None:
    metrics = _PREPARED["metrics"]
    try:
        if name not in metrics:
            metrics[name] = _PREPARED["specs"][name].build()
        if isinstance(metrics[name], Opens):
            metrics[name].open()
    except Exception as error:  # of a library, or of a device that is full
        do = "check the metric's settings and files, and that nothing else fills the device"
        found = _failed(error, f"{name} cannot be opened", "room for its networks", do)
        return replace(found, lasting=False, of_metric=True)
    return None


def _measured_by(names: Sequence[str], job: Job) -> dict[str, Found]:
    try:
        video = decoded(job.path, _PREPARED["protocol"])
    except Exception as error:  # memory, or a decoder's own
        found = _failed(error, f"cannot decode {job.path}", "frames that fit into memory", "try again, or convert it")
        return dict.fromkeys(names, found)
    return {name: _measured(_PREPARED["metrics"][name], video) for name in names}


def _measured(metric: Metric, video: Video) -> Found:
    try:
        return Found(_checked(metric.measure(video)), None, versions())
    except Exception as error:  # a metric's own fault must not cost the others
        do = "try it again; if it stays, it is a fault of the metric: report it with this video"
        return _failed(error, f"{metric.name} failed", "a number or a reason", do)


def _failed(error: Exception, what: str, expected: str, do: str) -> Found:
    """A video that is unfit stays so; all else may have been the machine's. what, expected, do: of an error that is no
    UserError."""
    return Found(None, failure_of(error, what, expected, do), versions(), lasting=isinstance(error, Unfit))


def _checked(measured: Measured) -> Measured:
    """Numbers that are none become None with a reason: JSON and tables hold no NaN."""
    values, reasons = {}, dict(measured.reasons)
    for column, value in measured.values.items():
        finite = value is not None and bool(np.isfinite(value))
        values[column] = float(value) if finite else None
        if value is not None and not finite:
            reasons[column] = f"the metric gave {value}"
    return Measured(values, reasons, measured.features)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of the libraries that numbers may depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
