"""lip_offset and lip_corr of videos: planted offsets through drawn and real faces, any rate, and what says None."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from drawn_faces import reads_first_pixel, speaking_faces
from talking import RATE, openings, portrait, speaking, voice

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Metric, SetMetric, Video
from fantasy_core.metrics.lip_offset import LipOffset, at_25

TASK = Path(
    os.environ.get("FACE_LANDMARKER_TASK") or Path.home() / ".cache" / "fantasytalking2" / "face_landmarker.task"
)


def drawn() -> LipOffset:
    return LipOffset(detect=reads_first_pixel)


def clip(seconds: float = 6.0, late: int = 0, times: np.ndarray | None = None, start: float = 0.0) -> Video:
    """A drawn face that says a real voice from `start` seconds on, shown `late` frames of 1/25 s after it, at 25 a
    second or at `times`."""
    sound = voice(seconds + start)[round(start * RATE) :]
    mouth = np.roll(openings(sound, round(seconds * 25), most=0.9) / 1.3, late)
    if times is None:
        times = np.arange(len(mouth)) / 25
    else:  # the opening in the middle of the time that a frame is shown
        middles = (times + np.append(times[1:], 2 * times[-1] - times[-2])) / 2
        mouth = np.interp(middles, (np.arange(len(mouth)) + 0.5) / 25, mouth)
    return Video(Path("drawn.mp4"), speaking_faces(mouth), times, sound)


def changed(video: Video, **fields) -> Video:
    return Video(**{"path": video.path, "frames": video.frames, "times": video.times, "sound": video.sound, **fields})


@pytest.mark.parametrize("late", [-5, -1, 0, 4])
def test_planted_offsets_come_back_exactly(late):
    """Opening is loudness to the power 0.7, so the correlation with the logarithm of loudness is high."""
    found = drawn().measure(clip(late=late))
    assert found.values["lip_offset"] == late and 0.7 < found.values["lip_corr"] <= 1 and not found.reasons
    assert found.features.shape == (1, 33) and found.features[0, :31].argmax() == 15 + late
    assert found.features[0, 31:].tolist() == [6.0, 25.0]


@pytest.mark.parametrize("rate", [23.0, 30.0])
def test_other_frame_rates_speak_of_the_same_frames(rate):
    """3 frames of 1/25 s late at any rate, because a frame speaks for the middle of its time."""
    times = np.arange(round(6 * rate)) / rate
    assert drawn().measure(clip(late=3, times=times)).values["lip_offset"] == 3


def test_a_varying_frame_rate():
    """Frames shown for 20 to 60 ms each: placed by their times."""
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 160))
    times = times[times < 5.9] - times[0]
    assert drawn().measure(clip(late=-2, times=times)).values["lip_offset"] == -2


def test_openings_at_25_by_hand():
    """Constant 25: unchanged. At 12.5 frames 0 and 1 are shown from 0 and 80 ms, their middles are 40 and 120 ms; ticks
    have middles at 20, 60, 100, 140: 0 (held), a quarter, three quarters, 1 (held). NaN goes to its nearest ticks."""
    assert at_25(np.array([0.3, 0.1, 0.2]), np.arange(3) / 25) == pytest.approx([0.3, 0.1, 0.2])
    assert at_25(np.array([0.0, 1.0]), np.array([5.0, 5.08])) == pytest.approx([0, 0.25, 0.75, 1])
    assert np.isnan(at_25(np.array([0.0, np.nan]), np.array([0, 0.08]))).tolist() == [False, False, True, True]
    assert np.isnan(at_25(np.full(3, np.nan), np.arange(3) / 25)).all()


def faceless(video: Video, share: slice) -> Video:
    frames = video.frames.copy()
    frames[share, 0, 0] = 0
    return changed(video, frames=frames)


def with_cut(video: Video) -> Video:
    frames = video.frames.copy()
    frames[75:] = np.where(np.arange(32)[None, :, None, None] < 16, 10, frames[75:])
    return changed(video, frames=frames)


SILENT = {
    "no sound": (lambda v: changed(v, sound=None), "no sound track"),
    "an empty sound": (lambda v: changed(v, sound=np.zeros(0, np.float32)), "no sound track"),
    "silence": (lambda v: changed(v, sound=np.zeros_like(v.sound)), "silence"),
    "damaged sound": (lambda v: changed(v, sound=np.full_like(v.sound, np.nan)), "NaN"),
    "one frame": (lambda v: changed(v, frames=v.frames[:1], times=v.times[:1]), "1 frame, no video"),
    "no frame": (lambda v: changed(v, frames=v.frames[:0], times=v.times[:0]), "0 frames, no video"),
    "no face": (lambda v: faceless(v, slice(None)), "no face in any frame"),
    "a face at times": (lambda v: faceless(v, slice(40, 90)), "a face in 67% of the frames, 80% are needed"),
    "a cut": (with_cut, "a scene cut at 3.00 s"),
    "a still mouth": (lambda v: changed(v, frames=np.repeat(v.frames[:1], len(v.frames), 0)), "does not move"),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_cannot_be_judged_has_a_reason_and_no_number(case):
    change, word = SILENT[case]
    found = drawn().measure(change(clip()))
    assert found.values == {"lip_offset": None, "lip_corr": None} and found.features is None
    assert word in found.reasons["lip_offset"] and found.reasons["lip_corr"] == found.reasons["lip_offset"]


def test_short_clips_are_judged_together():
    """Three of 81 frames, 3.24 s each: none alone, 9.7 s together; clips without a curve bring no row."""
    metric = drawn()
    alone = [metric.measure(clip(81 / 25, late=2, start=start)) for start in (0.0, 1.0, 2.0)]
    assert all(one.values["lip_offset"] is None and "needs 5 s" in one.reasons["lip_corr"] for one in alone)
    together = metric.pool(np.concatenate([one.features for one in alone]))
    assert together.values["lip_offset"] == 2 and together.values["lip_corr"] > 0.6
    assert metric.pool(np.zeros((0, 33))).reasons["lip_offset"] == "no clips"


def test_what_it_says_of_itself():
    metric = drawn()
    assert isinstance(metric, Metric) and not isinstance(metric, SetMetric)
    assert metric.settings["detector"] == "reads_first_pixel" and metric.settings["fps"] == 25
    assert metric.better.keys() == set(metric.columns)


def with_mediapipe() -> LipOffset:
    if not TASK.exists():
        pytest.skip(f"no {TASK}")
    try:
        return LipOffset(TASK)
    except UserError as error:
        pytest.skip(error.got)


def test_a_real_face_that_says_a_real_voice():
    """The astronaut's mouth drawn open by the voice, 5.2 s, three frames late; mediapipe's version and the model's hash
    are written."""
    metric, sound = with_mediapipe(), voice(5.2)
    mouth = np.roll(openings(sound, 130), 3)
    frames = (speaking(portrait(), mouth) * 255).round().byte().movedim(1, -1).numpy()
    found = metric.measure(Video(Path("astronaut.mp4"), frames, np.arange(130) / 25, sound))
    assert found.values["lip_offset"] == 3 and found.values["lip_corr"] > 0.5
    assert {"mediapipe", "weights_sha256"} <= metric.settings.keys()


def test_a_model_that_is_not_there():
    pytest.importorskip("mediapipe")
    with pytest.raises(UserError):
        LipOffset("nowhere.task")
