"""What an evaluation would do: its videos, its metrics tried on one of them, and how long the rest will take."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from pathlib import Path

from fantasy_core.errors import UserError, some
from fantasy_core.estimate import told_seconds
from train.evaluate_cache import Cache
from train.evaluate_inputs import Method, inputs_of, unpaired
from train.evaluate_measure import Bench, Job, known, measure, prepare
from train.evaluate_registry import METRICS, Absent, Spec, class_of
from train.evaluate_videos import SceneCuts, facts_of


def tell_plan(
    methods: list[Method], reference: Method | None, bench: Bench, absent: Mapping[str, Absent], out: Path, workers: int
) -> None:
    """Print it. One video is decoded and measured; nothing is written."""
    for method in [*methods, *([reference] if reference else [])]:
        print(f"{method.name}: {len(method.videos)} videos in {method.folder}")
    for name, stems in unpaired(methods).items():
        print(f"{name} lacks {len(stems)} of {len(inputs_of(methods))} inputs: {some(stems)}")
    for spec in bench.specs:
        print(f"{spec.name}: {' '.join(options_of(spec)) or 'no --options'}")
    for name, why in absent.items():
        print(f"{name}: {why.reason}")
    own = [path for method in methods for path in method.videos.values()]
    left = _left(own, bench, out)
    if reference:
        real = _left(list(reference.videos.values()), bench.of_sets, out)
        left = {path: left.get(path, set()) | real.get(path, set()) for path in [*left, *real]}
    print(f"{len(left)} of {len({*own, *(reference.videos.values() if reference else ())})} videos are to be measured")
    if example := next(filter(_readable, left), None):
        _tell_time(example, left, bench, max(workers, 1))


def options_of(spec: Spec) -> list[str]:
    """The settings of a metric as --options takes them: those that are given, and the others' defaults ("none" where
    nothing is the default). What --weights gives is not among them."""
    made = class_of(spec.place)
    parameters = inspect.signature(made.__init__ if inspect.isclass(made) else made).parameters.values()
    values = {one.name: one.default for one in parameters if one.default is not one.empty} | dict(spec.keywords)
    files = {METRICS[spec.name].argument} if spec.name in METRICS else set()
    return [f"{spec.name}.{key}={'(none)' if v is None else v}" for key, v in values.items() if key not in files]


def _left(videos: list[Path], bench: Bench, out: Path) -> dict[Path, set[str]]:
    """The metrics whose numbers the cache in `out` lacks, by video."""
    if not (out / "cache").is_dir():
        return {path: set(bench.kept) for path in videos}
    with Cache(out / "cache") as cache:
        seen = {path: cache.seen(path) for path in videos}
        lacking = {
            path: set(bench.kept if file is None else known(cache, path, file, bench)[1]) for path, file in seen.items()
        }
    return {path: names for path, names in lacking.items() if names}


def _readable(path: Path) -> bool:
    try:
        facts_of(path)
    except UserError:
        return False
    return True


def _tell_time(example: Path, left: Mapping[Path, set[str]], bench: Bench, processes: int) -> None:
    """Of each metric by itself, twice: the first time is that of opening it, too."""
    prepare(bench.specs, bench.protocol, bench.metrics)

    def run(name: str) -> tuple[float, str]:
        begin = time.perf_counter()
        (found,) = measure(Job(example, "", {name: ""})).values()
        took, why = time.perf_counter() - begin, found.failure
        return took, f", failed: {why['what']}: {why['got']}" if why else ""

    run(SceneCuts.name)
    decoding, _ = run(SceneCuts.name)
    print(f"tried on {example.name}: decoding it takes {decoding:.2f} s")
    total = decoding * len(left)
    for name in (name for name in bench.kept if name != SceneCuts.name):
        opening, failed = run(name)
        again, _ = run(name)
        own, opened, count = max(again - decoding, 0), max(opening - again, 0), sum(name in of for of in left.values())
        total += own * count
        print(f"  {name}: {own:.2f} s for each of {count}, after {opened:.1f} s to open it{failed}")
    many = f"{processes} processes" if processes > 1 else "one process"
    print(f"if all are like it: about {told_seconds(total / processes)} in {many} (and intervals, plots, the page)")
