"""A picture of every column: each video a point, each method's mean with its interval, lines between equal inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fantasy_core.media.files import replacing
from train.evaluate_table import label
from train.splits import place

VERSION = 2  # of the drawing
COLOURS = ("#3b6fb6", "#c8553d", "#2a9d6f", "#8a5aa8", "#b08a2e", "#5c6b73", "#d07fae", "#4aa3a2")
MOST_LINES = 60  # between points of one input; more are a grey wall
SPREAD, MEAN = 0.16, 0.26  # of points around their method's place, and how far right of it the mean stands


def plotted(result: Mapping[str, Any]) -> list[str]:
    """The columns with a number that have a picture."""
    known = {c for row in result["cells"].values() for c, cell in row.items() if cell["mean"] is not None}
    return [c for c, about in result["columns"].items() if c in known and (about["better"] or not about["of_sets"])]


def plot_columns(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """COLUMN.png in `folder` for every column that has a picture; returns the files."""
    made = [folder / f"{column}.png" for column in plotted(result)]
    for path, column in zip(made, plotted(result), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        _renew(path, result, column)
    return made


def _renew(path: Path, result: Mapping[str, Any], column: str) -> None:
    """A picture says of which numbers it is; one that has the same already stays."""
    values = {m: {i: v["values"].get(column) for i, v in of.items()} for m, of in result["videos"].items()}
    shown = [values, {m: row[column] for m, row in result["cells"].items()}, label(column, result["columns"][column])]
    made_from = hashlib.sha256(json.dumps([VERSION, shown]).encode()).hexdigest()
    if _said(path) != made_from:
        _save(_plot(result, column, values), path, made_from)


def _said(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.info.get("Source")
    except (OSError, UnidentifiedImageError):
        return None


def _plot(result: Mapping[str, Any], column: str, values: Mapping[str, Mapping[str, float | None]]):
    from matplotlib.figure import Figure

    methods, about = list(result["cells"]), result["columns"][column]
    figure = Figure((1.6 + 1.2 * len(methods), 3.2), layout="constrained")
    axis = figure.subplots()
    _lines(axis, methods, values)
    for at, method in enumerate(methods):
        points = {stem: value for stem, value in values[method].items() if value is not None}
        colour, cell = COLOURS[at % len(COLOURS)], result["cells"][method].get(column)
        across = [at + _aside(stem) for stem in points]
        axis.plot(across, list(points.values()), "o", ms=3.5, mew=0, alpha=0.5, color=colour)
        if cell and cell["mean"] is not None:
            low, high = (cell["mean"] if cell[end] is None else cell[end] for end in ("low", "high"))
            away = [[max(cell["mean"] - low, 0)], [max(high - cell["mean"], 0)]]
            axis.errorbar(at + MEAN, cell["mean"], away, fmt="D", ms=6, capsize=4, color=colour, mec="white", zorder=5)
    axis.set_xticks(range(len(methods)), [_plain(name) for name in methods])
    axis.set_xlim(-0.6, len(methods) - 0.4)
    axis.set_title(_plain(label(column, about)), loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    return figure


def _lines(axis: Any, methods: list[str], values: Mapping[str, Mapping[str, float | None]]) -> None:
    """An input's values, from method to method."""
    inputs = sorted({stem for of in values.values() for stem in of})[:MOST_LINES]
    for stem in inputs:
        row = [values[method].get(stem) for method in methods]
        across = [at + _aside(stem) for at in range(len(methods))]
        if sum(value is not None for value in row) > 1:
            axis.plot(across, [np.nan if v is None else v for v in row], color="0.6", lw=0.6, alpha=0.35)


def _aside(stem: str) -> float:
    """Where an input's points stand beside their method's place: the same for all methods."""
    return SPREAD * (2 * place(stem) - 1) - 0.04


def _plain(text: str) -> str:
    """Names are names: a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def _save(figure: Any, path: Path, made_from: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replacing(path) as beside, beside.open("wb") as file:
        FigureCanvasAgg(figure)
        figure.savefig(file, format="png", dpi=130, metadata={"Source": made_from})
