"""A user study for people: Table 4, gains and agreement as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fantasy_core.pair_rules import DIMENSIONS
from train.critic_report_text import table
from train.evaluate_table import bullets, cell_text, number

HEAD = """{raters} raters, {clips} clips, {ratings} ratings from 0 to 10: means with 95 % intervals, a bootstrap over
raters. Bold is the best mean."""
Cell = Mapping[str, Any]


def study_markdown(study: Mapping[str, Any]) -> str:
    """What `study_of` found."""
    header = ["", *(f"{d.upper()} ↑" for d in DIMENSIONS)]
    rows = [[cell_text(m), *(shown(study, m, d) for d in DIMENSIONS)] for m in study["methods"]]
    parts = ["# User study", HEAD.format(**study), table(header, rows)]
    if study["gains"]["over"]:
        parts += [f"## {cell_text(study['ours'])} over the others", GAINS, table(header, gain_rows(study["gains"]))]
    measures = ["", "ICC(2,1)", "ICC(2,k)", "Krippendorff's alpha", ""]
    parts += ["## Agreement of raters", table(measures, agreement_rows(study["agreement"]))]
    if study["warnings"]:
        parts += ["## Warnings", bullets(study["warnings"])]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


GAINS = "From the means above, with intervals over the same raters. The strongest may be another method in each column."


def shown(study: Mapping[str, Any], method: str, dimension: str) -> str:
    """`**8.42** [8.1, 8.7]`."""
    cell = study["methods"][method][dimension]
    mean = f"**{cell['mean']:.2f}**" if method in study["best"][dimension] else f"{cell['mean']:.2f}"
    return mean if cell["low"] is None else f"{mean} [{cell['low']:.2f}, {cell['high']:.2f}]"


def gain_rows(gains: Mapping[str, Any]) -> list[list[str]]:
    rows = [[cell_text(m), *(percent(of[d]) for d in DIMENSIONS)] for m, of in gains["over"].items()]
    strongest = gains["over_strongest"]
    cells = (f"{percent(strongest[d])}, {cell_text(strongest[d]['method'])}" for d in DIMENSIONS)
    return [*rows, ["the strongest", *cells]]


def percent(gain: Cell) -> str:
    """`+13.8 % [+9.0, +18.9]`."""
    if gain["gain"] is None:
        return "-"
    ends = "" if gain["low"] is None else f" [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    return f"{100 * gain['gain']:+.1f} %{ends}"


def agreement_rows(agreement: Mapping[str, Cell]) -> list[list[str]]:
    rows = []
    for dimension, told in agreement.items():
        numbers = (number(told[name]) for name in ("icc_2_1", "icc_2_k", "alpha"))
        rows.append([dimension.upper(), *numbers, told["reason"] or ""])
    return rows
