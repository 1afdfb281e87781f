"""The tables of the page: cells with a text to read and a value to sort by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fantasy_core.pair_rules import DIMENSIONS
from train.evaluate_study_text import GAINS, HEAD, percent
from train.evaluate_table import TESTS, alike, chance, label, number, p_of, span

Cell = dict[str, Any]


def page_tables(result: Mapping[str, Any] | None, study: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Those of the videos (`first` stands above the players), then those of the study."""
    tables = []
    if result:
        columns = result["columns"]
        main = [name for name, about in columns.items() if about["better"] or about["absent"]]
        tables.append(method_table("results", "Results", RESULTS, result, main) | {"first": True, "bars": True})
        if beside := [name for name in columns if name not in main]:
            tables.append(method_table("beside", "Beside it", "Neither up nor down is better.", result, beside))
        if result["tests"]:
            tables.append(test_table(result))
        if result["errors"]:
            tables.append(error_table(result["errors"]))
    return tables + (study_tables(study) if study else [])


RESULTS = "Means with 95 % intervals, and the number of videos. Green is the best mean. A click on a head sorts."
Table = dict[str, Any]


def table(name: str, title: str, about: str, columns: Sequence[dict[str, Any]], rows: list[list[Cell]]) -> Table:
    told = {"id": name, "title": title, "about": about, "columns": list(columns), "rows": rows}
    return told | {"first": False, "bars": False, "small": False}


def head(text: str, title: str = "", down: bool = False) -> dict[str, Any]:
    """down: the first click sorts downwards."""
    return {"label": text, "title": title or "sort", "down": down}


def text_cell(text: str) -> Cell:
    return {"text": text, "value": text}


def number_cell(value: float | None, text: str | None = None) -> Cell:
    return {"text": number(value) if text is None else text, "value": value}


def method_table(
    name: str, title: str, about: str, result: Mapping[str, Any], columns: Sequence[str]
) -> dict[str, Any]:
    heads = [head("method")]
    for column in columns:
        told = result["columns"][column]
        verified = "" if told["verified"] or told["absent"] else "; unverified with real weights"
        heads.append(head(label(column, told), f"{column} of {told['metric']}{verified}", down=told["better"] > 0))
    rows = []
    for place, (method, row) in enumerate(result["cells"].items()):
        cells = [mean_cell(row[column], method in result["best"].get(column, ())) for column in columns]
        rows.append([text_cell(method) | {"place": place}, *cells])
    return table(name, title, about, heads, rows)


def mean_cell(told: Mapping[str, Any], best: bool) -> Cell:
    if told["mean"] is None:
        return {"text": "", "value": None, "reason": told["reason"] or "no number"}
    n = f"n {told['n']}" if told["n"] == told["of"] else f"n {told['n']} of {told['of']}"
    ends = {"low": told["low"], "high": told["high"], "span": span(told["low"], told["high"]).strip()}
    return number_cell(told["mean"]) | ends | {"n": n, "best": best}


def test_table(result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("column", "first", "second", "n", "difference", "better", "p", "p, Holm")
    rows = []
    for test in result["tests"]:
        texts = (label(test["column"], result["columns"][test["column"]]), test["first"], test["second"])
        ends = {"span": span(test["low"], test["high"]).strip()}
        cells = [number_cell(test["n"]), number_cell(test["difference"]) | ends, text_cell(test["better"] or "–")]
        rows.append([*map(text_cell, texts), *cells, *(number_cell(p, chance(p)) for p in p_of(test))])
    return table("tests", "Tests", TESTS, [head(name) for name in names], rows) | {"small": True}


def error_table(errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    about = "Each of these cost its own cells alone."
    rows = [
        [text_cell(text) for text in (videos, e["metric"] or "the file", e["what"], e["got"], e["do"])]
        for videos, e in alike(errors)
    ]
    heads = [head(name) for name in ("videos", "metric", "what", "got", "what to do")]
    return table("errors", "What failed", about, heads, rows) | {"small": True}


# ---- the user study ----


def study_tables(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    dimensions = [head(f"{d.upper()} ↑", down=True) for d in DIMENSIONS]
    rows = []
    for place, (method, row) in enumerate(study["methods"].items()):
        cells = [study_cell(row[d], method in study["best"][d]) for d in DIMENSIONS]
        rows.append([text_cell(method) | {"place": place}, *cells])
    about = " ".join(HEAD.format(**study).split())
    tables = [table("study", "User study", about, [head("method"), *dimensions], rows) | {"bars": True, "first": True}]
    if over := study["gains"]["over"]:
        gains = [[text_cell(m), *(gain_cell(of[d]) for d in DIMENSIONS)] for m, of in over.items()]
        strongest = study["gains"]["over_strongest"]
        named = (gain_cell(strongest[d]) | {"n": strongest[d]["method"]} for d in DIMENSIONS)
        gains.append([text_cell("the strongest"), *named])
        title = f"{study['ours']} over the others"
        tables.append(table("gains", title, GAINS, [head("over"), *dimensions], gains) | {"small": True})
    return [*tables, agreement_table(study["agreement"])]


def study_cell(told: Mapping[str, Any], best: bool) -> Cell:
    ends = {"low": told["low"], "high": told["high"], "span": span(told["low"], told["high"]).strip()}
    return number_cell(told["mean"], f"{told['mean']:.2f}") | ends | {"n": f"n {told['n']}", "best": best}


def gain_cell(gain: Mapping[str, Any]) -> Cell:
    return number_cell(gain["gain"], percent(gain))


def agreement_table(agreement: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    about = "1 is perfect, 0 is chance. ICC(2,1) of one rater, ICC(2,k) of the mean of all; alpha stands gaps."
    heads = [head(text) for text in ("dimension", "ICC(2,1)", "ICC(2,k)", "Krippendorff's alpha", "")]
    rows = []
    for dimension, told in agreement.items():
        numbers = (number_cell(told[name]) for name in ("icc_2_1", "icc_2_k", "alpha"))
        rows.append([text_cell(dimension.upper()), *numbers, text_cell(told["reason"] or "")])
    return table("agreement", "Agreement of raters", about, heads, rows) | {"small": True}
