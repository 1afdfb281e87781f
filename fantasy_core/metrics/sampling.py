"""Which frames of a video a metric looks at: at a rate of its own, by the times they are shown at, or evenly spaced."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import UserError
from ..media.cuts import CHANGE, cuts, differences
from .contract import Video

Array = np.ndarray
TOUCH = 1e-6  # seconds; times are rounded in files


def at_rate(video: Video, fps: float, moment: float = 0.0) -> Array:
    """Indices [n] of the frames shown at 0, 1 / fps, 2 / fps ... of a video, whose last frame lasts as long as the mean
    of the others. `moment`: at which part of each interval instead, as 0.5 in its middle, so that frames are taken too
    early as often as too late. Raises UserError for a single frame, which has no length."""
    times = np.asarray(video.times, np.float64)
    if len(times) < 2 or times[-1] <= times[0]:
        raise UserError(
            f"{video.path} is a single picture",
            got=f"{len(times)} frame",
            expected="a video of two frames or more",
            do="leave it out of this metric",
        )
    times = times - times[0]
    length = times[-1] * len(times) / (len(times) - 1)
    ticks = (np.arange(int(length * fps + TOUCH * fps)) + moment) / fps
    return np.searchsorted(times, ticks + TOUCH, side="right") - 1


def evenly(frames: int, wanted: int) -> Array:
    """Indices of `wanted` evenly spaced frames, in the middles of equal parts; all frames where there are fewer."""
    if frames <= wanted:
        return np.arange(frames)
    return ((np.arange(wanted) + 0.5) * frames / wanted).astype(int)


def cuts_in(video: Video, change: float = CHANGE) -> tuple[Array, list[int]]:
    """The times [T] of the frames, and the frames with which a new scene begins, by number."""
    pictures = (torch.from_numpy(np.ascontiguousarray(frame)).movedim(-1, 0).float() / 255 for frame in video.frames)
    times, difference = differences(zip(map(float, video.times), pictures, strict=True))
    return times, cuts(difference, change)


def scenes(video: Video, taken: Array) -> Array:
    """In which scene each of the taken frames [n] lies, from 0 on."""
    return np.searchsorted(cuts_in(video)[1], taken, side="right")
