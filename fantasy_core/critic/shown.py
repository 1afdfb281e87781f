"""From a video to what the critic is shown: windows, frames by timestamp, crops, sizes; and its sound at 16 kHz."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .asked import View, Views

RATE = 16_000
FACTOR = 28  # pixels that a token is wide: patches of 14, merged 2 x 2
WIDER = 1.3  # a face's crop over the box of its landmarks
LATE = 1e-3  # seconds by which a frame may come too late and still count as on time

Key = TypeVar("Key", bound=Hashable)
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Shown:
    """A window of a clip in one view: frames uint8 [T, 3, h, w] at `fps`, h and w multiples of 28, and the sound of
    just that time, float32 [n] at 16 kHz, in [-1, 1]. `silent`: there was none, and zeros stand for it."""

    frames: Tensor
    fps: float
    sound: np.ndarray
    silent: bool = False

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w) in pairs of frames and patches of 14 pixels."""
        count, _, height, width = self.frames.shape
        return math.ceil(count / 2), height // 14, width // 14

    @property
    def tokens(self) -> int:
        """About how many tokens the window takes: what batches are sorted by."""
        t, h, w = self.grid
        return t * h * w // 4 + round(25 * self.seconds)


def windows(seconds: float, longest: float) -> list[tuple[float, float]]:
    """(start, end) of as few equal windows, none over `longest` seconds, as cover a clip end to end."""
    count = max(1, math.ceil(seconds / longest - LATE))
    return [(seconds * number / count, seconds * (number + 1) / count) for number in range(count)]


def sample_times(start: float, end: float, fps: float) -> list[float]:
    """Times at `fps` from `start` on, before `end`; at least one."""
    return [start + k / fps for k in range(max(1, round((end - start) * fps)))]


def smart_size(height: int, width: int, most: int, least: int = 4 * FACTOR**2) -> tuple[int, int]:
    """(height, width) in multiples of 28 with `least` to `most` pixels, of nearly the same shape. Qwen's own rule, with
    bounds of ours: its least of 128 tokens a frame would blow small crops up, and very long pictures pass its most,
    where here the longer side gives way."""
    tall, wide = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width))
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    longest = most // (FACTOR * min(tall, wide)) * FACTOR
    return min(tall, longest), min(wide, longest)


def resize(frame: Tensor, most: int) -> Tensor:
    """uint8 [3, H, W] -> [3, h, w], bicubic with antialiasing, on uint8 as Qwen's processor does it: by way of floats
    one pixel in ten would differ by a step."""
    size = smart_size(*frame.shape[1:], most)
    if size == tuple(frame.shape[1:]):
        return frame
    return F.interpolate(frame[None], size, mode="bicubic", antialias=True, align_corners=False)[0]


def face_box(landmarks: np.ndarray, height: int, width: int) -> Box:
    """A square that holds a face [T, N, 2] (pixels; NaN where absent) wherever it goes, 1.3 times as wide as it
    needs, cut at the picture's edges."""
    low, high = np.nanmin(landmarks, (0, 1)), np.nanmax(landmarks, (0, 1))
    (x, y), half = (low + high) / 2, WIDER * float(np.max(high - low)) / 2
    top, left = max(0, math.floor(y - half)), max(0, math.floor(x - half))
    bottom, right = min(height, math.ceil(y + half)), min(width, math.ceil(x + half))
    return top, left, max(bottom - top, 1), max(right - left, 1)


def pick(frames: Iterable[tuple[float, Tensor]], times: Mapping[Key, list[float]]) -> Iterator[tuple[Key, Tensor]]:
    """(key, frame) for every wanted time of every key (a view, say), in order: the last frame that has begun by then.
    Frames come as (seconds, [3, H, W]) one at a time, and none is kept."""
    left, last = {key: list(reversed(wanted)) for key, wanted in times.items()}, None
    for time, frame in frames:
        for key, wanted in left.items():
            while wanted and last is not None and wanted[-1] < time - LATE:
                wanted.pop()
                yield key, last
        last = frame
    for key, wanted in left.items():
        while wanted and last is not None:
            wanted.pop()
            yield key, last


def sound_of(sound: np.ndarray | None, start: float, end: float) -> np.ndarray:
    """The sound [n] of a time, padded with silence to its length."""
    first, count = round(start * RATE), round((end - start) * RATE)
    heard = np.zeros(0, np.float32) if sound is None else sound[first : first + count].astype(np.float32)
    return np.pad(heard, (0, count - len(heard)))


def show(
    frames: Iterable[tuple[float, Tensor]],
    seconds: float,
    sound: np.ndarray | None,
    views: Views,
    face: Box | None = None,
) -> dict[str, list[Shown]]:
    """The windows of a clip by view.

    frames: (seconds, uint8 [3, H, W]), in order; each is looked at once.
    sound: [n] at 16 kHz, from the first frame on, or None.
    face: the part that views of the face show; without one they show all of the frame.
    """
    spans = windows(seconds, views.seconds)
    times = {view: [sample_times(*span, view.fps) for span in spans] for view in views.distinct}
    pictures: dict[View, list[Tensor]] = {view: [] for view in times}
    for view, frame in pick(frames, {view: [t for window in wanted for t in window] for view, wanted in times.items()}):
        pictures[view].append(resize(_cropped(frame, face if view.crop == "face" else None), view.pixels))
    return {view.name: list(_by_window(view, inside, times[view], sound)) for view, inside in pictures.items()}


def _by_window(
    view: View, pictures: list[Tensor], times: list[list[float]], sound: np.ndarray | None
) -> Iterator[Shown]:
    first = 0
    for wanted in times:
        end = wanted[0] + len(wanted) / view.fps
        inside = torch.stack(pictures[first : first + len(wanted)])
        yield Shown(inside, view.fps, sound_of(sound, wanted[0], end), sound is None)
        first += len(wanted)


def _cropped(frame: Tensor, box: Box | None) -> Tensor:
    if box is None:
        return frame
    top, left, height, width = box
    return frame[:, top : top + height, left : left + width]
