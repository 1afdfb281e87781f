"""Lips against voice in a clip that is in memory, and what is told of it. Landmarks or masks of the lips are known
already: no detector runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..lips import choose, mouth_opening
from ..media.cuts import CHANGE, cuts, differences
from .lip_offset import FPS, at_25
from .lip_sync import CHANCE, MOST_LAG, LipSync, band_loudness, lip_sync

Array = np.ndarray
LANDMARKS = "landmarks: gap between the inner lips over the distance of the eyes"
MASKS = "masks: height over width of what is masked"


@dataclass(frozen=True, eq=False)
class LipCheck:
    """openings [T] of the mouth, NaN where it is not seen, measured `how`; loudness [n] of the voice in each frame, as
    a logarithm, None without sound; what both say together."""

    openings: Array
    loudness: Array | None
    sync: LipSync
    how: str


def openings_of_landmarks(faces: Iterable[Sequence[Array]]) -> Array:
    """Openings [T] of one mouth, from the landmarks [468 or more, 2] of all faces in each frame: the largest face, then
    the one nearest to it."""
    last, found = None, []
    for inside in faces:
        chosen = choose([np.asarray(face) for face in inside], last)
        last = last if chosen is None else chosen
        found.append(np.nan if chosen is None else mouth_opening(chosen))
    return np.array(found)


def openings_of_masks(masks: Iterable[Tensor]) -> Array:
    """Openings [T] from masks [h, w] in 0..1 of the lips, filled: the spread of the masked rows over that of the
    columns, which for an ellipse is its height over its width. NaN where nothing is masked."""
    return np.array([_height_over_width(mask.float().clamp(0, 1).cpu().numpy()) for mask in masks])


def _height_over_width(mask: Array) -> float:
    across, down = mask.sum(0, dtype=np.float64), mask.sum(1, dtype=np.float64)
    if across.sum() < 1:
        return math.nan
    wide, high = (np.cov(np.arange(len(line)), aweights=line, ddof=0) for line in (across, down))
    return float(np.sqrt((high + 1 / 12) / (wide + 1 / 12)))  # a pixel has a spread of its own


def check_lips(
    images: Tensor,
    fps: float,
    voice: Array | None,
    rate: int,
    openings: Array,
    how: str,
    told: Callable[[int, int], None] = lambda done, of: None,
    times: Array | None = None,
) -> LipCheck:
    """images [T, H, W, 3 or more] in 0..1, whose openings [T] are known; voice [n] at `rate` from the first frame on.
    told: is given how many of how many frames are done, and may raise. times [T]: when each frame is shown, where that
    is known; if they are not even, openings are taken from them at 25 a second. Raises UserError where openings are not
    as many as images."""
    if len(openings) != len(images):
        raise UserError(
            "lips and frames are not as many",
            got=f"lips of {len(openings)} frames, {len(images)} frames",
            expected="landmarks or masks of every frame",
            do="make them from the very frames that are checked",
        )
    reason = None if voice is not None else "no sound, or silence"
    reason = reason or scene_cut(images, np.arange(len(images)) / fps if times is None else times, told)
    if times is not None and not even(times):
        openings, fps = at_25(openings, times), float(FPS)
    if voice is None or reason is not None:
        loudness = None if voice is None else _loudness(voice, rate, fps, len(openings))
        return LipCheck(openings, loudness, LipSync(None, None, None, len(openings) / fps, fps, reason), how)
    loudness = _loudness(voice, rate, fps, len(openings))
    return LipCheck(openings, loudness, lip_sync(openings, fps, voice, rate), how)


def even(times: Array) -> bool:
    """Whether frames shown at `times` [T] are nowhere half a frame from where a constant rate has them."""
    if len(times) < 2:
        return True
    places = np.linspace(times[0], times[-1], len(times))
    return bool(np.abs(times - places).max() <= 0.5 * (places[1] - places[0]))


def scene_cut(images: Tensor, times: Array, told: Callable[[int, int], None]) -> str | None:
    """Where the first scene cut is, or None."""

    def pictures():
        for number, image in enumerate(images):
            told(number + 1, len(images))
            yield float(times[number]), image[..., :3].movedim(-1, 0).float().cpu()

    _, difference = differences(pictures())
    found = cuts(difference, CHANGE)
    return f"a scene cut at {times[found[0]]:.2f} s" if found else None


def report(check: LipCheck, warnings: Sequence[str] = ()) -> str:
    """What a person reads: the verdict, or why there is none, and what it stands on."""
    sync = check.sync
    lines = [_verdict(sync)]
    if sync.curve is not None:
        peak = int(sync.curve.argmax())
        lines.append(f"curve: highest {sync.curve[peak]:.2f} at {peak - MOST_LAG:+d} frames")
        lines.append(f"chance alone may give {CHANCE / math.sqrt(sync.seconds):.2f} in {sync.seconds:.1f} s")
    seen = float(np.isfinite(check.openings).mean()) if len(check.openings) else 0.0
    lines += [f"mouth seen in {seen:.0%} of {len(check.openings)} frames at {sync.fps:g} fps", f"by {check.how}"]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def _verdict(sync: LipSync) -> str:
    if sync.offset is None:
        return f"no verdict: {sync.reason}"
    ms = 1000 * sync.offset / sync.fps
    if sync.offset == 0:
        return f"in sync: offset 0 frames, correlation {sync.correlation:.2f}"
    late, remedy = ("late", "delay") if sync.offset > 0 else ("early", "advance")
    return (
        f"lips are {abs(sync.offset)} frames ({abs(ms):.0f} ms) {late}: {remedy} the sound by {abs(ms) / 1000:.3f} s; "
        f"correlation {sync.correlation:.2f}"
    )


def _loudness(voice: Array, rate: int, fps: float, frames: int) -> Array:
    heard = min(frames, int(len(voice) / rate * fps + 1e-6))
    return band_loudness(np.asarray(voice, np.float64), rate, fps, heard) if heard else np.zeros(0)
