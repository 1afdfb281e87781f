"""From measurements to what tables show: means with intervals, distances of sets, tests between methods, warnings.

Numbers of videos that differ in frame rate or size are not compared unawares: where the methods differ on an input, or
as a whole where they share none, no method is called best and nothing is tested; where a method differs from the
reference, a distance of sets is not given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fantasy_core.errors import some
from fantasy_core.metrics.contract import Metric, PooledMetric, SetMetric
from train.evaluate_cache import Seen
from train.evaluate_inputs import Method, inputs_of, unpaired
from train.evaluate_measure import Bench, Results
from train.evaluate_registry import Absent
from train.evaluate_statistics import bootstrap, holm, paired
from train.evaluate_videos import SceneCuts

APART = "nothing is called best and nothing is tested. Give --fps and --size to bring all videos to one"
ROUGH = 10  # inputs below which an interval is itself uncertain


@dataclass(frozen=True)
class Measurement:
    """All that was seen and measured. `absent`: metrics that cannot be measured."""

    methods: Sequence[Method]
    reference: Method | None
    seen: Mapping[Path, Seen]
    results: Results
    bench: Bench
    absent: Mapping[str, Absent]

    def kind(self, path: Path) -> str | None:
        """Frame rate and size of a video as it was measured; None of one that cannot be read."""
        facts = self.seen[path].facts
        return self.bench.protocol.brought(facts).kind if facts else None

    def kinds(self, method: Method) -> list[str]:
        return [kind for kind in map(self.kind, method.videos.values()) if kind]


def table_columns(found: Measurement) -> dict[str, dict[str, Any]]:
    """Every column by name, in the order of the metrics: its metric, which way is better, whether it is of sets."""
    told = {}
    for name, metric in found.bench.metrics.items():
        if name != SceneCuts.name:
            of_sets = isinstance(metric, SetMetric)
            for column in metric.columns:
                about = {"metric": name, "better": metric.better.get(column, 0), "of_sets": of_sets}
                told[column] = about | {"verified": bool(metric.verified), "absent": None, "covers": None}
            if isinstance(metric, PooledMetric):
                beside = {"better": 0, "of_sets": True}
                told |= {pooled_name(column): told[column] | beside for column in metric.columns}
    for name, absent in found.absent.items():
        about = {"metric": name, "better": 0, "of_sets": False, "verified": False}
        told[name] = about | {"absent": absent.reason, "covers": list(absent.columns)}
    return told


def pooled_name(column: str) -> str:
    """The column of all clips of a method together."""
    return f"{column}_pooled"


def values_of(found: Measurement, method: Method, metric: str, column: str) -> dict[str, float]:
    """The numbers of a column by input; inputs without one are left out."""
    rows = {stem: found.results.get((path, metric)) for stem, path in method.videos.items()}
    told = {stem: row.measured.values.get(column) for stem, row in rows.items() if row and row.measured}
    return {stem: value for stem, value in told.items() if value is not None}


def cells_of(found: Measurement, columns: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{method: {column: mean, low, high, n, of}} of the columns of single videos."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for method in found.methods:
        row = cells[method.name] = {}
        for column, about in columns.items():
            if about["of_sets"]:
                continue
            if about["absent"]:
                row[column] = empty(about["absent"], len(method.videos))
                continue
            values = values_of(found, method, about["metric"], column)
            row[column] = (
                {**asdict(bootstrap(list(values.values()))), "of": len(method.videos), "reason": None}
                if values
                else empty(usual_reason(found, method, about["metric"], column), len(method.videos))
            )
    return cells


def empty(reason: str, of: int) -> dict[str, Any]:
    """A cell without a number says why."""
    return {"mean": None, "low": None, "high": None, "n": 0, "of": of, "reason": reason}


def usual_reason(found: Measurement, method: Method, metric: str, column: str) -> str:
    """The most frequent reason for which no video of a method has a number."""
    reasons = Counter(reason for _, reason in reasons_of(found, method, metric, column))
    return reasons.most_common(1)[0][0] if reasons else "nothing was measured"


def reasons_of(found: Measurement, method: Method, metric: str, column: str) -> list[tuple[str, str]]:
    """(input, why it has no number in a column)."""
    told = []
    for stem, path in method.videos.items():
        row, failure = found.results.get((path, metric)), found.seen[path].failure
        if row and row.failure:
            failure = row.failure
        if failure:
            told.append((stem, f"{failure['what']}: {failure['got']}"))
        elif row and row.measured and row.measured.values.get(column) is None:
            told.append((stem, row.measured.reasons.get(column, "not said")))
    return told


def mixed_inputs(found: Measurement) -> dict[str, dict[str, str]]:
    """Inputs on which the methods differ in frame rate or size, with the kinds by method."""
    mixed = {}
    for stem in inputs_of(found.methods):
        kinds = {m.name: found.kind(m.videos[stem]) for m in found.methods if stem in m.videos}
        known = {name: kind for name, kind in kinds.items() if kind}
        if len(set(known.values())) > 1:
            mixed[stem] = known
    return mixed


def mixed_methods(found: Measurement) -> list[dict[str, str]]:
    """Every two rivals that share no input and differ in frame rates or sizes, with what they have."""
    mixed = []
    for pair in strangers(rivals(found)):
        kinds = {method.name: Counter(found.kinds(method)) for method in pair}
        first, second = map(set, kinds.values())
        if first and second and first != second:
            mixed.append({name: _shown(counts) for name, counts in kinds.items()})
    return mixed


def strangers(methods: Sequence[Method]) -> list[tuple[Method, Method]]:
    """Every two methods without an input that both have: nothing of them can be paired."""
    return [(a, b) for a, b in combinations(methods, 2) if not a.videos.keys() & b.videos.keys()]


def _shown(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common(3))


def mismatch(found: Measurement, method: Method) -> str | None:
    """Why a method's set is not comparable with the reference, None where it is."""
    if found.reference is None:
        return None
    own, other = Counter(found.kinds(method)), Counter(found.kinds(found.reference))
    if set(own) == set(other):
        return None
    return f"not comparable: {_shown(own)}, the reference {_shown(other)}; bring them together by --fps and --size WxH"


