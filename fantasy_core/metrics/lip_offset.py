"""`lip_offset` and `lip_corr` of videos: mouths found by mediapipe, compared with the voice by `lip_sync`.

Openings are measured on every frame, each alone (IMAGE mode), and then brought to 25 a second by the times at which
frames are shown; so videos of any and of varying frame rate speak of the same frames. What cannot be judged has no
number and a reason. Clips too short for a verdict keep their curves: `pool` judges all clips of a method together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ..lips import Detect, LipTrack, landmarker, track
from ..manifest import sha256
from ..media.cuts import CHANGE
from .contract import Measured, Video
from .lip_sync import LEAST_SECONDS, LipSync, lip_sync, pooled
from .sampling import cuts_in

Array = np.ndarray
FPS, RATE = 25.0, 16_000
CONFIDENCE = 0.5, 0.9  # of a face in the whole frame, in windows of it


class LipOffset:
    """Offset in frames at 25 a second, positive where the picture is late, and the correlation at it.

    task: mediapipe's face_landmarker.task; None where mediapipe brings its models. detect: landmarks by other means,
    written as `detector`. scene_change: the least mean difference of neighbouring frames at a cut, of 1.
    """

    name = "lips"
    columns = ("lip_offset", "lip_corr")
    better: Mapping[str, int] = {"lip_offset": 0, "lip_corr": 1}
    verified = False
    settings: Mapping[str, object]

    def __init__(
        self,
        task: str | Path | None = None,
        *,
        detect: Detect | None = None,
        detector: str | None = None,
        scene_change: float = CHANGE,
    ):
        self._task, self._detect, self._change = task, detect, scene_change
        found = _mediapipe(task) if detect is None else {"detector": detector or getattr(detect, "__name__", "given")}
        self.settings = {
            **found,
            "fps": FPS,
            "to_fps": "openings of all frames, in straight lines between the middles of their times",
            "least_seconds": LEAST_SECONDS,
            "scene_change": scene_change,
        }

    def measure(self, video: Video) -> Measured:
        """The columns; features [1, 33] for `pool`: the curve [31], its seconds, its frames a second. A video that
        cannot be judged has None and the reason, never an error. Raises UserError without mediapipe or its model."""
        reason = unfit(video, self._change)
        if reason is not None:
            return silent(reason)
        with self._detectors() as (detect, strict):
            found = track(video.frames, detect, strict)
        return of_track(found, video)

    def pool(self, features: Array) -> Measured:
        """The verdict [lip_offset, lip_corr] of many clips together: features [n, 33] of `measure`, one row a clip."""
        return told(pooled(clip_of(row) for row in np.asarray(features, np.float64).reshape(-1, 33)))

    @contextmanager
    def _detectors(self) -> Iterator[tuple[Detect, Detect | None]]:
        with ExitStack() as stack:
            if self._detect is not None:
                yield self._detect, None
            else:
                detect, strict = (stack.enter_context(landmarker(self._task, confidence=c)) for c in CONFIDENCE)
                yield detect, strict


def of_track(found: LipTrack, video: Video) -> Measured:
    """What the lips that were found say, against the video's sound."""
    if not found.seen.any():
        return silent("no face in any frame")
    if found.unusable is not None:
        return silent(found.unusable)
    assert video.sound is not None
    return told(lip_sync(at_25(found.openings, video.times), FPS, video.sound, RATE))


def unfit(video: Video, change: float = CHANGE) -> str | None:
    """Why a video cannot be judged, as far as that is seen before its face is searched for."""
    if len(video.frames) < 2 or video.times[-1] <= video.times[0]:
        return f"{len(video.frames)} frame{'' if len(video.frames) == 1 else 's'}, no video"
    if video.sound is None or not len(video.sound):
        return "no sound track"
    times, found = cuts_in(video, change)
    if found:
        return f"a scene cut at {times[found[0]]:.2f} s: it may be another face, or another moment"
    return None


def at_25(openings: Array, times: Array) -> Array:
    """Openings [T] of frames shown from `times` [T] seconds on -> [n] at 25 a second, the first when the video begins.

    A frame speaks for the middle of the time it is shown; between the middles are straight lines, so that no rate makes
    lips late. NaN where the nearest frame is NaN. At a constant 25 a second nothing changes.
    """
    openings, times = np.asarray(openings, np.float64), np.asarray(times, np.float64) - times[0]
    mean = times[-1] / (len(times) - 1)
    middles = (times + np.append(times[1:], times[-1] + mean)) / 2
    wanted = (np.arange(max(round((times[-1] + mean) * FPS), 1)) + 0.5) / FPS
    known = np.isfinite(openings)
    if not known.any():
        return np.full(len(wanted), np.nan)
    nearest = np.searchsorted((middles[1:] + middles[:-1]) / 2, wanted)
    return np.where(known[nearest], np.interp(wanted, middles[known], openings[known]), np.nan)


def told(found: LipSync) -> Measured:
    """A verdict as columns; its curve, where there is one, as features [1, 33]."""
    if found.curve is None:
        return silent(found.reason or "no curve")
    features = np.concatenate([found.curve, [found.seconds, found.fps]])[None]
    if found.offset is None:
        return silent(found.reason or "no verdict", features)
    return Measured({"lip_offset": float(found.offset), "lip_corr": found.correlation}, features=features)


def silent(reason: str, features: Array | None = None) -> Measured:
    """No numbers, and why."""
    columns = LipOffset.columns
    return Measured(dict.fromkeys(columns), dict.fromkeys(columns, reason), features)


def clip_of(row: Array) -> LipSync:
    """A row [33] of features, back as the curve of a clip."""
    return LipSync(None, None, row[:31], float(row[31]), float(row[32]), None)


def _mediapipe(task: str | Path | None) -> dict[str, object]:
    """What is written of mediapipe. Raises UserError where it or its model is not there."""
    with landmarker(task):
        import mediapipe

    named = {"weights": Path(task).name, "weights_sha256": sha256(Path(task))} if task is not None else {}
    return {"detector": "mediapipe face landmarks, IMAGE mode", "mediapipe": mediapipe.__version__, **named}
