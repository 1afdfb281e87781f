"""A picture of lips against voice: both in time, and how well they agree at every offset."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from .lip_check import LipCheck
from .lip_sync import CHANCE, MOST_LAG, LipSync

Array = np.ndarray
INCHES, DPI = (9.0, 5.2), 100
LIPS, VOICE, CHANCES = "tab:blue", "tab:orange", "0.6"


def draw_lips(check: LipCheck) -> Image.Image:
    """Above the mouth's opening and the voice's loudness, in deviations from their means, grey where no mouth is seen;
    below the correlation at offsets of -15 to 15 frames, with what chance alone may give."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(INCHES, dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _in_time(above, check)
    _by_offset(below, check.sync)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def _in_time(axis, check: LipCheck) -> None:
    fps = check.sync.fps
    seconds = np.arange(len(check.openings)) / fps
    axis.plot(seconds, standard(check.openings), color=LIPS, lw=1.4, label="mouth opening")
    if check.loudness is not None and len(check.loudness):
        axis.plot(
            seconds[: len(check.loudness)], standard(check.loudness), color=VOICE, lw=1.1, label="voice, loudness"
        )
    for first, last in unseen(check.openings):
        axis.axvspan(first / fps, last / fps, color="0.9")
    axis.set(xlabel="seconds", ylabel="deviations", title=_title(check.sync))
    axis.margins(x=0)
    axis.legend(loc="upper right", fontsize="small")


def _by_offset(axis, sync: LipSync) -> None:
    axis.set(xlabel="offset in frames: right of 0 the picture is late", ylabel="correlation")
    axis.set_xlim(-MOST_LAG - 0.5, MOST_LAG + 0.5)
    if sync.curve is None:
        axis.text(0, 0.5, "no curve", ha="center", va="center", color="0.4")
        axis.set_ylim(0, 1)
        return
    lags = np.arange(-MOST_LAG, MOST_LAG + 1)
    colours = [LIPS if lag == sync.offset else "0.75" for lag in lags]
    axis.bar(lags, sync.curve, color=colours)
    axis.axhline(0, color="black", lw=0.6)
    axis.axhline(CHANCE / math.sqrt(sync.seconds), color=CHANCES, ls="--", lw=1, label="chance")
    axis.legend(loc="upper right", fontsize="small")


def _title(sync: LipSync) -> str:
    if sync.offset is None:
        return f"no verdict: {sync.reason}"
    return f"offset {sync.offset:+d} frames, correlation {sync.correlation:.2f}"


def standard(series: Array) -> Array:
    """A series [T] less its mean, over its deviation; NaN stays, a constant is 0."""
    known = series[np.isfinite(series)]
    if not len(known):
        return series
    return (series - known.mean()) / (known.std() or 1.0)


def unseen(openings: Array) -> list[tuple[int, int]]:
    """Spans (first frame, frame after the last) of openings [T] that are NaN."""
    gaps = np.concatenate([[False], ~np.isfinite(openings), [False]])
    edges = np.flatnonzero(gaps[1:] != gaps[:-1])
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]