def tests_of(found: Measurement, columns: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every two rivals in every column with a better side, on the inputs of both, corrected together (Holm)."""
    tests = []
    for column, about in columns.items():
        if about["of_sets"] or about["absent"] or not about["better"]:
            continue
        values = {m.name: values_of(found, m, about["metric"], column) for m in rivals(found)}
        for first, second in combinations(values, 2):
            shared = sorted(values[first].keys() & values[second].keys())
            if shared:
                tests.append(_test(column, about["better"], first, second, values, shared))
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    return tests


def _test(column: str, better: int, first: str, second: str, values: Mapping, shared: Sequence[str]) -> dict[str, Any]:
    told = paired([values[first][stem] for stem in shared], [values[second][stem] for stem in shared])
    difference = asdict(told.difference)
    del difference["mean"]
    return {
        "column": column,
        "first": first,
        "second": second,
        "difference": told.difference.mean,
        **difference,
        "above": told.above,
        "better": None if not told.difference.mean else first if told.difference.mean * better > 0 else second,
        "p": told.p,
    }


def rivals(found: Measurement) -> list[Method]:
    """The methods without those that are the reference itself: real videos are no rival, no test is for them."""
    real = found.reference and found.reference.folder.resolve()
    return [method for method in found.methods if method.folder.resolve() != real]


def best_of(
    cells: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Mapping[str, Any]], among: Collection[str]
) -> dict[str, list[str]]:
    """The methods with the best mean by column, of those `among` which there are two numbers or more; equal ones
    together. Distances of sets of other numbers of videos are no rivals: they fall with the number of samples."""
    cells = {name: row for name, row in cells.items() if name in among}
    best = {}
    for column, about in columns.items():
        means = {
            name: row[column]["mean"] for name, row in cells.items() if row.get(column, {}).get("mean") is not None
        }
        counts = {cells[name][column]["n"] for name in means}
        if about["better"] and len(means) > 1 and not (about["of_sets"] and len(counts) > 1):
            top = max(about["better"] * mean for mean in means.values())
            best[column] = [name for name, mean in means.items() if about["better"] * mean == top]
    return best


def errors_of(found: Measurement) -> list[dict[str, Any]]:
    """Every file that cannot be read, and every metric that failed on a file that can: by method and input."""
    errors = []
    for method in [*found.methods, *([found.reference] if found.reference else [])]:
        for stem, path in method.videos.items():
            where = {"method": method.name, "input": stem, "path": str(path)}
            if failure := found.seen[path].failure:
                errors.append({**where, "metric": None, **failure})
                continue
            rows = {name: found.results.get((path, name)) for name in found.bench.metrics}
            errors += [{**where, "metric": name, **row.failure} for name, row in rows.items() if row and row.failure]
    return errors


def warnings_of(found: Measurement, cells: Mapping, columns: Mapping, errors: Sequence[Mapping]) -> list[str]:
    """What is to be known before any number is believed."""
    told = [f"{name} lacks {len(stems)} inputs: {some(stems)}" for name, stems in unpaired(found.methods).items()]
    told += [
        f"{a.name} and {b.name} share no input, nothing of them is paired: answers to one input are files of one stem"
        for a, b in strangers(rivals(found))
    ]
    if mixed := mixed_inputs(found):
        stem, kinds = next(iter(mixed.items()))
        shown = "; ".join(f"{name} {kind}" for name, kind in kinds.items())
        told.append(f"methods differ in frame rate or size on {len(mixed)} inputs ({stem}: {shown}): {APART}")
    for kinds in mixed_methods(found):
        shown = "; ".join(f"{name} {kind}" for name, kind in kinds.items())
        told.append(f"methods that share no input differ in frame rate or size ({shown}): {APART}")
    unreadable = [error for error in errors if error["metric"] is None]
    if unreadable:
        told.append(f"{len(unreadable)} videos cannot be read: {some(e['path'] for e in unreadable)}")
    for column, about in columns.items():
        counts = {name: row[column]["n"] for name, row in cells.items() if column in row}
        if about["better"] and not about["of_sets"] and len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} {n}" for name, n in counts.items())
            told.append(f"{column}: the means are of different inputs (n: {shown}); the tests below pair them")
    if 0 < len(inputs_of(found.methods)) < ROUGH:
        told.append(f"{len(inputs_of(found.methods))} inputs: intervals of so few are rough")
    unverified = [name for name, metric in found.bench.metrics.items() if not metric.verified]
    if unverified:
        told.append(f"never run here with their real weights: {some(unverified)}")
    return told + _notes(found)


def _notes(found: Measurement) -> list[str]:
    """What files say of themselves, the same note of many files once; and scene cuts."""
    notes: dict[str, list[str]] = {}
    for method in [*found.methods, *([found.reference] if found.reference else [])]:
        for stem, path in method.videos.items():
            facts, row = found.seen[path].facts, found.results.get((path, SceneCuts.name))
            cut = row.measured.reasons.get("cuts") if row and row.measured else None
            for note in [*(facts.notes if facts else ()), *([cut] if cut else [])]:
                notes.setdefault(note, []).append(f"{method.name}/{stem}")
    return [f"{note}: {some(names, 3)}" for note, names in notes.items()]


def settings_of(metric: Metric) -> dict[str, Any]:
    return {"verified": bool(metric.verified), "settings": dict(metric.settings), "columns": list(metric.columns)}
