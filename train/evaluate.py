"""Videos of several methods on the same inputs: the paper's tables, with intervals, tests and a page to look at.

    python -m train.evaluate --method base=runs/base ours=runs/ours --metrics sync fid --reference real_videos \\
        --weights sync=syncnet_v2.model fid=pt_inception.pth --fps 25 --size 512 --out runs/evaluation
    python -m train.evaluate --ratings study.csv --out runs/study                  # Table 4, of a user study alone

Files of one stem in the methods' folders are answers to one input. Written are table.md, evaluation.json (every number
with the settings, hashes and versions it depends on), metrics.csv (a line for each), plots/, report.html (one page, to
be opened as it is) and cache/, from which the same command goes on after a kill, and by which unchanged videos are not
measured again. All but the cache is of the last command: what an earlier one left in the folder is removed. A metric
without its weights, or one that fails on a video, costs its own cells alone, and they say why. With --strict a video
that cannot be read, and a metric without a number of any method, end the command with code 2 after all is written.
--dry-run lists the settings of the metrics, tries them on one video and says how long the rest will take.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from fantasy_core.media.files import replacing
from fantasy_core.metrics.contract import PooledMetric, SetMetric
from train.evaluate_cache import Cache, Failure, failure_of
from train.evaluate_compare import (
    Measurement,
    best_of,
    cells_of,
    errors_of,
    mixed_inputs,
    mixed_methods,
    rivals,
    settings_of,
    table_columns,
    tests_of,
    warnings_of,
)
from train.evaluate_gate import gate_picture
from train.evaluate_inputs import Method, inputs_of, read_methods, read_reference, unpaired
from train.evaluate_leftovers import remove_leftovers
from train.evaluate_measure import Bench, measure_all, see_all, unopened
from train.evaluate_plan import tell_plan
from train.evaluate_plots import plot_columns, plotted
from train.evaluate_registry import METRICS, Absent, Spec, Wanted, columns_of, wanted
from train.evaluate_sets import pooled_cells, set_cells
from train.evaluate_study import read_study, study_of
from train.evaluate_study_text import study_markdown
from train.evaluate_table import caption, markdown
from train.evaluate_videos import Protocol, SceneCuts, parse_size
from train.report_page import write_page
from train.run import as_json, command, made_from, setting, write_json


@dataclass(frozen=True)
class EvaluateSettings:
    out: Path = setting(help="folder for the tables, the page and the cache")
    method: tuple[str, ...] = setting((), "NAME=FOLDER of videos, one for each method")
    reference: Path | None = setting(None, "folder of real videos, for FID and FVD")
    metrics: tuple[str, ...] = setting((), ", ".join(METRICS) + "; or package.module:Class of your own")
    weights: tuple[str, ...] = setting((), "NAME=PATH: the file of a metric's weights")
    options: tuple[str, ...] = setting((), "NAME.key=value: other settings of a metric, as fid.every=4")
    fps: float | None = setting(None, "bring all videos to this rate, by the times frames are shown at", least=1.0)
    size: str | None = setting(None, "bring all to this size: 512 (short side), or 832x480 (filled, then cut)")
    ratings: Path | None = setting(None, "a user study: CSV rater,clip,method,mn,ls,vq, or Label Studio's JSON export")
    videos: Path | None = setting(None, "study_videos.jsonl of the study; for an export")
    ours: str | None = setting(None, "whose gains in the study are told (the best over all dimensions)")
    gate: Path | None = setting(None, "a gate file, whose heat map goes into the page")
    embed: bool = setting(False, "put small videos into the page, so that it can be sent alone")
    resamples: int = setting(20, "of videos, for the intervals of FID and FVD; 0: none", least=0)
    workers: int = setting(1, "processes that measure; 0: this one", least=0)
    strict: bool = setting(False, "code 2 when a video cannot be read or a metric has no number at all")


def run(settings: EvaluateSettings, dry_run: bool) -> None:
    if not settings.method and settings.ratings is None:
        do = "give --method NAME=FOLDER for videos, --ratings FILE for a user study, or both"
        raise UserError("there is nothing to evaluate", got="no --method, no --ratings", expected="one of them", do=do)
    if settings.method and not settings.metrics:
        do = "give --metrics lips dynamics, which need no weights of the paper's, or others of README's table"
        raise UserError("no metric was asked for", got="no --metrics", expected="one or more", do=do)
    study = study_of(read_study(settings.ratings, settings.videos), settings.ours) if settings.ratings else None
    gate = gate_picture(settings.gate) if settings.gate else None
    result = evaluate(settings, dry_run) if settings.method else None
    if dry_run:
        print(f"dry run: nothing was written to {settings.out}")
        return
    write(result, study, settings)
    write_page(settings.out / "report.html", result, study, gate=gate, embed=settings.embed)
    tell(result, study, settings)


def evaluate(settings: EvaluateSettings, dry_run: bool) -> dict[str, Any] | None:
    """The videos: what evaluation.json says of them; only the plan on a dry run."""
    protocol = Protocol(settings.fps, settings.size and "x".join(map(str, parse_size(settings.size))))
    methods = read_methods(settings.method, settings.out)
    reference = read_reference(settings.reference, methods, settings.out) if settings.reference else None
    asked = wanted(settings.metrics, settings.weights, settings.options)
    bench, absent = build(asked, protocol)
    if dry_run:
        tell_plan(methods, reference, bench, absent, settings.out, settings.workers)
        return None
    with Cache(settings.out / "cache") as cache:
        found = measured(cache, methods, reference, bench, absent, settings.workers)
        return result_of(found, cache, settings)


def build(asked: Wanted, protocol: Protocol) -> tuple[Bench, dict[str, Absent]]:
    """The metrics, and those that cannot be built: weights of another model, a device that is not there, a fault."""
    metrics, absent, specs = {SceneCuts.name: SceneCuts()}, dict(asked.absent), []
    for spec in asked.specs:
        try:
            metrics[spec.name] = spec.build()
            specs.append(spec)
        except Exception as error:  # a constructor's own must not cost the other metrics
            absent[spec.name] = absence(
                spec, failure_of(error, f"{spec.name} cannot be built", "a metric", "check its settings")
            )
    columns = [column for metric in metrics.values() for column in metric.columns]
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        do = "measure them in evaluations of their own"
        raise UserError("two metrics give the same columns", got=some(twice), expected="names of their own", do=do)
    return Bench(specs, metrics, protocol), absent


def absence(spec: Spec, failure: Failure) -> Absent:
    return Absent(f"cannot be measured: {failure['what']}: {failure['got']}", columns_of(spec))


def measured(
    cache: Cache, methods: list[Method], reference: Method | None, bench: Bench, absent: dict[str, Absent], workers: int
) -> Measurement:
    """Everything that has to be read or measured, from the cache or anew."""
    own = [path for method in methods for path in method.videos.values()]
    real = list(reference.videos.values()) if reference else []
    seen = see_all(cache, list(dict.fromkeys([*own, *real])), workers)
    results = measure_all(cache, {path: seen[path] for path in own}, bench, workers)
    results |= measure_all(cache, {path: seen[path] for path in real}, bench.of_sets, workers)
    closed = unopened(results)
    absent |= {spec.name: absence(spec, closed[spec.name]) for spec in bench.specs if spec.name in closed}
    return Measurement(methods, reference, seen, results, bench.only(bench.metrics.keys() - closed), absent)


def result_of(found: Measurement, cache: Cache, settings: EvaluateSettings) -> dict[str, Any]:
    """evaluation.json: all that the tables and the page show, and what it depends on."""
    columns, mixed = table_columns(found), bool(mixed_inputs(found) or mixed_methods(found))
    cells, tests = cells_of(found, columns), [] if mixed else tests_of(found, columns)
    of_sets = []
    for name, metric in found.bench.metrics.items():
        if isinstance(metric, SetMetric):
            told = set_cells(found, cache, name, metric, settings.resamples)
            of_set, of_sets = told.cells, [*of_sets, *told.warnings]
            tests += [] if mixed else told.tests
        elif isinstance(metric, PooledMetric):
            of_set = pooled_cells(found, name, metric)
        else:
            continue
        for method, row in of_set.items():
            cells[method] |= row
    cells = {method: {column: row[column] for column in columns} for method, row in cells.items()}
    errors = errors_of(found)
    notes = {f"{c}: {row[c]['note']}": None for row in cells.values() for c in row if row[c].get("note")}
    kinds = Counter(kind for method in found.methods for kind in found.kinds(method))
    reference = found.reference and {"folder": str(found.reference.folder), "videos": len(found.reference.videos)}
    return {
        "settings": as_json(vars(settings)),
        "protocol": found.bench.protocol.about,
        "methods": {m.name: {"folder": str(m.folder), "videos": len(m.videos)} for m in found.methods},
        "reference": reference,
        "inputs": inputs_of(found.methods),
        "unpaired": unpaired(found.methods),
        "kinds": dict(kinds.most_common()),
        "columns": columns,
        "metrics": {n: settings_of(m) for n, m in found.bench.metrics.items()},
        "cells": cells,
        "best": {} if mixed else best_of(cells, columns, [method.name for method in rivals(found)]),
        "tests": tests,
        "videos": {method.name: videos_of(found, method) for method in found.methods},
        "errors": errors,
        "warnings": [*warnings_of(found, cells, columns, errors), *of_sets, *notes],
        "versions": versions_of(found),
    }


def videos_of(found: Measurement, method: Method) -> dict[str, dict[str, Any]]:
    """By input: the file, what it is, every number or why there is none, and the hashes of masks that are given."""
    told = {}
    for stem, path in method.videos.items():
        seen, values, reasons = found.seen[path], {}, {}
        for name in found.bench.metrics:
            row = found.results.get((path, name))
            if row and row.measured:
                values |= row.measured.values
                reasons |= row.measured.reasons
        facts = vars(seen.facts) if seen.facts else None
        told[stem] = {"path": str(path), "sha256": seen.sha256, "facts": facts, "values": values, "reasons": reasons}
        if besides := {name: files for name in found.bench.metrics if (files := found.bench.beside(name, path))}:
            told[stem]["beside"] = besides
    return told


def versions_of(found: Measurement) -> list[dict[str, str]]:
    """Each set of library versions that numbers were measured with; more than one where the cache is older."""
    every = {tuple(sorted(row.versions.items())) for row in found.results.values() if row.versions}
    return [dict(one) for one in sorted(every)]


def write(result: dict[str, Any] | None, study: dict[str, Any] | None, settings: EvaluateSettings) -> None:
    old = remove_leftovers(settings.out, bool(result), bool(study), plotted(result) if result else ())
    origin = made_from({"ratings": settings.ratings}) if settings.ratings else {}
    told = (result or {}) | ({"study": study, "made_from": origin} if study else {})
    write_json(settings.out / "evaluation.json", told)
    texts = {"table.md": markdown(result) if result else None, "study.md": study_markdown(study) if study else None}
    for name, text in texts.items():
        if text:
            with replacing(settings.out / name) as beside:
                beside.write_text(text, "utf-8")
    if result:
        write_values(result, settings.out / "metrics.csv")
        plot_columns(result, settings.out / "plots")
    if old:
        shown = some(str(path.relative_to(settings.out)) for path in old)
        print(f"removed, for it was of an earlier command: {shown}")


def write_values(result: dict[str, Any], path: Path) -> None:
    """Every number of every video, a line each: what `train.critic eval --metrics` reads, and spreadsheets. `video` is
    the stem, which files of several methods share; `sha256` tells which of them it is."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("video", "method", "metric", "value", "sha256"))
        for method, videos in result["videos"].items():
            for stem, told in videos.items():
                numbers, sha = told["values"].items(), told["sha256"]
                rows.writerows((stem, method, column, repr(v), sha) for column, v in numbers if v is not None)


