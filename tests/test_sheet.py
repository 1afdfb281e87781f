"""The contact sheet: evenly spread frames in their order, enlarged without smoothing; errors, not half files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fantasy_core import sheet
from fantasy_core.media import VideoWriter


@given(length=st.integers(1, 500), count=st.integers(1, 60))
def test_spread_covers_the_video_evenly(length, count):
    """First and last frame are in it, each index once; gaps differ by at most one (rounded multiples of a step)."""
    chosen = sheet.spread(length, count)
    assert chosen[0] == 0 and len(chosen) == min(length, count) == len(set(chosen))
    if len(chosen) > 1:
        gaps = np.diff(chosen)
        assert chosen[-1] == length - 1 and gaps.min() >= 1 and np.ptp(gaps) <= 1


def test_enlarge_repeats_pixels():
    """64 pixels are doubled (the factor is the smallest whole one that reaches 96), 128 stay."""
    small = torch.rand(2, 3, 64, 64)
    assert torch.equal(sheet.enlarge(small)[..., ::2, 1::2], small)
    assert sheet.enlarge(torch.zeros(1, 3, 128, 160)).shape == (1, 3, 128, 160)


@pytest.fixture
def video(tmp_path):
    """Nine grey frames of 64x64, frame k of brightness k / 8."""
    path = tmp_path / "video.mp4"
    with VideoWriter(path, 23) as writer:
        writer.write(torch.arange(9.0).div(8).view(9, 1, 1, 1).expand(9, 3, 64, 64))
    return path


def test_sheet_shows_the_frames_in_order(video, tmp_path):
    """Frames 0, 4, 8 of nine: grey 0, 0.5, 1 from left to right; H.264 may move a flat grey by 2 of 255."""
    picture = tmp_path / "sheet.png"
    assert sheet.main([str(video), "--out", str(picture), "--frames", "3", "--columns", "3"]) == 0
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=int)
    assert pixels.shape == (128, 3 * 128)
    assert np.abs(pixels[64, [64, 192, 320]] - [0, 127.5, 255]).max() <= 2.5


def test_several_videos_take_turns(video, tmp_path):
    """A copy beside the original, three of five frames a row: rows 1 and 2, 3 and 4 are alike, and the last two end in
    white."""
    copy, picture = tmp_path / "copy.mp4", tmp_path / "sheet.png"
    copy.write_bytes(video.read_bytes())
    assert sheet.main([str(video), str(copy), "--out", str(picture), "--frames", "5", "--columns", "3"]) == 0
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=int)
    assert pixels.shape == (4 * 128, 3 * 128)
    rows = pixels.reshape(4, 128, 384)
    assert (rows[0] == rows[1]).all() and (rows[2] == rows[3]).all() and (rows[0] != rows[2]).any()
    assert (rows[2:, :, 256:] == 255).all()


def test_videos_of_two_sizes_are_refused(video, tmp_path, capsys):
    with VideoWriter(tmp_path / "wide.mp4", 23) as writer:
        writer.write(torch.zeros(9, 3, 64, 96))
    assert sheet.main([str(video), str(tmp_path / "wide.mp4"), "--out", str(tmp_path / "sheet.png")]) == 2
    assert "do not fit on one sheet" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--frames", "0"], ["--columns", "-1"]])
def test_counts_below_one_are_refused(video, tmp_path, flags, capsys):
    picture = tmp_path / "sheet.png"
    assert sheet.main([str(video), "--out", str(picture), *flags]) == 2
    assert f"leave {flags[0]} out" in capsys.readouterr().err
    assert not picture.exists()


def test_a_file_that_is_no_video_is_refused(tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    assert sheet.main([str(tmp_path / "text.mp4"), "--out", str(tmp_path / "sheet.png")]) == 2
    assert "expected:" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.mp4"]
