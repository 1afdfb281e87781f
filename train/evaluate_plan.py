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
from train.evaluate_registry import Absent, Spec, class_of
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
        print(f"{spec.name}: --options {options_of(spec) or 'none'}")
    for name, why in absent.items():
        print(f"{name}: {why.reason}")
    videos = [path for method in methods for path in method.videos.values()]
    left = _left(videos, bench, out)
    print(f"{len(left)} of {len(videos)} videos are still to be measured")
    if example := next(filter(_readable, left), None):
        _tell_time(example, len(left), bench, max(workers, 1))


def options_of(spec: Spec) -> str:
    """The settings of a metric as --options takes them: those that are given, and the others' defaults."""
    made = class_of(spec.place)
    parameters = inspect.signature(made.__init__ if inspect.isclass(made) else made).parameters.values()
    values = {one.name: one.default for one in parameters if one.default is not one.empty} | dict(spec.keywords)
    return ", ".join(f"{name}={'' if value is None else value}" for name, value in values.items())


def _left(videos: list[Path], bench: Bench, out: Path) -> list[Path]:
    """Those of which the cache in `out` lacks a number."""
    if not (out / "cache").is_dir():
        return videos
    with Cache(out / "cache") as cache:
        seen = {path: cache.seen(path) for path in videos}
        return [path for path, file in seen.items() if file is None or known(cache, path, file, bench)[1]]


def _readable(path: Path) -> bool:
    try:
        facts_of(path)
    except UserError:
        return False
    return True


def _tell_time(example: Path, left: int, bench: Bench, processes: int) -> None:
    """Of each metric by itself, twice: the first time is that of opening it, too."""
    prepare(bench.specs, bench.protocol, bench.metrics)

    def run(*names: str) -> tuple[float, str]:
        begin = time.perf_counter()
        found = measure(Job(example, "", dict.fromkeys(names, "")))
        failed = next((one.failure for one in found.values() if one.failure), None)
        return time.perf_counter() - begin, f", failed: {failed['what']}: {failed['got']}" if failed else ""

    run(SceneCuts.name)
    decoding, _ = run(SceneCuts.name)
    print(f"tried on {example.name}: decoding it takes {decoding:.2f} s")
    total = decoding
    for name in bench.kept:
        if name != SceneCuts.name:
            opening, failed = run(name)
            again, _ = run(name)
            total += max(again - decoding, 0)
            print(
                f"  {name}: {max(again - decoding, 0):.2f} s, after {max(opening - again, 0):.1f} s to open it{failed}"
            )
    many, rest = f"{processes} processes" if processes > 1 else "one process", left * total / processes
    print(f"{left} videos like it: about {told_seconds(rest)} in {many} (and intervals, plots, the page)")
