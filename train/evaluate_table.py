"""The tables of an evaluation for people: Markdown in the shape of the paper's Tables 1 and 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fantasy_core.errors import some
from train.critic_report_text import table

LABELS = {
    "lip_offset": "lip offset, frames",
    "lip_corr": "lip correlation",
    "lip_offset_pooled": "lip offset, all clips together",
    "lip_corr_pooled": "lip correlation, all clips together",
    "sync_c": "Sync-C",
    "sync_d": "Sync-D",
    "sync_c_valid": "Sync-C, valid pairs",
    "fid": "FID",
    "kid": "KID",
    "fvd": "FVD",
    "kvd": "KVD",
    "iqa": "IQA",
    "aes": "AES",
    "sd": "SD",
    "bd": "BD",
    "hkc": "HKC",
    "hkv": "HKV",
    "ls": "lip sync",
    "mn": "motion",
    "vq": "quality, dB",
}
ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def label(column: str, about: Mapping[str, Any]) -> str:
    """`sync_d` -> `Sync-D ↓`; a metric that cannot be measured stands for all its columns: `Sync-C, Sync-D`."""
    covered = about["covers"] or [column]
    return ", ".join(LABELS.get(name, name) for name in covered) + ARROWS[about["better"]]


def number(value: float | None) -> str:
    """Four figures where they say something, no more."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3g}"


def span(low: float | None, high: float | None) -> str:
    return "" if low is None else f" [{number(low)}, {number(high)}]"


def caption(result: Mapping[str, Any]) -> str:
    """What was compared, brought to what."""
    protocol = result["protocol"]
    brought = [f"{protocol['fps']:g} fps (what is shown in the middle of each interval)"] if protocol["fps"] else []
    if protocol["size"]:
        side = "filled, cut around the middle" if "x" in protocol["size"] else "short side"
        brought.append(f"{protocol['size']} px ({side})")
    kinds = ", ".join(f"{n} x {kind}" for kind, n in result["kinds"].items())
    how = f"brought to {' and '.join(brought)}" if brought else "as the files are"
    reference = result["reference"]
    against = f" The reference is {reference['videos']} videos of {reference['folder']}." if reference else ""
    return (
        f"{len(result['inputs'])} inputs, {how}: {kinds or 'nothing could be read'}.{against} Means with 95 % "
        "bootstrap intervals over inputs (distances of sets: over videos, around the value); in brackets the number of "
        "videos."
    )


def markdown(result: Mapping[str, Any]) -> str:
    """table.md: the main table, what stands beside it, tests, warnings, errors, settings."""
    columns = result["columns"]
    main = [name for name, about in columns.items() if about["better"] or about["absent"]]
    parts = ["# Evaluation", caption(result) + " Bold is the best mean.", method_table(result, main)]
    if beside := [name for name in columns if name not in main]:
        parts += ["## Beside it", "Neither up nor down is better.", method_table(result, beside)]
    if result["warnings"]:
        parts += ["## Warnings", bullets(result["warnings"])]
    if result["tests"]:
        parts += ["## Tests between methods", TESTS, test_table(result)]
    if result["errors"]:
        parts += ["## What failed", bullets(error_line(*one) for one in alike(result["errors"]))]
    return "\n\n".join([*parts, "## Settings", settings_lines(result)]) + "\n"


def method_table(result: Mapping[str, Any], columns: Sequence[str]) -> str:
    header = ["", *(cell_text(label(name, result["columns"][name])) for name in columns)]
    rows = []
    for method, row in result["cells"].items():
        cells = (cell(row[name], bold=method in result["best"].get(name, ())) for name in columns)
        rows.append([cell_text(method), *cells])
    return table(header, rows).rstrip()


def cell(told: Mapping[str, Any], bold: bool) -> str:
    if told["mean"] is None:
        return cell_text(told["reason"] or "-")
    n = str(told["n"]) if told["n"] == told["of"] else f"{told['n']} of {told['of']}"
    mean = f"**{number(told['mean'])}**" if bold else number(told["mean"])
    return f"{mean}{span(told['low'], told['high'])} ({n})"


def cell_text(text: str) -> str:
    """A text that stays in its cell and is no markup."""
    for sign in "\\`*_<[|":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {cell_text(line)}" for line in lines)


TESTS = (
    "First less second on the inputs of both, with 95 % bootstrap intervals; p by flipping signs, and corrected for "
    "all tests of this table (Holm). Distances of sets have an interval alone."
)


def test_table(result: Mapping[str, Any]) -> str:
    header = ["column", "first", "second", "n", "difference", "better", "p", "p, Holm"]
    rows = []
    for test in result["tests"]:
        difference = number(test["difference"]) + span(test["low"], test["high"])
        column = label(test["column"], result["columns"][test["column"]])
        names = [cell_text(text) for text in (column, test["first"], test["second"])]
        rows.append([*names, str(test["n"]), difference, cell_text(test["better"] or "-"), *map(chance, p_of(test))])
    return table(header, rows).rstrip()


def p_of(test: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return test["p"], test["p_holm"]


def chance(p: float | None) -> str:
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def alike(errors: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """(on which videos, the error) of errors that say the same, together."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for error in errors:
        groups.setdefault(tuple(error[key] for key in ("metric", "what", "got", "do")), []).append(error)
    names = [[f"{error['method']}/{error['input']}" for error in group] for group in groups.values()]
    return [(some(of, 3), group[0]) for of, group in zip(names, groups.values(), strict=True)]


def error_line(videos: str, error: Mapping[str, Any]) -> str:
    return f"{videos}, {error['metric'] or 'the file'}: {error['what']} ({error['got']})"


def settings_lines(result: Mapping[str, Any]) -> str:
    """What every number depends on, a line a metric."""
    lines = []
    for name, metric in result["metrics"].items():
        told = ", ".join(f"{key} {value}" for key, value in metric["settings"].items())
        lines.append(f"{name}: {told or 'none'}")
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in result["versions"])
    return bullets([*lines, f"libraries: {versions or 'none'}"])