def tell(result: dict[str, Any] | None, study: dict[str, Any] | None, settings: EvaluateSettings) -> None:
    """Raises UserError under --strict for videos and metrics that failed as a whole."""
    if result:
        print(caption(result))
    for warning in [*(result["warnings"] if result else []), *(study["warnings"] if study else [])]:
        print(f"warning: {warning}")
    print(
        f"{settings.out}: {'table.md, metrics.csv, ' * bool(result)}{'study.md, ' * bool(study)}"
        "evaluation.json, report.html"
    )
    if result is None:
        return
    lost = [f"{e['path']} ({e['got']})" for e in result["errors"] if e["metric"] is None]
    lost += [f"{name}: {why}" for name, why in without_numbers(result).items()]
    if settings.strict and lost:
        raise UserError(
            f"{len(lost)} videos or metrics could not be measured",
            got="\n            ".join(lost),
            expected="whole videos, and a number of every metric (--strict)",
            do="mend these, or leave out --strict: the tables are written either way",
        )


def without_numbers(result: dict[str, Any]) -> dict[str, str]:
    """Why metrics have no number of any method in any column, by metric."""
    told: dict[str, list[dict[str, Any]]] = {}
    for column, about in result["columns"].items():
        told.setdefault(about["metric"], []).extend(row[column] for row in result["cells"].values())
    empty = {name: cells for name, cells in told.items() if all(cell["mean"] is None for cell in cells)}
    return {
        name: next((cell["reason"] for cell in cells if cell["reason"]), "not said") for name, cells in empty.items()
    }


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(EvaluateSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
