"""What makes a span of footage a clip of one speaking person: voice, face, place in the picture. No files.

*Voice*: every 20 ms whose level is 10 dB above the noise floor (the level that a tenth of the footage stays below) and
above -50 dB of full scale; gaps of up to 0.2 s between such moments belong to the speech. Music counts as voice: a
level cannot tell them apart, lips against voice can.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fantasy_core import lips
from fantasy_core.media.images import MULTIPLE

MOMENT = 0.02  # seconds
OVER_FLOOR, LEAST_LEVEL, QUIETEST = 10.0, -50.0, -90.0  # dB; the last is what digital silence counts as
LONGEST_GAP = 0.2  # seconds within speech
LOOK_AROUND = 6  # every so many frames the whole picture is searched for other faces
MOST_CROWDED = 0.1  # of these looks may find another large face: detectors err
Detectors = tuple[lips.Detect, lips.Detect]  # at usual and at high confidence
Box = tuple[int, int, int, int]  # top, left, height, width


# ---- voice ----


def voiced(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Whether there is voice, every 20 ms [n], of a mono waveform."""
    step = round(MOMENT * rate)
    whole = waveform[: len(waveform) // step * step].reshape(-1, step)
    if not len(whole):
        return np.zeros(0, bool)
    power = np.mean(np.square(whole - whole.mean(1, keepdims=True), dtype=np.float64), 1)
    level = np.maximum(10 * np.log10(np.maximum(power, 1e-12)), QUIETEST)
    loud = level > max(np.percentile(level, 10) + OVER_FLOOR, LEAST_LEVEL)
    at = np.flatnonzero(loud)
    for first, last in zip(at[:-1], at[1:], strict=True):
        if 1 < last - first <= LONGEST_GAP / MOMENT + 1:
            loud[first:last] = True
    return loud


def voiced_share(moments: np.ndarray, start: float, seconds: float) -> float:
    """The share with voice of `seconds` from `start` on; what lies behind the end of the sound has none."""
    first, count = round(start / MOMENT), max(round(seconds / MOMENT), 1)
    return float(moments[first : first + count].sum() / count)


# ---- face ----


@dataclass(frozen=True)
class Faces:
    """The face that is followed, and of each look around the size of the second largest face over the largest's."""

    track: lips.LipTrack
    seconds: list[float]

    @property
    def width(self) -> float:
        """Median width of the face's box in pixels."""
        seen = self.track.landmarks[self.track.seen][:, : lips.MESH, 0]
        return float(np.median(np.ptp(seen, axis=1))) if len(seen) else 0.0

    @property
    def centre(self) -> tuple[float, float]:
        """Median centre (x, y) of its box."""
        seen = self.track.landmarks[self.track.seen][:, : lips.MESH]
        x, y = np.median((seen.min(1) + seen.max(1)) / 2, axis=0)
        return float(x), float(y)


def follow(frames: Iterable[np.ndarray], count: int, detectors: Detectors, least: float) -> Faces:
    """Follow the largest face through `count` frames [H, W, 3] uint8 and look around for others. It ends early, with
    fewer frames, where more have no face than a clip may have. Faces narrower than `least` are not searched for."""
    detect, strict = detectors
    hits, around, most_missed = 0, [], count - math.ceil(lips.LEAST_SEEN * count - 1e-6)

    def look(frame: np.ndarray) -> list[np.ndarray]:
        nonlocal hits
        faces = lips.search(frame, detect, strict, smallest=round(5 * least))
        hits += bool(faces)
        return faces

    def watched() -> Iterable[np.ndarray]:
        missed = 0
        for index, frame in enumerate(frames):
            if index % LOOK_AROUND == 0:
                sizes = sorted(map(lips.size, look(frame)), reverse=True)
                around.append(sizes[1] / sizes[0] if len(sizes) > 1 else 0.0)
            before = hits
            yield frame
            missed += hits == before
            if missed > most_missed:
                return

    return Faces(lips.track(watched(), look), around)


def face_fault(faces: Faces, least: float, second: float) -> tuple[str, str] | None:
    """The rule that a clip's faces break, and how; None for one face, wide enough, seen often and not in profile."""
    if (why := faces.track.unusable) is not None:
        return "face", why
    if faces.width < least:
        return "small", f"a face {faces.width:.0f} pixels wide, {least:g} are needed"
    crowded = np.mean([other >= second for other in faces.seconds])
    if crowded > MOST_CROWDED:
        return "several", f"another face of {second:.0%} of its size or more in {crowded:.0%} of the looks"
    return None


# ---- picture ----


def crop_box(height: int, width: int, centre: tuple[float, float], target: tuple[int, int] | None) -> Box | None:
    """The part of a picture that is kept: with a target (height, width) the largest of its shape, around the centre
    (x, y) as far as the edges allow; without one all of it but what a multiple of 16 leaves over. None where the
    picture is smaller than the target: nothing is enlarged."""
    scale = 1.0
    if target is None:
        target = (height // MULTIPLE * MULTIPLE, width // MULTIPLE * MULTIPLE)
    else:
        scale = min(height / target[0], width / target[1])
    if scale < 1 or not all(target):
        return None
    high, wide = (min(round(side * scale), most) for side, most in zip(target, (height, width), strict=True))
    top, left = (round(min(max(at - side / 2, 0), most - side)) for at, side, most in (
        (centre[1], high, height), (centre[0], wide, width)))  # fmt: skip
    return top, left, high, wide


def fitted(frame: Tensor, box: Box, target: tuple[int, int] | None) -> Tensor:
    """A frame [3, H, W] cut to the box and, with a target, scaled down to it."""
    top, left, height, width = box
    part = frame[:, top : top + height, left : left + width]
    if target is None or target == (height, width):
        return part
    scaled = F.interpolate(part[None], target, mode="bicubic", antialias=True, align_corners=False)
    return scaled[0].clamp(0, 1)
