"""The report of critic_report.py, for people: Markdown with Table 2 first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fantasy_core.pair_rules import DIMENSIONS

HEAD = """# How well judges agree with people

Test split: {videos} videos of {inputs} inputs, none of which is in training. Labels: {labels}.

## Accuracy

Per cent, with 95 % intervals (Wilson; they take videos as independent, which those of one input are not quite).
*In sample* chooses a metric's threshold on the very videos it is judged on, as Table 2 of the paper reads: it flatters.
*Out of fold* chooses it on the other four fifths of the inputs. *Fixed* is Yes where the critic finds Yes likelier than
No; *calibrated* shifts and scales its z by Platt's method, fitted on the train split (for a critic that learnt from
those very labels it is an optimist's fit).
"""
Cell = Mapping[str, Any] | None


def markdown(report: Mapping[str, Any]) -> str:
    """All of a report that `make_report` made."""
    sections = [_head(report["test"]), accuracies(report), _measures(report["judges"])]
    if report["against_base"]:
        sections.append(_against(report["against_base"]))
    sections += [_by_source(name, told) for name, told in report["by_source"].items()]
    return "\n".join([*sections, _missing(report["missing"])])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def shown(cell: Cell) -> str:
    """`86.9 (84.7 to 88.9)`, or a dash."""
    if not cell:
        return "-"
    return f"{100 * cell['accuracy']:.1f} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _head(test: Mapping[str, Any]) -> str:
    labels = (f"{d} {of['n']} ({of['yes']} Yes)" for d, of in test["labels"].items())
    return HEAD.format(videos=test["videos"], inputs=test["inputs"], labels=", ".join(labels))


def accuracies(report: Mapping[str, Any]) -> str:
    """Table 2 alone."""
    rows = []
    for name, told in report["metrics"].items():
        for way, label in (("in_sample", "in sample"), ("out_of_fold", "out of fold")):
            rows.append([f"{name}, {label}", *(shown((told.get(d) or {}).get(way)) for d in DIMENSIONS)])
    for name, told in report["judges"].items():
        rows += [[f"{name}, {way}", *(shown(told[d][way]) for d in DIMENSIONS)] for way in ("fixed", "calibrated")]
    return table(["judge", *DIMENSIONS], rows)


def _measures(judges: Mapping[str, Any]) -> str:
    header = ["judge", "dimension", "balanced, fixed", "balanced, calibrated", "AUROC", "ECE, fixed", "ECE, calibrated"]
    header += ["pairs", "pairs that differ", "right of these", "right with ties"]
    rows = []
    for name, told in judges.items():
        for d in DIMENSIONS:
            ways, pairs = [told[d][way] or {} for way in ("fixed", "calibrated")], told[d]["pairwise"]
            measures = [number(way.get("balanced_accuracy")) for way in ways] + [number(told[d]["auroc"])]
            measures += [number(way.get("ece")) for way in ways] + [str(pairs["pairs"]), str(pairs["apart"])]
            rows.append([name, d, *measures, number(pairs["strict"]), number(pairs["with_ties"])])
    about = """## Other measures

Balanced accuracy is the mean of the accuracies among Yes and among No, ECE the expected calibration error in ten bins.
Pairs are of one input; *right of these* orders a Yes above a No, *with ties* may also call two videos equal, by the one
threshold on |z - z'| that does best on these very pairs (arXiv 2305.14324).
"""
    return f"{about}\n{table(header, rows)}"


def _against(told: Mapping[str, Any]) -> str:
    rows = []
    for d in DIMENSIONS:
        for way, of in told[d].items():
            if of:
                rows.append([d, way, str(of["n"]), str(of["only_ours"]), str(of["only_base"]), f"{of['p']:.2g}"])
    about = "## Ours against the base\n\nMcNemar's exact test, two-sided, on videos that both have scored.\n"
    return f"{about}\n{table(['dimension', 'way', 'videos', 'only ours right', 'only base right', 'p'], rows)}"


def _by_source(name: str, told: Mapping[str, Any]) -> str:
    rows = [[source, *(_with_n(of[d]) for d in DIMENSIONS)] for source, of in told.items()]
    about = (
        f"## By source: {name}, fixed\n\n*synthetic* is all but real clips: who only tells real from generated fails"
    )
    return f"{about} there.\n\n{table(['source', *DIMENSIONS], rows)}"


def _with_n(cell: Cell) -> str:
    return f"{shown(cell)}, n {cell['n']}" if cell else "-"


def _missing(told: Mapping[str, Any]) -> str:
    """What is in no table, each with the first few names."""
    lines = [_line(f"test videos without a label in {d}", of) for d, of in told["unlabelled"].items()]
    for name, by_dimension in told["unscored"].items():
        lines += [_line(f"labelled test videos without {name} in {d}", of) for d, of in by_dimension.items()]
    lines += [
        _line(f"videos with a number of {name} that nobody labelled", of) for name, of in told["not_annotated"].items()
    ]
    found = [line for line in lines if line]
    return "## What is missing\n\n" + ("".join(found) or "Nothing.\n")


def _line(what: str, of: Mapping[str, Any]) -> str:
    names = ", ".join(of["first"]) + (", ..." if of["n"] > len(of["first"]) else "")
    return f"- {of['n']} {what}: {names}\n" if of["n"] else ""
