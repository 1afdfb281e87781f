"""Lip Sync Check inside ComfyUI: by every way in the offset that was planted.

One ComfyUI process runs all cases (`inside_comfyui/lip_cases.py`); each test compares some of them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui import inside_comfyui, need_comfyui
from drawn_faces import ellipse, face
from talking import openings, voice, write_placed

from fantasy_core.metrics.lip_check import LANDMARKS, check_lips, openings_of_landmarks
from fantasy_core.metrics.lip_plot import draw_lips

pytestmark = pytest.mark.comfy
LATE = 3


@pytest.fixture(scope="module")
def given() -> dict[str, torch.Tensor]:
    """6 s of a real voice at 25 fps, whose mouth follows it three frames late, as landmarks and as masks."""
    sound = voice(6)
    mouth = np.roll(openings(sound, 150, most=1.0), LATE)
    return {
        "sound": torch.from_numpy(sound),
        "landmarks": torch.from_numpy(np.stack([face(60, 60, 20, opening=6 * one) for one in mouth])),
        "masks": torch.stack([ellipse(4 + 12 * float(one), 20, 64) for one in mouth]),
        "uneven": torch.from_numpy(uneven()),
        "rates": torch.from_numpy(two_rates()),
    }


def uneven() -> np.ndarray:
    """150 frames, 75 of them at 20 a second and 75 at 33: 25 on average. Seconds, in whole milliseconds."""
    return np.round(np.cumsum([0.0] + [1 / 20] * 75 + [1 / 33] * 74), 3)


def two_rates() -> np.ndarray:
    """A second of 20 frames, then 250 frames at 50 a second."""
    return np.concatenate([np.arange(20) / 20, 1 + np.arange(250) / 50])


THIRTY = np.round(np.arange(90) / 30, 3)  # as mkv keeps them: 0, 0.033, 0.067, 0.1 ...


@pytest.fixture(scope="module")
def found(given, tmp_path_factory) -> dict:
    need_comfyui()
    folder = tmp_path_factory.mktemp("lips")
    torch.save(given, folder / "given.pt")
    sound, frames = given["sound"].numpy(), np.arange(150) / 25
    files = (
        write_placed(folder / "late.mkv", frames, sound, begins=0.2),
        write_placed(folder / "early.mkv", frames + 0.2, sound),
        write_placed(folder / "uneven.mkv", uneven(), sound),
        write_placed(folder / "rates.mkv", two_rates(), sound),
        write_placed(folder / "thirty.mkv", THIRTY, np.zeros(16000), np.arange(48000) / 48000),
        write_placed(folder / "packetless.mkv", frames, np.zeros(0)),
    )
    return inside_comfyui("lip_cases", folder, folder / "given.pt", *files)


@pytest.mark.parametrize("case", ["video", "images", "masks", "both", "stereo"])
def test_the_planted_offset_by_every_way_in(found, case):
    assert found[case][0] == LATE and 0.6 < found[case][1] <= 1
    assert "3 frames (120 ms) late" in found["told"][case]


def test_the_numbers_and_the_plot_are_the_cores(found, given):
    landmarks = ([face] for face in given["landmarks"].numpy())
    grey = torch.full((150, 16, 16, 3), 0.5)
    expected = check_lips(grey, 25.0, given["sound"].numpy(), 16000, openings_of_landmarks(landmarks), LANDMARKS)
    assert found["video"][1].item() == pytest.approx(expected.sync.correlation, abs=1e-6)
    plot = found["video, plot"]
    assert plot.shape[0] == 1 and plot.dtype == torch.float32 and plot.min() >= 0 and plot.max() <= 1
    drawn = torch.from_numpy(np.asarray(draw_lips(expected)) / 255)
    assert plot[0].shape == drawn.shape and (plot[0] - drawn).abs().mean() < 0.01


@pytest.mark.parametrize(
    "case,offset", [("file, late sound", LATE - 5), ("file, early sound", LATE + 5), ("file, trimmed", LATE - 5)]
)
def test_a_file_is_placed_by_its_own_times(found, case, offset):
    """A voice that begins 0.2 s (5 frames) after the picture, or before it: the mouth, three frames late at first, is
    so much earlier or later. Frames 10 to 139 of the former are no different. ComfyUI's components start both at 0."""
    assert found[case][0] == offset and 0.6 < found[case][1] <= 1


def test_frames_of_a_varying_rate_are_placed_by_their_times(found):
    """Frames of the mouth at their times: three frames of 1/25 s late, though evenly placed they would be up to 0.7 s
    away from the voice."""
    assert found["file, uneven"][0] == LATE and found["file, uneven"][1] > 0.6
    assert "at 25 fps" in found["told"]["file, uneven"]


def test_a_part_has_the_rate_of_its_own_frames(found):
    """From 1 s on the frames are even, 50 a second, whatever the file's header or mean says: 120 ms are 6 of them,
    less half a one, for the mouths were made from the middles of frames of 40 ms. With 25 there was no verdict."""
    assert found["file, part"][0] in (5, 6) and found["file, part"][1] > 0.6
    assert "at 50 fps" in found["told"]["file, part"]


def test_a_trim_is_rounded_as_comfyui_rounds_it(found):
    """From 1/30 s on, 24 frames: 33 ms is in, as 1/30 s is 33 whole ticks; 833 (frame 25) is not below 833. The sound,
    a ramp of 1 in 3 s on the last of two tracks, begins at 33 ms, sample 528 of 48000 (16 bits)."""
    images, times, begin, length = found["trim"].tolist()
    assert (images, round(times, 3), round(length)) == (24, 0.800 - 0.033, 12800)
    assert begin == pytest.approx(528 / 48000, abs=1 / 32767)


def test_what_wins_is_told(found):
    assert "images were not looked at" in found["told"]["both"]
    assert "lip_mask was not looked at" in found["told"]["both"]
    assert "warning" not in found["told"]["video"]


@pytest.mark.parametrize(
    "case,word", [("silent", "no sound, or silence"), ("no face", "seen in 0% of"), ("no packet", "no sound")]
)
def test_no_verdict_is_nan_with_a_reason_and_a_plot(found, case, word):
    assert found[case].isnan().all() and word in found["told"][case]
    assert found[f"{case}, plot"].shape == found["video, plot"].shape


def test_an_interruption_is_heard_between_frames(found):
    assert found["interrupted"].tolist() == [1, 150]


REFUSED = {
    "damaged": ["no voice", "NaN"],
    "no lips": ["where the lips are", "Detect Face Landmarks"],
    "other frames": ["not as many", "lips of 1 frames, 150 frames"],
    "nothing": ["nothing to judge", "connect"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(found, case):
    for word in [*REFUSED[case], "got:", "expected:", "do:"]:
        assert word in found["told"][case], found["told"][case]
