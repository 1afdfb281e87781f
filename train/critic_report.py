"""How well judges agree with people: Table 2 of the paper, with what the paper leaves out (intervals, other measures).

Rows are single metrics (SD for mn, Sync-C for ls, IQA and AES for vq), which become judges by their best threshold, the
base model and our critic, whose z is their answer (Yes where z >= 0). All on the test split of annotations.jsonl, whose
inputs are no others' (split by input). Nothing of a model is needed here: labels, scores and metrics come from files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fantasy_core.critic.statistics import (
    Platt,
    auroc,
    balanced_accuracy,
    best_threshold,
    calibration_error,
    mcnemar,
    out_of_fold,
    pairwise,
    platt,
    sigmoid,
    wilson,
)
from fantasy_core.errors import UserError
from fantasy_core.media.files import replacing
from fantasy_core.pair_rules import DIMENSIONS
from train.annotations import Annotation, read_annotations
from train.critic_report_text import markdown
from train.run import made_from, write_json
from train.score_files import METRICS, Scores, Source, Values, read_metrics, read_scores
from train.tables import part_files

WAYS = ("fixed", "calibrated")


@dataclass(frozen=True)
class Judged:
    """Labelled videos that have a number: x and y [n] with their inputs and sources, and the `unscored`, which have
    none."""

    videos: list[str]
    x: np.ndarray
    y: np.ndarray
    inputs: list[str]
    sources: np.ndarray
    unscored: list[str]


def judged(rows: Sequence[Annotation], values: Values) -> Judged:
    scored = [row for row in rows if row.video in values]
    return Judged(
        [row.video for row in scored],
        np.array([values[row.video] for row in scored], float),
        np.array([row.label for row in scored], int),
        [row.input for row in scored],
        np.array([row.source for row in scored], str),
        [row.video for row in rows if row.video not in values],
    )


def cell(right: np.ndarray) -> dict[str, Any] | None:
    """An accuracy with its 95 % interval; None of no videos."""
    n, count = len(right), int(right.sum())
    if not n:
        return None
    low, high = wilson(count, n)
    return {"accuracy": count / n, "low": low, "high": high, "right": count, "n": n}


def make_report(
    annotations: Sequence[Annotation],
    ours: Scores,
    base: Scores | None = None,
    metrics: Mapping[str, Values] | None = None,
) -> dict[str, Any]:
    """All numbers, as JSON has them; `markdown` shows them. `metrics` by name, those of METRICS."""
    test, training = (_labelled(annotations, split) for split in ("test", "train"))
    judges = {"base": base, "ours": ours} if base else {"ours": ours}
    asked = {name: {d: Judge(test[d], training[d], z.get(d, {})) for d in DIMENSIONS} for name, z in judges.items()}
    singles = {name: judged(test[d], metrics[name]) for name, d in METRICS.items() if metrics and name in metrics}
    told = {name: {d: judge.told for d, judge in of.items()} for name, of in asked.items()}
    return {
        "test": _about(annotations, test),
        "metrics": {name: {METRICS[name]: _single(found)} for name, found in singles.items()},
        "judges": told,
        "against_base": {d: _against(asked["base"][d], asked["ours"][d]) for d in DIMENSIONS} if base else None,
        "by_source": {name: _by_source(of) for name, of in asked.items()},
        "missing": _missing(annotations, test, asked, singles, judges, metrics or {}),
    }


def _labelled(annotations: Sequence[Annotation], split: str) -> dict[str, list[Annotation]]:
    known = [row for row in annotations if row.split == split and row.label is not None]
    return {d: [row for row in known if row.dimension == d] for d in DIMENSIONS}


def _about(annotations: Sequence[Annotation], test: Mapping[str, Sequence[Annotation]]) -> dict[str, Any]:
    rows = [row for row in annotations if row.split == "test"]
    labels = {d: {"n": len(found), "yes": sum(row.label == 1 for row in found)} for d, found in test.items()}
    return {"videos": len({r.video for r in rows}), "inputs": len({r.input for r in rows}), "labels": labels}


def _single(found: Judged) -> dict[str, Any] | None:
    """A metric as a judge, by its best threshold: chosen on the very videos it is judged on (the paper, as it reads),
    and on other folds of inputs."""
    if not len(found.y):
        return None
    best = best_threshold(found.x, found.y)
    told = {
        "in_sample": cell(best(found.x) == found.y),
        "threshold": best.at if math.isfinite(best.at) else None,  # None: one answer for all
        "yes_above": best.above,
        "auroc": auroc(found.x, found.y),
        "out_of_fold": None,
    }
    if len(set(found.inputs)) > 1:
        predicted = out_of_fold(found.x, found.y, found.inputs)
        told["out_of_fold"] = cell(predicted == found.y)
        told["balanced_accuracy"] = balanced_accuracy(found.y, predicted)
    return told


class Judge:
    """A critic in one dimension: its answers on the test split, as they are and calibrated on the train split."""

    def __init__(self, test: Sequence[Annotation], training: Sequence[Annotation], z: Values):
        self.found, learnt = judged(test, z), judged(training, z)
        calibration = platt(learnt.x, learnt.y)
        self.p = {"fixed": sigmoid(self.found.x), "calibrated": calibration(self.found.x) if calibration else None}
        self.told = {way: self._way(p) for way, p in self.p.items()} | {
            "auroc": auroc(self.found.x, self.found.y),
            "pairwise": asdict(pairwise(self.found.x, self.found.y, self.found.inputs)),
            "calibration": self._calibration(calibration, len(learnt.y)),
        }

    def _way(self, p: np.ndarray | None) -> dict[str, Any] | None:
        if p is None or not len(p):
            return None
        predicted, y = (p >= 0.5).astype(int), self.found.y
        balanced = balanced_accuracy(y, predicted)
        return {**(cell(predicted == y) or {}), "balanced_accuracy": balanced, "ece": calibration_error(p, y)}

    def _calibration(self, calibration: Platt | None, n: int) -> dict[str, Any] | None:
        return asdict(calibration) | {"n": n} if calibration else None

    def right(self, way: str) -> dict[str, bool] | None:
        """Whether it is right, by video."""
        p = self.p[way]
        return None if p is None else dict(zip(self.found.videos, (p >= 0.5) == (self.found.y == 1), strict=True))

    def accuracy(self, of: np.ndarray) -> dict[str, Any] | None:
        """The fixed answers on some of the videos."""
        return cell(((self.p["fixed"] >= 0.5) == (self.found.y == 1))[of])


def _against(base: Judge, ours: Judge) -> dict[str, Any]:
    """McNemar's test on the videos that both have scored."""
    found = {}
    for way in WAYS:
        first, second = ours.right(way), base.right(way)
        if first is None or second is None:
            found[way] = None
            continue
        both = [video for video in first if video in second]
        sides = (np.array([side[video] for video in both], bool) for side in (first, second))
        result = mcnemar(*sides)
        found[way] = {"n": len(both), "only_ours": result.first, "only_base": result.second, "p": result.p}
    return found


