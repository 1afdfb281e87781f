"""Lips against voice in memory: openings from landmarks and masks, verdicts in words, and the picture of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_faces import MOST, ellipse, face
from talking import RATE, openings, voice

from fantasy_core.errors import UserError
from fantasy_core.metrics.lip_check import (
    LANDMARKS,
    MASKS,
    LipCheck,
    check_lips,
    openings_of_landmarks,
    openings_of_masks,
    report,
)
from fantasy_core.metrics.lip_plot import draw_lips, standard, unseen

FPS, SECONDS = 25.0, 6


def grey(frames: int) -> torch.Tensor:
    return torch.full((frames, 8, 8, 3), 0.5)


def mouth(late: int = 0) -> np.ndarray:
    return np.roll(openings(voice(SECONDS), round(SECONDS * FPS), most=0.7), late)


def check(late: int = 0, images: torch.Tensor | None = None, sound: np.ndarray | None = None) -> LipCheck:
    opening = mouth(late)
    sound = voice(SECONDS) if sound is None else sound
    return check_lips(grey(len(opening)) if images is None else images, FPS, sound, RATE, opening, LANDMARKS)


def test_openings_of_landmarks():
    """Eyes 20 px apart, as drawn: a gap of 3 px is 0.15. The larger face at first, then the nearest; none is NaN."""
    small, large = face(20, 20, 8, opening=1.0), face(60, 60, 20, opening=3.0)
    found = openings_of_landmarks([[small, large], [face(62, 60, 20, opening=MOST), small], [], [small]])
    assert found[:2] == pytest.approx([0.15, MOST / 20]) and np.isnan(found[2:]).all()


def test_openings_of_masks():
    """Height over width of ellipses, to two hundredths; NaN where nothing is masked; a soft mask is weighted."""
    masks = torch.stack([ellipse(4, 20), ellipse(10, 20), ellipse(20, 20), torch.zeros(128, 128)])
    found = openings_of_masks(masks)
    assert found[:3] == pytest.approx([0.2, 0.5, 1.0], abs=0.02) and np.isnan(found[3])
    assert openings_of_masks(0.5 * masks[:3]) == pytest.approx(found[:3])


@pytest.mark.parametrize("late,words", [(3, "3 frames (120 ms) late: delay the sound by 0.120 s"),
                                        (-4, "4 frames (160 ms) early: advance the sound by 0.160 s"),
                                        (0, "in sync: offset 0 frames")])  # fmt: skip
def test_the_verdict_in_words(late, words):
    found = check(late)
    assert found.sync.offset == late and words in report(found)
    assert "chance alone may give 0.45 in 6.0 s" in report(found)  # 1.1 / sqrt(6)
    assert "seen in 100% of 150 frames at 25 fps" in report(found, ["a warning"])
    assert report(found, ["a warning"]).endswith("warning: a warning")


def test_masks_tell_the_same_offset():
    """Ellipses as high as a mouth opens."""
    masks = torch.stack([ellipse(4 + 14 * float(one), 20, 64) for one in mouth(2)])
    found = check_lips(grey(150), FPS, voice(SECONDS), RATE, openings_of_masks(masks), MASKS)
    assert found.sync.offset == 2 and "height over width" in report(found)


def test_a_short_clip_has_a_curve_and_no_verdict():
    found = check_lips(grey(81), 23.0, voice(SECONDS), RATE, mouth()[:81], LANDMARKS)
    assert found.sync.offset is None and "verdict needs 5 s" in report(found) and "curve: highest" in report(found)


def test_a_cut_and_silence_are_named():
    """Dark from frame 100 on: 4 s. Without a voice there is no loudness to draw."""
    cut = grey(150)
    cut[100:] = 0
    found = check(images=cut)
    assert "no verdict: a scene cut at 4.00 s" in report(found) and found.loudness is not None
    found = check_lips(grey(150), FPS, None, RATE, mouth(), LANDMARKS)
    assert "no sound, or silence" in report(found) and found.loudness is None and found.sync.curve is None


def test_lips_of_other_frames_are_refused():
    with pytest.raises(UserError, match="not as many"):
        check_lips(grey(149), FPS, voice(SECONDS), RATE, mouth(), LANDMARKS)


def test_every_frame_is_told_and_may_be_the_last():
    told = []
    check_lips(grey(150), FPS, voice(SECONDS), RATE, mouth(), LANDMARKS, lambda done, of: told.append((done, of)))
    assert told == [(n, 150) for n in range(1, 151)]


def columns_of(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Columns of a picture [H, W, 3] in which something of nearly this colour is drawn."""
    return np.flatnonzero((np.abs(picture.astype(int) - colour).max(-1) < 12).any(0))


def test_the_picture_shows_the_offset():
    """The bar of the offset alone is blue in the lower half: at -5 left of the middle, at 5 right of it, and as far."""
    blue, orange = (31, 119, 180), (255, 127, 14)
    pictures = [np.asarray(draw_lips(check(late))) for late in (-5, 5)]
    low = [columns_of(picture[picture.shape[0] * 2 // 3 :], blue) for picture in pictures]
    middle = pictures[0].shape[1] / 2
    assert low[0].max() < middle < low[1].min() and np.ptp(low[0]) == pytest.approx(np.ptp(low[1]), abs=3)
    assert len(columns_of(pictures[0][:200], orange)) > 100  # the voice
    without = np.asarray(draw_lips(check_lips(grey(150), FPS, None, RATE, mouth(), LANDMARKS)))
    assert not len(columns_of(without[200:], orange)) and without.shape == pictures[0].shape


def test_what_is_drawn_of_a_series():
    assert standard(np.array([1.0, np.nan, 3.0])) == pytest.approx([-1, np.nan, 1], nan_ok=True)
    assert standard(np.full(3, 2.0)).tolist() == [0, 0, 0] and np.isnan(standard(np.full(2, np.nan))).all()
    assert unseen(np.array([np.nan, 1, 1, np.nan, np.nan])) == [(0, 1), (3, 5)] and unseen(np.ones(2)) == []
