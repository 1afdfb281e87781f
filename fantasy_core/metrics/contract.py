"""What a metric is: a function of a decoded video, and what it says of itself.

Metrics of one video give numbers; metrics of a set (FID, FVD) give features of each video, from which a distance to a
reference set is taken. A number that cannot be said is None, with a reason beside it: never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import UserError

Values = Mapping[str, float | None]  # column -> number


@dataclass(frozen=True)
class Video:
    """A decoded video: frames uint8 [T, H, W, 3] upright, each shown from times [T] (seconds) on; the sound float32 [n]
    mono at 16 kHz from the first frame on, None where there is none."""

    path: Path
    frames: np.ndarray
    times: np.ndarray
    sound: np.ndarray | None = None

    @property
    def fps(self) -> float:
        """Frames a second, over the whole video; 0 for a single frame."""
        return (len(self.times) - 1) / float(self.times[-1]) if len(self.times) > 1 else 0.0


class Unfit(UserError):
    """A video that a metric cannot measure, on whatever machine and however often: no face, too short, silent. Of all
    failures this one alone is kept by `train.evaluate`; any other may be gone the next time."""


@dataclass(frozen=True)
class Measured:
    """What a metric says of a video: numbers by column, why those that are None cannot be said, and for a metric of
    sets the features [n, d] of the video."""

    values: Values = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    features: np.ndarray | None = None


@runtime_checkable
class Metric(Protocol):
    """name: how --metrics calls it. columns: what it measures, with `better` +1 (higher is better), -1 or 0 (neither).
    settings: all that its numbers depend on (backend, sampling, sizes, hashes of weights): two numbers with other
    settings are never compared. verified: whether it has met its real weights."""

    name: str
    columns: tuple[str, ...]
    better: Mapping[str, int]
    settings: Mapping[str, object]
    verified: bool

    def measure(self, video: Video) -> Measured:
        """Raises Unfit for a video that cannot be measured at all, and UserError for what may be mended: a package
        that is not there, a device that is full."""
        ...


@runtime_checkable
class Opens(Protocol):
    """A metric whose networks are opened apart from its making, which is done in the command itself too, even where
    nothing is to be measured, and should cost little."""

    def open(self) -> None:
        """Opens them, once; `measure` does so by itself. Raises UserError for files of another model, and where the
        machine cannot: then no video can be measured."""
        ...


@runtime_checkable
class ReadsBeside(Protocol):
    """A metric of single videos that reads more than the video: files beside it, which may be other ones tomorrow."""

    def beside(self, path: Path) -> Mapping[str, object]:
        """What those are for the video at this path, by their hashes: with others its number is another one."""
        ...


@runtime_checkable
class SetMetric(Metric, Protocol):
    """A metric of a set of videos against a reference set. One with a method `resampled(videos, reference)` that gives
    a `Resampled` gets its intervals many times faster."""

    def compare(self, features: np.ndarray, reference: np.ndarray) -> Measured:
        """The columns from all features [n, d] of a method and of the reference set."""
        ...


@runtime_checkable
class PooledMetric(Metric, Protocol):
    """A metric of single videos that can also judge many together, from what it measured of each: short clips may carry
    a verdict together that none of them carries alone."""

    def pool(self, features: np.ndarray) -> Measured:
        """The columns from all features [n, d] of a method."""
        ...
