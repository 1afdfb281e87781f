"""Metrics without weights whose values are known by hand, and videos of known brightness to measure with them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from sounds import encode

from fantasy_core.errors import UserError
from fantasy_core.media import VideoWriter
from fantasy_core.metrics.contract import Measured, Unfit, Video
from fantasy_core.metrics.frechet import compared, set_better, set_columns

PLAIN = "plain_metrics:Brightness"
COLOURS = "plain_metrics:Colours"
MACHINE = "plain_metrics:Machine"
OPENING = "plain_metrics:Opening"
MISSING = UserError("this needs a package", got="none", expected="the package", do="install it")


class Brightness:
    """Mean brightness in 0..1 (more is better), frames and loudness (less is better); a black video is refused."""

    name = "brightness"
    columns = ("brightness", "frames", "loudness")
    better = {"brightness": 1, "frames": 0, "loudness": -1}
    verified = True

    def __init__(self, gain: float = 1.0):
        self.settings, self._gain = {"gain": gain}, gain

    def measure(self, video: Video) -> Measured:
        if not video.frames.any():
            raise Unfit(f"{video.path.name} is black", got="0", expected="light", do="switch on the light")
        loud = None if video.sound is None else float(np.abs(video.sound).max())
        values = {"brightness": self._gain * video.frames.mean() / 255, "frames": len(video.frames), "loudness": loud}
        return Measured(values, {} if loud is not None else {"loudness": "no sound"})


class Slow(Brightness):
    """The same after half a second, so that a run can be killed in the middle."""

    def measure(self, video: Video) -> Measured:
        time.sleep(0.5)
        return super().measure(video)


class Machine(Brightness):
    """The same on a machine that fails as long as there is a file `broken`: its text is the name of the error."""

    def __init__(self, broken: str):
        super().__init__()
        self._broken = Path(broken)

    def measure(self, video: Video) -> Measured:
        if self._broken.is_file():
            raise {"RuntimeError": RuntimeError("out of memory"), "UserError": MISSING}[self._broken.read_text()]
        return super().measure(video)


class Opening(Brightness):
    """The same by a network, which is a file that says so; every opening is told in FILE.log by its process."""

    def __init__(self, weights: str):
        super().__init__()
        self._file, self._open = Path(weights), False

    def open(self) -> None:
        with Path(f"{self._file}.log").open("a", encoding="utf-8") as log:
            log.write("" if self._open else f"{os.getpid()}\n")
        if self._file.read_text("utf-8") != "network":
            raise UserError(f"{self._file.name} is no network", got="text", expected="a network", do="fetch it again")
        self._open = True

    def measure(self, video: Video) -> Measured:
        self.open()
        return super().measure(video)


class Colours:
    """Frechet distance of mean colours of frames."""

    name = "colours"
    columns = set_columns("colours", "kernel")
    better = set_better("colours", "kernel")
    settings = {"network": "none"}
    verified = True

    def measure(self, video: Video) -> Measured:
        return Measured(features=video.frames.mean((1, 2)))

    def compare(self, features: np.ndarray, reference: np.ndarray) -> Measured:
        return compared("colours", "kernel", features, reference)


def write_grey(path: Path, shade: float, *, frames: int = 6, fps: float = 10, size=(32, 32), sound=False) -> Path:
    """A video of one grey that falls by 0.002 a frame, with half a second of a tone if `sound`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = path.with_suffix(".wav")
    if sound:
        encode(tone, np.sin(np.arange(16000) / 8)[None] * 0.3, 16000)
    with VideoWriter(path, Fraction(fps).limit_denominator(1001), sound=tone if sound else None) as writer:
        level = shade - 0.002 * torch.arange(frames)[:, None, None, None]
        writer.write(level.clamp(0, 1).expand(frames, 3, *size).contiguous())
    tone.unlink(missing_ok=True)
    return path


def write_methods(folder: Path, shades: dict[str, Sequence[float]], **more) -> list[str]:
    """FOLDER/NAME/k.mp4 of those greys, and the texts NAME=FOLDER for --method."""
    for name, row in shades.items():
        for number, shade in enumerate(row):
            write_grey(folder / name / f"{number:02d}.mp4", shade, **more)
    return [f"{name}={folder / name}" for name in shades]
