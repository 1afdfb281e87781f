"""Which spans of footage become clips: times only, no files. Where it is cut says `fantasy_core.media.cuts`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Frame = TypeVar("Frame")


@dataclass(frozen=True)
class Span:
    """`frames` at the new frame rate from `start` seconds on, in scene number `scene`."""

    start: float
    frames: int
    scene: int

    def times(self, fps: float) -> list[float]:
        return [self.start + index / fps for index in range(self.frames)]


def scenes(times: np.ndarray, cut: Sequence[int]) -> list[tuple[float, float]]:
    """(start, end) of every scene in seconds; the last frame lasts as long as most do."""
    last = times[-1] + (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    borders = [float(times[0]), *(float(times[index]) for index in cut), float(last)]
    return list(zip(borders[:-1], borders[1:], strict=True))


def spans(found: Sequence[tuple[float, float]], fps: float, frames: int, least: int) -> tuple[list[Span], list[Span]]:
    """Clips of `frames`, one after the other, the last of a scene as short as `least` (all 4k + 1); and what is left
    over and too short to be one."""
    kept, short = [], []
    for number, (start, end) in enumerate(found):
        there = int((end - start) * fps + 1e-6)
        while there:
            take = min(frames, (there - 1) // 4 * 4 + 1)
            fits = take >= least
            (kept if fits else short).append(Span(start, take if fits else there, number))
            start, there = start + take / fps, there - take if fits else 0
    return kept, short


def at_times(frames: Iterable[tuple[float, Frame]], wanted: Iterable[float], fps: float) -> Iterator[Frame]:
    """For each wanted time, rising, the frame whose time is nearest; a later one only within half a frame at `fps`, so
    that the first frame of the next scene is never taken. Frames are drawn one by one; the last one holds."""
    source = iter(frames)
    before = after = next(source)
    for time in wanted:
        while after is not None and after[0] <= time:
            before, after = after, next(source, None)
        late = after is not None and after[0] - time < min(time - before[0], 0.5 / fps)
        yield after[1] if late and after is not None else before[1]
