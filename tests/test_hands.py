"""HKC, HKV and their kin against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fantasy_core.metrics.contract import Metric, Opens, Video
from fantasy_core.metrics.hands import GivenHands, HandMotion, measured, present

SIZE, FRAMES = (512, 768), 50
TIMES = np.arange(FRAMES) / 25


def hand(x: float = 200.0, y: float = 200.0, score: float = 0.8) -> np.ndarray:
    """A hand [21, 3] of random joints, whose palm, from joint 0 to 9, is 40 px long."""
    joints = np.random.default_rng(0).uniform(-60, 60, (21, 2))
    joints[0], joints[9] = (0, 0), (0, -40)
    return np.concatenate([joints + (x, y), np.full((21, 1), score)], 1)


def hands(move=lambda t: (0.0, 0.0), score: float = 0.8, frames: int = FRAMES) -> np.ndarray:
    """Two hands [T, 2, 21, 3], both moved by move(t) pixels."""
    rows = [np.stack([hand(200, 200, score), hand(500, 300, score)]) for _ in range(frames)]
    found = np.stack(rows)
    found[..., :2] += np.array([move(t) for t in range(frames)])[:, None, None]
    return found


def circle(radius: float, frames: int = FRAMES):
    return lambda t: (radius * np.cos(2 * np.pi * t / frames), radius * np.sin(2 * np.pi * t / frames))


def test_a_static_hand():
    found = measured(hands(), SIZE, TIMES)
    assert found.values == pytest.approx(
        {"hkc": 0.8, "hkv": 0, "hkv_std": 0, "hkv_rel": 0, "hand_step": 0, "hand_presence": 1}, abs=1e-9
    )
    assert not found.reasons


def test_a_circle():
    """One turn with a radius of 7 px: Var x = Var y = 7^2 / 2, so HKV 49 and its root 7; fingers do not move against
    the wrist; a step is the chord 2 * 7 * sin(pi / 50)."""
    values = measured(hands(circle(7)), SIZE, TIMES).values
    assert values["hkv"] == pytest.approx(49) and values["hkv_std"] == pytest.approx(7)
    assert values["hkv_rel"] == pytest.approx(0, abs=1e-12)
    assert values["hand_step"] == pytest.approx(14 * np.sin(np.pi / FRAMES))


def test_twice_the_frame_size_and_half_the_frame_rate():
    """In a picture of twice the size everything is twice as far apart: nothing changes. Shown at half the rate, the
    same steps take twice as long."""
    keypoints = hands(circle(7)) * (2, 2, 1)
    plain = measured(hands(circle(7)), SIZE, TIMES).values
    assert measured(keypoints, (1024, 1536), TIMES).values == pytest.approx(plain)
    assert measured(keypoints, (1024, 1536), 2 * TIMES).values == pytest.approx(
        {**plain, "hand_step": plain["hand_step"] / 2}
    )


def test_a_varying_frame_rate():
    """Steps of 3 px, each shown for 20 to 60 ms: as far as 3 px in the time it took, mean over steps."""
    seconds = np.random.default_rng(0).uniform(0.02, 0.06, FRAMES - 1)
    keypoints = hands(lambda t: (3.0 * t, 0.0))
    values = measured(keypoints, SIZE, np.concatenate([[0], np.cumsum(seconds)])).values
    assert values["hand_step"] == pytest.approx(float((3 / seconds).mean()) / 25)


def test_fingers_alone():
    """Joints 1 to 20 of the first hand move by +-2 px in x against the wrist (the palm stays 40 px long
    to 0.2 %): variance 4 px^2 / 40^2; the second hand is still, so half of it."""
    keypoints = hands()
    keypoints[:, 0, 1:, 0] += np.where(np.arange(FRAMES) % 2, 2, -2)[:, None]
    values = measured(keypoints, SIZE, TIMES).values
    assert values["hkv_rel"] == pytest.approx(4 / 40**2 / 2, rel=5e-3)
    assert values["hkv"] == pytest.approx(4 * 20 / 21 / 2)


def test_hands_that_come_and_go():
    """The left one, score 0.9, is there in 20 of 50 frames; the right one is unlikely (0.2) and counts for nothing, nor
    does what it would have said: 20 of 100 are present."""
    keypoints = hands(score=0.9)
    keypoints[20:, 0] = np.nan
    keypoints[:, 1, :, 2] = 0.2
    keypoints[:, 1, :, 0] += 30 * np.random.default_rng(0).random((FRAMES, 1))
    assert present(keypoints).sum(0).tolist() == [20, 0]
    assert measured(keypoints, SIZE, TIMES).values == pytest.approx(
        {"hkc": 0.9, "hkv": 0, "hkv_std": 0, "hkv_rel": 0, "hand_step": 0, "hand_presence": 0.2}, abs=1e-9
    )


def test_no_hand_is_no_number():
    found = measured(np.full((FRAMES, 2, 21, 3), np.nan), SIZE, TIMES)
    assert found.values == {**dict.fromkeys(HandMotion.columns), "hand_presence": 0.0}
    assert set(found.reasons.values()) == {"no hand in any frame"}
    assert found.reasons.keys() == set(HandMotion.columns) - {"hand_presence"}


def test_few_frames_have_a_score_and_no_variance():
    """Seven frames, eight are needed; one frame has no step."""
    found = measured(hands(frames=7), SIZE, TIMES[:7])
    assert found.values["hkc"] == pytest.approx(0.8) and found.values["hand_step"] == 0
    assert found.values["hkv"] is None and found.reasons["hkv_rel"] == "a hand in 7 frames, 8 are needed"
    assert "neighbouring" in measured(hands(frames=1), SIZE, TIMES[:1]).reasons["hand_step"]


def test_a_detector_without_scores():
    """Presence is what was found; HKC cannot be said, HKV can."""
    keypoints = hands(circle(7))
    keypoints[..., 2] = np.nan
    found = measured(keypoints, SIZE, TIMES, scored=False)
    assert found.values["hkc"] is None and "no keypoint score" in found.reasons["hkc"]
    assert found.values["hkv"] == pytest.approx(49) and found.values["hand_presence"] == 1


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[T, 2, 21, 3\]"):
        measured(np.zeros((5, 2, 20, 3)), SIZE, TIMES[:5])


def test_a_cut_is_no_motion():
    """Both hands jump by 100 px at frame 30, where a new scene begins: taken as one scene this is a variance of
    100^2 * 0.6 * 0.4. A circle of 7 px in the first scene is 49 px^2 there, in 30 of 50 frames."""
    scene = np.repeat([0, 1], [30, 20])
    jump = hands(lambda t: (100.0 * (t >= 30), 0.0))
    assert measured(jump, SIZE, TIMES).values["hkv"] == pytest.approx(2400)
    still = measured(jump, SIZE, TIMES, scene).values
    assert [still[name] for name in ("hkv", "hkv_std", "hkv_rel", "hand_step")] == pytest.approx([0] * 4, abs=1e-9)
    turn = circle(7, 30)
    moved = hands(lambda t: turn(t) if t < 30 else (100.0, 0.0))
    assert measured(moved, SIZE, TIMES, scene).values["hkv"] == pytest.approx(49 * 30 / 50)


def test_short_scenes_have_no_variance():
    found = measured(hands(frames=14), SIZE, TIMES[:14], np.repeat([0, 1], 7))
    assert found.values["hkv"] is None and found.reasons["hkv"] == "a hand in 7 frames, 8 are needed"


def test_the_metric_finds_cuts():
    """Black turns to white at frame 10 of 20, where the hand is 100 px away: two still scenes."""
    frames = np.zeros((20, 64, 64, 3), np.uint8)
    frames[10:] = 255

    def read(frame):
        return np.stack([hand(20 + 100 * (frame[0, 0, 0] > 0), 20), np.full((21, 3), np.nan)])

    metric = HandMotion(GivenHands(read, "first pixel"))
    found = metric.measure(Video(Path("a.mp4"), frames, np.arange(20) / 25))
    assert found.values["hkv"] == pytest.approx(0, abs=1e-9) and found.values["hand_step"] == pytest.approx(0)
    assert metric.settings["cuts"] == "part scenes"


def test_the_metric_reads_frames():
    """A detector that finds a hand where the frame's first pixel says: 10 px to the right from the ninth frame on."""
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    frames[8:, 0, 0] = 10

    def read(frame):
        return np.stack([hand(20 + float(frame[0, 0, 0]), 20), np.full((21, 3), np.nan)])

    metric = HandMotion(GivenHands(read, "first pixel"))
    assert isinstance(metric, Metric) and metric.settings["detector"] == "first pixel"
    found = metric.measure(Video(Path("a.mp4"), frames, np.arange(16) / 25))
    assert found.values["hkv"] == pytest.approx((5 * 8) ** 2) and found.values["hand_presence"] == 0.5
    empty = metric.measure(Video(Path("a.mp4"), frames[:0], np.zeros(0)))
    assert set(empty.values.values()) == {None} and empty.reasons["hkv"] == "0 frames"


def test_the_detector_is_opened_once():
    """However many videos; and it can be opened before any of them."""
    entered = []

    class Counted(GivenHands):
        def open(self):
            entered.append(1)
            return super().open()

    metric = HandMotion(Counted(lambda frame: np.full((2, 21, 3), np.nan), "none"))
    assert isinstance(metric, Opens) and not entered
    metric.open()
    for _ in range(2):
        metric.measure(Video(Path("a.mp4"), np.zeros((2, 8, 8, 3), np.uint8), np.arange(2) / 25))
    assert len(entered) == 1