def _by_source(judges: Mapping[str, Judge]) -> dict[str, dict[str, Any]]:
    """The fixed answers by source, and on all that is synthetic: a judge of real against generated fails there."""
    names = sorted({str(source) for judge in judges.values() for source in judge.found.sources})
    chosen: dict[str, Callable[[np.ndarray], np.ndarray]] = {"synthetic": lambda sources: sources != "real"}
    chosen |= {name: lambda sources, name=name: sources == name for name in names}
    return {
        name: {d: judge.accuracy(choose(judge.found.sources)) for d, judge in judges.items()}
        for name, choose in chosen.items()
    }


def _missing(
    annotations: Sequence[Annotation],
    test: Mapping[str, Sequence[Annotation]],
    asked: Mapping[str, Mapping[str, Judge]],
    singles: Mapping[str, Judged],
    judges: Mapping[str, Scores],
    metrics: Mapping[str, Values],
) -> dict[str, Any]:
    """What is not in the tables: test videos without a label or without a number, scored videos that nobody saw."""
    seen = {row.video for row in annotations}
    videos = {row.video for row in annotations if row.split == "test"}
    unscored = {name: {d: judge.found.unscored for d, judge in of.items()} for name, of in asked.items()}
    unscored |= {name: {METRICS[name]: found.unscored} for name, found in singles.items()}
    scored = {name: {video for z in scores.values() for video in z} for name, scores in judges.items()}
    scored |= {name: set(metrics[name]) for name in singles}
    return {
        "unlabelled": {d: _counted(videos - {row.video for row in found}) for d, found in test.items()},
        "unscored": {name: {d: _counted(lost) for d, lost in of.items()} for name, of in unscored.items()},
        "not_annotated": {name: _counted(found - seen) for name, found in scored.items()},
    }


def _counted(videos: Collection[str]) -> dict[str, Any]:
    return {"n": len(videos), "first": sorted(videos)[:5]}


def evaluate(annotations: Path, scores: Source, base: Source | None, metrics: Path | None) -> dict[str, Any]:
    """The report of these files. Raises UserError, also where there is nothing to compare the critic with."""
    files = {"annotations": annotations} | {part.name: part for part in part_files([scores.path])}
    files |= {f"base {part.name}": part for part in part_files([base.path])} if base else {}
    files |= {"metrics": metrics} if metrics else {}
    origin, rows = made_from(files), read_annotations(annotations)
    labelled = {row.video: row.sha256 for row in rows}
    found = make_report(
        rows,
        read_scores(scores, labelled),
        read_scores(base, labelled) if base else None,
        read_metrics(metrics, labelled) if metrics else None,
    )
    _check_judged(found, scores.path)
    return {"made_from": origin} | found


def _check_judged(report: Mapping[str, Any], scores: Path) -> None:
    """Raises UserError where no labelled test video has a score."""
    labels = report["test"]["labels"]
    if any(told["fixed"] for told in report["judges"]["ours"].values()):
        return
    told = ", ".join(f"{of['n']} labels in {d}" for d, of in labels.items())
    some_labels = any(of["n"] for of in labels.values())
    raise UserError(
        "no labelled test video has a score",
        got=f"{told} of split test, none of them of a video that {scores} has a score of" if some_labels else told,
        expected="scores of labelled videos of split test",
        do="score these videos" if some_labels else "label more inputs, or give train.annotate a larger --test-share",
    )


def write(report: dict[str, Any], out: Path) -> None:
    """OUT/report.json and OUT/report.md."""
    write_json(out / "report.json", report)
    with replacing(out / "report.md") as beside:
        beside.write_text(markdown(report), "utf-8")
